"""What AdsWorld says of itself against what it does: rates, delay laws, the Bayes optimum, what was known when."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("pydantic")
pytest.importorskip("scipy")

import pyarrow as pa
from adsworld_support import columns, skew
from scipy import stats

from octavo import evaluation
from octavo.data import AdsWorld, bayes_optimum, encode_table
from octavo.data.adsworld.laws import AnyLaw, Exponential, LogNormal, Mixture, Weibull, draw

DAY = 86_400.0
LAWS: dict[str, AnyLaw] = {
    "exponential": Exponential(mean=3.0 * DAY),
    "weibull_tail": Weibull(shape=0.5, scale=5.0 * DAY),
    "weibull_hump": Weibull(shape=1.5, scale=3.0 * DAY),
    "lognormal": LogNormal(median=3.0 * DAY, sigma=1.5),
    "mixture": Mixture(weights=(1.0, 2.0), parts=(Exponential(mean=600.0), LogNormal(median=5.0 * DAY, sigma=0.6))),
}
SCIPY = {
    "exponential": stats.expon(scale=3.0 * DAY).cdf,
    "weibull_tail": stats.weibull_min(0.5, scale=5.0 * DAY).cdf,
    "weibull_hump": stats.weibull_min(1.5, scale=3.0 * DAY).cdf,
    "lognormal": stats.lognorm(1.5, scale=3.0 * DAY).cdf,
    "mixture": lambda t: stats.expon(scale=600.0).cdf(t) / 3 + 2 / 3 * stats.lognorm(0.6, scale=5.0 * DAY).cdf(t),
}


def delay_world(**conversions: Any) -> AdsWorld:
    laws = [{"law": law.model_dump()} for law in LAWS.values()]
    return AdsWorld(
        {
            "users": {"initial": 2000},
            "items": {"initial": 300},
            "advertisers": {"count": 12, "zipf": 0.3},
            "domains": [{"name": "feed", "ctr": 0.6, "cvr": 0.6}],
            "traffic": {"impressions_per_day": 200_000, "tick_minutes": 240},
            "conversions": {"laws": laws, "spread": 0.5, "window_days": 10.0, **conversions},
        },
        seed=9,
    )


@pytest.mark.parametrize("name", LAWS)
def test_laws_are_the_closed_forms(name: str) -> None:
    law, times = LAWS[name], np.array([0.0, 1e-3, 1.0, 59.0, 3600.0, 1e5, 1e6, 1e9, np.inf])
    np.testing.assert_allclose(law.cdf(times), SCIPY[name](times), rtol=1e-12, atol=1e-300)
    shares = np.array([0.0, 1e-12, 0.01, 0.25, 0.5, 0.9, 0.999, 1.0])
    back = law.quantile(shares)
    np.testing.assert_allclose(law.cdf(back), shares, rtol=1e-9)
    assert back[0] == 0
    assert np.isinf(back[-1])
    assert (np.diff(back) > 0).all()


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("horizon", [np.inf, 2.0 * DAY, 60.0])
def test_draws_follow_the_law_cut_off_at_the_horizon(name: str, horizon: float) -> None:
    law = LAWS[name]
    drawn = draw(law, np.random.default_rng(5), np.full(50_000, horizon))
    assert 0 <= drawn.min() <= drawn.max() <= horizon
    assert stats.kstest(drawn, lambda t: SCIPY[name](t) / SCIPY[name](horizon)).pvalue > 1e-3
    assert len(draw(law, np.random.default_rng(0), np.empty(0))) == 0


def test_a_heavier_law_is_refused_by_the_same_test() -> None:
    drawn = draw(Exponential(mean=1.05 * 3 * DAY), np.random.default_rng(5), np.full(50_000, np.inf))
    assert stats.kstest(drawn, SCIPY["exponential"]).pvalue < 1e-6


def test_a_mixture_needs_one_weight_per_part() -> None:
    with pytest.raises(ValueError, match="weights: expected 2, one per part, found 1"):
        Mixture(weights=(1.0,), parts=(Exponential(mean=1.0), Exponential(mean=2.0)))


def test_every_advertisers_delays_follow_its_law() -> None:
    world = delay_world()
    advertiser, wait, law, median, tail = columns(
        world, "advertiser", "_conversion_wait", "_law", "_wait_p50", "_wait_p90", days=1.0
    )
    known = ~np.isnan(wait)
    advertiser, wait, law, median, tail = (column[known] for column in (advertiser, wait, law, median, tail))
    tested = set()
    for number in np.unique(advertiser):
        mine = wait[advertiser == number]
        assert len(mine) > 500
        assert stats.kstest(mine, lambda t: world.truth.delay_cdf(number, t)).pvalue > 1e-3, number  # noqa: B023
        name, scale = list(LAWS)[world.truth.law[number]], world.truth.scale[number]
        grid = np.array([0.5, 1.0, 3.0, 7.0]) * DAY  # the closed form, cut off at ten days
        np.testing.assert_allclose(
            world.truth.delay_cdf(number, grid), SCIPY[name](grid / scale) / SCIPY[name](10 * DAY / scale), rtol=1e-9
        )
        assert (law[advertiser == number] == world.truth.law[number]).all()
        for q, column in ((0.5, median), (0.9, tail)):
            expected = world.truth.delay_quantile(number, q)
            np.testing.assert_allclose(column[advertiser == number], expected, rtol=1e-6)
            spread = 4 * np.sqrt(q * (1 - q) / len(mine))
            assert abs((mine <= expected).mean() - q) < spread
        tested.add(name)
    assert len(tested) >= 4
    assert wait.max() <= 10 * DAY


def test_the_delay_truth_at_its_ends_and_its_refusals() -> None:
    truth = delay_world().truth
    everyone = np.arange(12)
    assert (truth.delay_cdf(everyone, 0.0) == 0).all()
    assert (truth.delay_cdf(everyone, 10 * DAY) == 1).all()
    assert (truth.delay_cdf(everyone, np.inf) == 1).all()
    assert truth.delay_cdf(everyone[:, None], np.array([1.0, 2.0, 3.0])).shape == (12, 3)
    np.testing.assert_allclose(truth.delay_cdf(everyone, truth.delay_quantile(everyone, 0.3)), 0.3, rtol=1e-9)
    within = truth.p_conversion_within(0.2, everyone, DAY)
    np.testing.assert_allclose(within, 0.2 * truth.delay_cdf(everyone, DAY))
    with pytest.raises(ValueError, match=r"advertiser: expected 0\.\.11, found 0\.\.12"):
        truth.delay_cdf(np.arange(13), 1.0)
    with pytest.raises(ValueError, match=r"q: expected shares in 0\.\.1"):
        truth.delay_quantile(0, 1.5)


def test_outcomes_are_drawn_from_the_true_probabilities() -> None:
    world = AdsWorld("reference", seed=1)
    click, p_click, conversion, p_conversion = columns(
        world, "click", "_p_click", "conversion", "_p_conversion", events=400_000
    )
    clicked = click == 1
    for y, p in ((click, p_click), (conversion[clicked], p_conversion[clicked])):
        assert abs((y - p).sum() / np.sqrt((p * (1 - p)).sum())) < 4
        for found in evaluation.calibration_bins(p, y, bins=10):
            spread = np.sqrt(found.predicted * (1 - found.predicted) / found.events)
            assert abs(found.observed - found.predicted) < 4 * spread
        best = bayes_optimum(p)
        assert best.ne == pytest.approx(evaluation.ne(p, y), abs=0.01)
        assert best.auc == pytest.approx(evaluation.auc(p, y), abs=0.01)
        assert best.base_rate == pytest.approx(y.mean(), abs=0.005)
        noisy = p * np.exp(np.random.default_rng(0).normal(0, 0.3, len(p)))
        assert evaluation.auc(noisy, y) < best.auc
    assert (conversion[~clicked] == 0).all()


def test_each_domain_has_the_base_rates_it_was_given() -> None:
    world = AdsWorld(
        {
            "domains": [
                {"name": "feed", "ctr": 0.2, "cvr": 0.1},
                {"name": "rare", "ctr": 0.01, "cvr": 0.5},
                {"name": "above", "offset": 0.8, "cvr": 0.3},
            ],
            "traffic": {"impressions_per_day": 600_000, "shown": 3, "candidates": 9, "ranking": 1.0, "retrieval": 0.3},
            "tastes": {"domain_correlation": 0.5},
            "effects": {"hour": 0.5, "position": 0.3, "signals": 2, "signal_sd": 0.5},
        },
        seed=4,
    )
    domain, p_click, p_conversion = columns(world, "domain", "_p_click", "_p_conversion", days=1.0)
    for number, (ctr, cvr) in enumerate([(0.2, 0.1), (0.01, 0.5), (None, 0.3)]):
        mine = domain == number
        if ctr is not None:
            assert p_click[mine].mean() == pytest.approx(ctr, rel=0.04)
        assert np.average(p_conversion[mine], weights=p_click[mine]) == pytest.approx(cvr, rel=0.04)
    click = world.truth.intercepts[0]
    assert click[2] - click[0] == pytest.approx(0.8)


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.1])
def test_popularity_follows_the_exponent(exponent: float) -> None:
    world = AdsWorld(
        {"users": {"initial": 1000, "zipf": exponent}, "items": {"initial": 1000, "zipf": 1.1 - exponent}}, seed=2
    )
    user, item = columns(world, "user", "item", events=300_000)
    assert skew(user) == pytest.approx(exponent, abs=0.06)
    assert skew(item) == pytest.approx(1.1 - exponent, abs=0.06)
    # Shares against the law itself: a chi-square over ids that have been drawn often enough.
    counts = np.sort(np.bincount(user, minlength=1000))[::-1].astype(float)
    expected = np.arange(1, 1001) ** -exponent
    expected *= counts.sum() / expected.sum()
    assert abs(counts[:100].sum() - expected[:100].sum()) < 0.03 * counts.sum()


def test_bayes_optimum_of_known_cases() -> None:
    same = bayes_optimum(np.full(7, 0.3))
    assert (same.base_rate, same.auc) == (pytest.approx(0.3), pytest.approx(0.5))
    assert same.ne == pytest.approx(1.0)
    sure = bayes_optimum(np.array([0.0, 1.0, 0.0, 1.0]))
    assert (sure.ne, sure.auc) == (0.0, 1.0)
    for p in ([0.0, 0.0], [1.0], []):
        assert np.isnan(bayes_optimum(np.array(p)).auc)
    with pytest.raises(ValueError, match=r"p: expected probabilities in 0\.\.1"):
        bayes_optimum(np.array([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"p: expected probabilities"):
        bayes_optimum(np.array([0.5, np.nan]))


def test_the_bayes_auc_is_the_ratio_of_expected_pairs() -> None:
    """Against the sums over all pairs of two different events, ties included."""
    rng = np.random.default_rng(3)
    p = np.round(rng.beta(1, 4, 41), 1)
    right = pairs = 0.0
    for i in range(len(p)):
        for j in range(len(p)):
            if i != j:
                pairs += p[i] * (1 - p[j])
                right += p[i] * (1 - p[j]) * (1.0 if p[i] > p[j] else 0.5 if p[i] == p[j] else 0.0)
    assert bayes_optimum(p).auc == pytest.approx(right / pairs, rel=1e-12)


def observed_by_hand(row: dict[str, Any], until: int, click_window: float, window: float) -> tuple[Any, Any]:
    """Click and conversion as known at ``until``, one row at a time."""
    age = (until - row["time"]) / 1000
    if row["click"] and row["click_delay"] <= age:
        click = 1
    else:
        click = 0 if age >= click_window else None
    if row["conversion"] and row["conversion_delay"] <= age:
        return click, 1
    if click == 0:
        return click, 0
    if click == 1 and age >= row["click_delay"] + window:
        return click, 0
    return click, None


def test_a_log_knows_only_what_had_happened() -> None:
    world = AdsWorld(
        {
            "users": {"initial": 500},
            "items": {"initial": 100},
            "domains": [{"name": "feed", "ctr": 0.4, "cvr": 0.5}],
            "traffic": {"impressions_per_day": 20_000},
            "clicks": {"delay": {"kind": "exponential", "mean": 900.0}, "window_hours": 1.0},
            "conversions": {"laws": [{"law": {"kind": "exponential", "mean": 20_000.0}}], "window_days": 0.5},
        }
    )
    whole = pa.concat_tables(world.tables(days=1.0)).to_pylist()
    until = world.time(1.0)
    seen = pa.concat_tables(world.tables(days=1.0, observed_until=until))
    kinds = set()
    for row, known in zip(whole, seen.to_pylist(), strict=True):
        click, conversion = observed_by_hand(row, until, 3600.0, 43_200.0)
        assert (known["click"], known["conversion"]) == (click, conversion)
        assert known["click_delay"] == (row["click_delay"] if click == 1 else None)
        assert known["conversion_delay"] == (row["conversion_delay"] if conversion == 1 else None)
        kinds.add((click, conversion))
    assert kinds == {(None, None), (0, 0), (1, None), (1, 0), (1, 1)}
    assert np.isnan(encode_table(world.schema, seen).labels["conversion"].numpy()).any()


def test_the_end_of_the_log_may_be_what_was_known(tmp_path: Any) -> None:
    world = delay_world()
    log = world.write(tmp_path / "log", days=0.25, observed_until="end")
    labels = log.read().labels
    assert 0.3 < float(labels["conversion"].isnan().double().mean()) < 0.9
    later = world.write(tmp_path / "later", days=0.25, observed_until=world.time(0.25 + 11.0)).read()
    whole = world.write(tmp_path / "whole", days=0.25).read()
    for task in ("click", "conversion"):
        assert later.labels[task].equal(whole.labels[task])
