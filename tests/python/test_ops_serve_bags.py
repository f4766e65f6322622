"""Bags' forward as one C function: the bits of the slow path, and NotImplemented wherever something is unusual."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from embedding_support import FORMATS, bags, table, table_set
from torch.autograd import forward_ad

from octavo import _core, ops
from octavo.ops import dispatch
from octavo.ops.embedding import BOUNDS, TableSet, bag_forward


def _settled(dtype: str = "fp32", place: str = "separate", dims: tuple[int, ...] = (40, 16)) -> TableSet:
    tables = table_set([table(50, d, dtype, seed=d, place=place) for d in dims], list(dims), dtype, "mean")
    bag_forward(tables, *bags(len(dims), 1, 50, seed=1)[:2])
    return tables


def _serve(tables, values, offsets, weights=None, bounds="error", is_bf16=False, out=None):
    return _core.serve_bags(tables.core, values, offsets, weights, BOUNDS[bounds], is_bf16, out)


@pytest.mark.parametrize(("dtype", "place"), FORMATS)
@pytest.mark.parametrize("batch", [1, 23, 4096])
def test_served_calls_have_the_slow_paths_bits(isa, dtype, place, batch) -> None:
    tables = _settled(dtype, place, (40, 72))
    values, offsets, weights = bags(2, batch, 50, seed=batch)
    kernel = next(k for k in reversed(_core.kernels()) if k.op == _core.Op.bag_forward and k.supported
                  and k.device == _core.Device.cpu)  # fmt: skip
    for w in (None, weights):
        for out_dtype in (torch.float32, torch.bfloat16):
            expected = bag_forward(tables, values, offsets, w, out_dtype=out_dtype, kernel=kernel)
            calls = kernel.calls
            y = _serve(tables, values, offsets, w, is_bf16=out_dtype is torch.bfloat16)
            assert y is not NotImplemented
            assert kernel.calls == calls + 1
            assert torch.equal(y, expected)
            assert (y.dtype, y.is_contiguous(), y.requires_grad) == (out_dtype, True, False)
            wide = torch.full((batch, 120), 7.0, dtype=out_dtype)
            out = wide[:, 4:116]
            assert _serve(tables, values, offsets, w, is_bf16=out_dtype is torch.bfloat16, out=out) is out
            assert torch.equal(out, expected)
            assert bool((wide[:, :4] == 7).all())
            assert bool((wide[:, 116:] == 7).all())


def test_what_is_unusual_is_left_to_the_slow_path() -> None:
    tables = _settled()
    values, offsets, weights = bags(2, 6, 50, seed=2)
    fits = torch.empty(6, 56)
    assert _serve(tables, values, offsets, weights, out=fits) is fits

    class Named(torch.Tensor):
        pass

    for unusual in (
        (values.int(), offsets), (values, offsets.int()), (values.tolist(), offsets), (None, offsets),
        (values.repeat_interleave(2)[::2], offsets), (values, offsets.repeat_interleave(2)[::2]),
        (values[None], offsets), (values.as_subclass(Named), offsets), (values.to("meta"), offsets),
        (values, offsets[:-1]), (values, offsets[:0]), (values, offsets, weights[:-1]),
        (values, offsets, weights.double()), (values, offsets, None, "warn"),
    ):  # fmt: skip
        assert _serve(tables, *unusual) is NotImplemented
    for out in (
        torch.empty(6, 55), torch.empty(5, 56), torch.empty(6, 56).bfloat16(), torch.empty(56, 6).mT, torch.empty(56),
        torch.empty(1, 56).expand(6, 56), torch.empty(6, 56, requires_grad=True), torch.empty(6, 56).tolist(),
    ):  # fmt: skip
        assert _serve(tables, values, offsets, out=out) is NotImplemented
    with forward_ad.dual_level():
        assert _serve(tables, values, offsets, weights) is NotImplemented
    assert _serve(TableSet(tables.rows), values, offsets) is NotImplemented  # nothing chosen yet
    dispatch.force_isa(_core.isa())  # kernels are chosen anew
    assert _serve(tables, values, offsets) is NotImplemented


def test_errors_are_those_of_the_slow_path(isa) -> None:
    tables = _settled()
    values, offsets, _ = bags(2, 6, 50, seed=3)
    outside, late, falling = values.clone(), offsets.clone(), offsets.clone()
    outside[3], late[-1], falling[4] = 50, len(values) + 1, len(values)
    falling[5] = 0
    for error, match, arguments in (
        (IndexError, "row index 50 at position 3 is outside", (outside, offsets)),
        (ValueError, "offsets: must end at the number of values", (values, late)),
        (ValueError, "offsets: must never decrease", (values, falling)),
    ):
        with pytest.raises(error, match=match):
            _serve(tables, *arguments)
        with pytest.raises(error, match=match):
            ops.embedding_bags(tables, *arguments)
    skipping = ops.embedding_bags(tables, outside, offsets, bounds="ignore")
    with pytest.warns(UserWarning, match="skipped 1 of"):
        assert torch.equal(ops.embedding_bags(tables, outside, offsets, bounds="warn"), skipping)
    with pytest.raises(ValueError, match="overlap"):
        ops.embedding_bags(tables, values, offsets, out=torch.empty(1, 56).expand(6, 56))


def test_from_many_threads() -> None:
    tables = _settled()
    values, offsets, weights = bags(2, 2000, 50, seed=4)
    expected = ops.embedding_bags(tables, values, offsets, weights)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: ops.embedding_bags(tables, values, offsets, weights), range(40)))
    assert all(torch.equal(y, expected) for y in found)
