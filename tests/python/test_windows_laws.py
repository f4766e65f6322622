"""Delay laws between two windows: closed forms, scipy's distributions and optimizers say the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq, minimize
from windows_support import LAWS

pytest.importorskip("pyarrow")

from octavo.windows import laws
from octavo.windows.pchip import pchip

A, B = 1.0, 7.0
TIMES = np.array([1.0, 1.3, 2.0, 3.0, 5.0, 6.9, 7.0])


def conditional(law: Any) -> np.ndarray:
    left: np.ndarray = (law.sf(A) - law.sf(TIMES)) / (law.sf(A) - law.sf(B))
    return left


@pytest.mark.parametrize("rate", [1e-3, 0.3, 1.0, 4.0, 60.0])
def test_exponential_is_scipys_between_the_windows(rate: float) -> None:
    found = laws.exponential(np.array([[rate * (B - A)]]), A, B, TIMES)[0]
    np.testing.assert_allclose(found, conditional(stats.expon(scale=1 / rate)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rate", [1e-14, 1e-10, 1e-8, 1e-6])
def test_exponential_without_a_rate_is_linear(rate: float) -> None:
    """beta -> 0 (methods.md 5e (1)): no cancellation, from both sides."""
    exact = laws.linear(A, B, TIMES)
    for sign in (-1, 1):
        found = laws.exponential(np.array([[sign * rate]]), A, B, TIMES)[0]
        np.testing.assert_allclose(found, exact + sign * rate * exact * (1 - exact) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0, 1.5, 4.0])
@pytest.mark.parametrize("scale", [0.05, 3.0, 100.0])
def test_weibull_is_scipys(k: float, scale: float) -> None:
    law = stats.weibull_min(k, scale=scale)
    if law.sf(A) < 1e-12:
        pytest.skip("scipy's cdf is 1 throughout")
    found = laws.weibull(np.array([[np.log(k), np.log(scale / B)]]), A, B, TIMES)[0]
    mass = law.sf(A) - law.sf(TIMES), law.sf(A) - law.sf(B)
    np.testing.assert_allclose(found, mass[0] / mass[1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.3, 1.5, 4.0])
@pytest.mark.parametrize("median", [0.1, 3.0, 200.0])
def test_lognormal_is_scipys(sigma: float, median: float) -> None:
    law = stats.lognorm(sigma, scale=median)
    found = laws.lognormal(np.array([[np.log(median / B), np.log(sigma)]]), A, B, TIMES)[0]
    upper = law.sf(A) - law.sf(TIMES), law.sf(A) - law.sf(B)
    lower = law.cdf(TIMES) - law.cdf(A), law.cdf(B) - law.cdf(A)
    exact = upper[0] / upper[1] if median < 1 else lower[0] / lower[1]
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["exponential", "weibull", "lognormal"]),
    st.integers(0, 400),
    st.floats(0.01, 100.0),
    st.floats(1.05, 100.0),
)
def test_every_law_rises_from_0_to_1(family: str, place: int, a: float, ratio: float) -> None:
    b = a * ratio
    grid = laws.LAWS[family].grid(a, b)
    theta = grid[place % len(grid)][None]
    times = np.geomspace(a, b, 40)
    times[0], times[-1] = a, b
    found = laws.LAWS[family].alpha(theta, a, b, times)[0]
    assert abs(found[0]) < 1e-9
    assert abs(found[-1] - 1) < 1e-9
    assert (np.diff(found) >= -1e-9).all()


@pytest.mark.parametrize("ratio", [0.01, 1 / 7 - 1e-6, 1 / 7, 0.2, 0.5, 0.9, 0.999])
def test_the_closed_ratio_is_the_papers_equation_solved(ratio: float) -> None:
    """(1 - e^-xa) / (1 - e^-xb) = R (methods.md 5b.2c i), by brentq."""

    def gap(x: float) -> float:
        return (A / B if x == 0 else np.expm1(-x * A) / np.expm1(-x * B)) - ratio

    exact = brentq(gap, -20.0, 100.0, xtol=1e-14)
    found = laws.rate_of_ratio(np.array([ratio]), A, B)[0, 0] / (B - A)
    assert found == pytest.approx(exact, rel=1e-5, abs=1e-5)


# methods.md 5d: errors in % of p(T) at T = 2, 3, 5 with exact p_s, p_l.
TABLE = {
    "exponential mean 1": {"exp": (0, 0, 0), "linear": (-20, -21, -12), "log": (-12, -12, -6)},
    "exponential mean 3": {"exp": (0, 0, 0), "linear": (-21, -23, -14), "log": (4, 0, -2)},
    "weibull .5, 5": {"exp": (14, 15, 8), "linear": (-11, -13, -8), "log": (2, 2, 1)},
    "weibull 1.5, 3": {"exp": (-20, -23, -15), "linear": (-27, -30, -20), "log": (9, -1, -6)},
    "lognormal 1.5, 3": {"exp": (0, 2, 2), "linear": (-21, -22, -13), "log": (3, 1, 0)},
}


def errors(name: str, family: str) -> np.ndarray:
    """p(T) / F(T) - 1 in % at T = 2, 3, 5 d."""
    cdf, at = LAWS[name].cdf, np.array([2.0, 3.0, 5.0])
    short, long = cdf(A), cdf(B)
    if family == "exp":
        alpha = laws.exponential(laws.rate_of_ratio(np.array([short / long]), A, B), A, B, at)[0]
    else:
        alpha = laws.fixed_alpha({"linear": "linear", "log": "log_time"}[family], A, B, at)
    return 100 * ((short + alpha * (long - short)) / cdf(at) - 1)


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_errors(name: str) -> None:
    for family, expected in TABLE[name].items():
        np.testing.assert_allclose(errors(name, family), expected, atol=0.75, err_msg=f"{name} {family}")


@pytest.mark.parametrize("family", ["exponential", "weibull", "lognormal"])
def test_a_fit_is_the_maximum_of_the_truncated_likelihood(family: str) -> None:
    """Against Nelder and Mead on the delays themselves, each truncated at its own age (Kalbfleisch and Lawless)."""
    law = {"exponential": LAWS["exponential mean 3"], "weibull": LAWS["weibull .5, 5"]}.get(
        family, LAWS["lognormal 1.5, 3"]
    )
    rng = np.random.default_rng(3)
    edges = np.geomspace(A, B, 25)
    delay, age = law.rvs(6000, random_state=rng), rng.uniform(0, 20, 6000)
    observed = np.searchsorted(edges[1:], age, side="right")  # bins seen whole
    place = np.searchsorted(edges[1:], delay, side="left")
    kept = (delay > A) & (place < observed)
    place, observed = place[kept], observed[kept]
    events = np.bincount(place, minlength=24).astype(float)
    reach = np.array([((place <= j) & (observed > j)).sum() for j in range(24)], float)
    theta = laws.fit_law(family, events[None], reach[None], A, B, edges)

    def loss(at: np.ndarray) -> float:
        curve = laws.LAWS[family].alpha(at[None], A, B, edges)[0]
        inside = np.diff(curve)[place] / curve[observed]
        return float(-np.log(np.maximum(inside, 1e-300)).sum())

    best = minimize(
        loss, theta[0] + 0.05, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 4000}
    )
    assert loss(theta[0]) <= best.fun + 1e-3
    at = np.array([2.0, 3.0, 5.0])
    np.testing.assert_allclose(
        laws.LAWS[family].alpha(theta, A, B, at), laws.LAWS[family].alpha(best.x[None], A, B, at), atol=2e-3
    )


def test_the_product_limit_without_censoring_is_the_share() -> None:
    events = np.array([[3.0, 0.0, 5.0, 2.0]])
    reach = np.cumsum(events, axis=1)
    prior = np.array([[0.0, 0.1, 0.3, 0.6, 1.0]])
    own = laws.empirical(events, reach, prior, 0.0)[0]
    np.testing.assert_allclose(own, [0, 0.3, 0.3, 0.8, 1.0])
    shrunk = laws.empirical(events, reach, prior, 10.0)[0]
    np.testing.assert_allclose(shrunk, (10 * own + 10 * prior[0]) / 20)


def test_the_product_limit_backwards_by_hand() -> None:
    """Two anchors seen for one bin, with 4 and 0 outcomes in it; others seen for both bins, with 6 and 4 outcomes."""
    events, reach = np.array([[10.0, 4.0]]), np.array([[10.0, 10.0]])
    found = laws.empirical(events, reach, np.array([[0.0, 0.5, 1.0]]), 0.0)[0]
    np.testing.assert_allclose(found, [0, 0.6, 1.0])
    # Nobody saw the second bin: what the level above says of it.
    events, reach = np.array([[10.0, 0.0]]), np.array([[10.0, 0.0]])
    found = laws.empirical(events, reach, np.array([[0.0, 0.7, 1.0]]), 0.0)[0]
    np.testing.assert_allclose(found, [0, 0.7, 1.0])


def test_kaplan_meier_by_hand() -> None:
    found = laws.kaplan_meier(np.array([[2.0, 1.0, 0.0]]), np.array([[10.0, 4.0, 2.0]]))[0]
    np.testing.assert_allclose(found, [0, 0.2, 1 - 0.8 * 0.75, 0.4])


def test_pchip_is_scipys_row_by_row() -> None:
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.uniform(0.05, 1, (40, 5)), axis=1)
    y = np.cumsum(rng.uniform(0, 1, (40, 5)) * (rng.random((40, 5)) < 0.8), axis=1)
    at = x[:, 0] + rng.random(40) * (x[:, -1] - x[:, 0])
    exact = [float(PchipInterpolator(x[i], y[i])(at[i])) for i in range(40)]
    np.testing.assert_allclose(pchip(x, y, at), exact, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 6))
def test_pchip_rises_where_its_knots_do(seed: int, knots: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.sort(np.round(rng.random((1, knots)), 1), axis=1)  # with equal knots
    y = np.sort(rng.random((1, knots)), axis=1)
    at = np.linspace(x[0, 0], x[0, -1], 50)
    found = pchip(np.repeat(x, 50, 0), np.repeat(y, 50, 0), at)
    assert np.isfinite(found).all()
    assert (np.diff(found) >= -1e-12).all()
