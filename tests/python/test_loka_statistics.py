"""Probe's statistics against two-pass formulas, however the rows are cut, merged, strided or scaled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import _core
from octavo.loka.statistics import Statistics


def _rows(m: int, k: int, seed: int = 0) -> torch.Tensor:
    """Correlated columns with offsets and scales of their own."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=g) / max(k, 1) ** 0.5
    scales = torch.logspace(-3, 3, k) if k > 1 else torch.ones(k)
    return (torch.randn(m, k, generator=g) @ mix + 5 * torch.randn(k, generator=g)) * scales


def _observed(x: torch.Tensor, chunks: list[int], **options: int) -> Statistics:
    statistics = Statistics(x.shape[1], **options)
    for part in x.split(chunks):
        statistics.observe(part)
    return statistics


def _correlation_error(statistics: Statistics, x: torch.Tensor) -> float:
    """Largest error of the covariance, each entry relative to its columns' deviations."""
    expected = np.atleast_2d(np.cov(x.double().numpy().T))
    deviation = np.sqrt(np.diag(expected))
    return float(np.abs((statistics.covariance().numpy() - expected) / np.outer(deviation, deviation)).max())


@pytest.mark.parametrize("k", [1, 3, 17, 33, 67, 130])
@pytest.mark.parametrize("chunk", [1, 2, 7, 301, 700])
def test_streaming_equals_two_passes(isa: str, k: int, chunk: int) -> None:
    x = _rows(700, k, seed=k)
    found = _observed(x, [chunk] * (700 // chunk) + ([700 % chunk] if 700 % chunk else []))
    assert found.rows == 700
    np.testing.assert_allclose(found.mean.numpy(), x.double().numpy().mean(0), rtol=1e-12, atol=1e-12)
    assert _correlation_error(found, x) < 1e-5


@settings(deadline=None, max_examples=25)
@given(
    k=st.integers(1, 40), cuts=st.lists(st.integers(1, 30), min_size=2, max_size=6), offset=st.floats(-1e4, 1e4),
    scale=st.sampled_from([1e-25, 1e-3, 1.0, 1e12]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_cut_merged_in_any_order(k: int, cuts: list[int], offset: float, scale: float, seed: int) -> None:
    x = ((torch.randn(sum(cuts), k, generator=torch.Generator().manual_seed(seed)) + offset) * scale).contiguous()
    parts = [_observed(part, [len(part)]) for part in x.split(cuts)]
    for part in parts[1:]:
        parts[0].merge(part)
    whole = _observed(x, [len(x)])
    for name, tensor in parts[0].state_dict().items():
        expected = whole.state_dict()[name]
        if name == "scatter":
            tensor, expected = tensor.triu(), expected.triu()
            bound = 1e-5 * float(expected.diagonal().max())
            torch.testing.assert_close(tensor, expected, rtol=0, atol=bound + 1e-300)
        elif name in ("row_amax", "shares", "counts", "mean"):
            torch.testing.assert_close(tensor, expected, rtol=1e-9, atol=1e-9 * scale)
    assert parts[0].kurtosis == pytest.approx(whole.kurtosis, rel=1e-6)


def test_state_survives_saving_and_bits_repeat() -> None:
    x = _rows(600, 150)
    first, again, empty = _observed(x, [600]), _observed(x, [600]), Statistics(150)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    empty.load_state_dict(first.state_dict())
    empty.observe(x)
    first.observe(x)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, empty.state_dict()[name]), name
    with pytest.raises(ValueError, match="state: mean is"):
        empty.load_state_dict({**first.state_dict(), "mean": torch.zeros(3)})
    with pytest.raises(ValueError, match="rows of 3"):
        empty.observe(x[:, :3])
    with pytest.raises(ValueError, match="do not fit"):
        empty.merge(Statistics(149))


def test_strides_types_and_threads() -> None:
    x = _rows(300, 70)
    wide = torch.zeros(300, 90)
    wide[:, 5:75] = x
    whole = _observed(x, [300]).state_dict()
    strided = Statistics(70)
    strided.observe(wide[:, 5:75])
    half, of_half = Statistics(70), Statistics(70)
    half.observe(x.bfloat16())
    of_half.observe(x.bfloat16().float())
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    other = _observed(x, [300]).state_dict()
    torch.set_num_threads(threads)
    for name, tensor in whole.items():
        assert torch.equal(tensor, strided.state_dict()[name]), name
        assert torch.equal(tensor, other[name]), name
        assert torch.equal(half.state_dict()[name], of_half.state_dict()[name]), name


def test_rows_that_are_not_finite_are_counted_and_left_out(isa: str) -> None:
    x = _rows(50, 9)
    bad = x.clone()
    bad[3, 2], bad[7, 0], bad[9, 1], bad[9, 2] = math.nan, math.inf, -math.inf, math.nan
    kept = torch.tensor([r for r in range(50) if r not in (3, 7, 9)])
    found, expected = _observed(bad, [50]), _observed(x[kept], [47])
    assert (found.rows, found.count("nan_rows"), found.count("infinite_rows")) == (47, 2, 1)
    for name, tensor in expected.state_dict().items():
        if name != "counts":
            assert torch.equal(tensor, found.state_dict()[name]), name
    nothing = Statistics(4)
    nothing.observe(torch.full((3, 4), math.nan))
    nothing.observe(torch.empty(0, 4))
    assert nothing.rows == 0
    assert not nothing.covariance().any()


def test_tails_against_their_definitions(isa: str) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 48, generator=g).relu() ** 3 * torch.randn(3000, 1, generator=g).exp()
    x[5] = 0
    found = _observed(x, [3000])
    amax, ref = x.abs().amax(1), x.double()
    assert found.count("zero_rows") == int((amax == 0).sum())
    assert found.count("negatives") == 0
    assert found.count("zeros") == int((x == 0).sum())
    for format, scale in (("e4m3", 448), ("int8", 127)):
        for scaling, of in (("row", amax[:, None]), ("tensor", amax.max())):
            code = ref * (scale / of.double())
            smallest = 2.0**-10 if format == "e4m3" else 0.5
            expected = int(((code.abs() <= smallest) & (x != 0)).sum())
            assert found.count(f"underflow_{format}_{scaling}") == pytest.approx(expected, abs=1)
    centred = ref - ref.mean()
    assert found.kurtosis == pytest.approx(float(centred.pow(4).mean() / centred.square().mean() ** 2), rel=1e-9)
    share = (ref / amax[:, None].double())[amax > 0]
    assert found.crest == pytest.approx(float(share.square().mean() ** -0.5), rel=1e-6)
    q = torch.tensor([0.05, 0.5, 0.9, 0.99, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(found.amax_quantiles(q), np.quantile(amax.double(), q.numpy()), rtol=0.07)
    shares = share.flatten().sort().values
    found_shares = found.share_quantiles(q)
    np.testing.assert_allclose(found_shares, shares[((len(shares) - 1) * q).long()], rtol=0.13, atol=1e-4)
    mirrored = _observed(-x, [3000]).share_quantiles(1 - q)
    torch.testing.assert_close(mirrored, -found_shares, rtol=0.13, atol=1e-4)


def test_saturation_under_the_last_batchs_scale() -> None:
    statistics = Statistics(2)
    statistics.observe(torch.tensor([[1.0, -2.0]]))
    statistics.observe(torch.tensor([[2.0, 3.0], [-4.0, 0.5]]))
    assert statistics.count("beyond_last_amax") == 2
    statistics.observe(torch.tensor([[3.9, 4.0]]))
    assert statistics.count("beyond_last_amax") == 2


def test_a_sketch_finds_the_strong_directions(isa: str) -> None:
    g = torch.Generator().manual_seed(1)
    k, m = 300, 2000
    strong = torch.randn(k, 10, generator=g)
    x = torch.randn(m, 10, generator=g) @ strong.T * 3 + torch.randn(m, k, generator=g) * 0.3 + 2
    sketch = _observed(x, [513, 1, 700, 786], full=100, rank=32)
    exact = np.cov(x.double().numpy().T)
    error = np.linalg.norm(sketch.covariance().numpy() - exact) / np.linalg.norm(exact)
    assert error < 0.01
    np.testing.assert_allclose(sketch.covariance().diagonal(), np.diag(exact), rtol=1e-5)
    halves = [_observed(part, [len(part)], full=100, rank=32) for part in x.split([900, 1100])]
    halves[0].merge(halves[1])
    torch.testing.assert_close(halves[0].covariance(), sketch.covariance(), rtol=1e-3, atol=1e-3)
    signs = torch.empty(k, 70)
    _core.sketch_signs(k, 70, signs.data_ptr())
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert float((signs.T @ signs / k - torch.eye(70)).abs().max()) < 0.3
