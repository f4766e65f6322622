"""Tensor errors: the frozen definitions, by hand."""

import math

import pytest
import torch

from octavo import ops
from octavo.ops import errors

REF = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
Y = torch.tensor([[1.5, -2.0], [3.0, 3.0]])


def test_relative_l1() -> None:
    assert errors.relative_l1(Y, REF) == pytest.approx(1.5 / 10)


def test_sqnr() -> None:
    assert errors.sqnr_db(Y, REF) == pytest.approx(10 * math.log10(30 / 1.25))
    assert errors.sqnr_db(REF, REF) == math.inf
    assert errors.sqnr_db(Y, torch.zeros(2, 2)) == -math.inf


def test_signal_relative_cancels_a_common_offset() -> None:
    centred = REF - torch.tensor([2.0, 1.0])
    assert errors.signal_relative(Y, REF) == pytest.approx(math.sqrt(1.25) / float(centred.norm()))
    offset = 1000.0
    assert errors.signal_relative(Y + offset, REF + offset) == pytest.approx(errors.signal_relative(Y, REF))
    assert errors.relative_l1(Y + offset, REF + offset) < 1e-3


def test_mere_has_a_floor() -> None:
    ref = torch.tensor([[0.0, 2.0]])
    y = torch.tensor([[0.01, 2.0]])
    floor = 1e-2 * math.sqrt(4 / 2)
    assert errors.mere(y, ref) == pytest.approx((0.01 / floor + 0) / 2)
    assert errors.mere(ref, ref) == 0.0


def test_post_norm() -> None:
    norm = ops.Norm("rms", eps=0.0)
    z = Y.double() / Y.double().square().mean(1, keepdim=True).sqrt()
    r = REF.double() / REF.double().square().mean(1, keepdim=True).sqrt()
    assert errors.post_norm_error(Y, REF, norm) == pytest.approx(float((z - r).abs().sum() / r.abs().sum()))
    assert errors.post_norm_error(2 * REF, REF) < 1e-4  # LayerNorm cancels a common factor


def test_the_next_layer_sees_of_a_head_what_it_says() -> None:
    assert errors.next_layer_error(2 * REF, REF, None) == pytest.approx(1.0)  # LayerNorm would leave signs
    norm = ops.Norm("rms")
    assert errors.next_layer_error(Y, REF, norm) == errors.post_norm_error(Y, REF, norm)
    wide, off = torch.cat([REF, 2 * REF], 1), torch.cat([Y, 2 * Y], 1)
    assert errors.next_layer_error(off, wide, None) == errors.post_norm_error(off, wide)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"y: shape \[2\] differs from ref's \[3\]"):
        errors.relative_l1(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="y: is empty"):
        errors.mere(torch.zeros(0), torch.zeros(0))
