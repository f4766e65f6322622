"""The factor for intervals over few units."""

import pytest

from octavo.ops.intervals import expansion, t_quantile


def test_t_quantiles_are_exact() -> None:
    scipy = pytest.importorskip("scipy.special")
    for freedom in (1, 2, 3, 4, 7, 30, 99, 199, 200, 1000, 100_000):
        assert t_quantile(freedom) == pytest.approx(float(scipy.stdtrit(freedom, 0.975)), rel=1e-9)


def test_few_units_widen_and_many_do_not() -> None:
    assert expansion(2) == pytest.approx(12.706204736 / 1.959963985 * 2**0.5)
    assert expansion(10_000) == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="units: an interval needs at least 2, found 1"):
        expansion(1)
