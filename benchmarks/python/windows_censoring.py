"""What 7 days of immature tail do to a delay law's share at 3 days: the interval of the censored estimator, and that of
the naive share of what has come.

Each world has conversions of one law with anchors over 14 days, looked at on day 14: half of the anchors are younger
than the longer window. The figure is how often, over worlds, a 95% interval holds the law's own alpha(3d). A third row
is Kaplan and Meier's estimate of P(within 7 days) from all anchors, at a rate that does not move.
"""

from __future__ import annotations

import math

import harness
import numpy as np
from harness import Interval
from scipy import stats

from octavo.evaluation import wilson_interval
from octavo.windows import PersonalizedInterpolator

DAY_MS = 86_400_000
LAWS = {
    "exponential 1 d": stats.expon(scale=1.0),
    "exponential 3 d": stats.expon(scale=3.0),
    "weibull .5, 5 d": stats.weibull_min(0.5, scale=5.0),
    "weibull 1.5, 3 d": stats.weibull_min(1.5, scale=3.0),
    "lognormal 1.5, 3 d": stats.lognorm(1.5, scale=3.0),
}
COUNT = 20_000
WORLDS = {"smoke": 3, "quick": 60, "full": 300}
TAIL = 14  # days of anchors: the last 7 are immature


def world(law: object, seed: int) -> dict[str, np.ndarray]:
    """Conversions that had come by day 14, and the anchors of the others."""
    rng = np.random.default_rng(seed)
    anchor = rng.integers(0, TAIL * DAY_MS, COUNT)
    end = anchor + np.floor(law.rvs(COUNT, random_state=rng) * DAY_MS)  # type: ignore[attr-defined]
    return {"anchor": anchor, "converted": np.where(end <= TAIL * DAY_MS, end, np.nan)}


def body(run: harness.Run) -> None:
    """Every law in many worlds."""
    worlds = WORLDS[run.effort.name]
    held: dict[str, list[bool]] = {"censored": [], "naive": []}
    for number, (name, law) in enumerate(LAWS.items()):
        exact = float((law.cdf(3) - law.cdf(1)) / (law.cdf(7) - law.cdf(1)))
        found: dict[str, list[tuple[float, float, float]]] = {"censored": [], "naive": []}
        reached = []
        for seed in range(worlds):
            data = world(law, 1000 * number + seed)
            pi = PersonalizedInterpolator(("1d", "7d"), family="empirical", half_life=None)
            row = pi.fit(data, TAIL * DAY_MS).diagnose("3d").slice(0, 1).to_pydict()
            found["censored"].append((row["alpha"][0], row["low"][0], row["high"][0]))
            delay = (data["converted"] - data["anchor"]) / DAY_MS
            inside = int(((delay > 1) & (delay <= 7)).sum())
            early = int(((delay > 1) & (delay <= 3)).sum())
            found["naive"].append((early / inside, *wilson_interval(early, inside)))
            reached.append(float(pi.kaplan_meier("7d")[0]))
        for method, values in found.items():
            estimates = np.array(values)
            hits = (estimates[:, 1] <= exact) & (exact <= estimates[:, 2])
            held[method] += hits.tolist()
            facts = {"mean": round(float(estimates[:, 0].mean()), 4), "sd": round(float(estimates[:, 0].std()), 4)}
            run.row("windows_censoring", {"law": name, "alpha": round(exact, 4)}, method, _share(hits.tolist()), facts)
        spread = 1.96 * float(np.std(reached)) / math.sqrt(worlds)
        mean = float(np.mean(reached))
        run.row("windows_censoring", {"law": name, "p_7d": round(float(law.cdf(7)), 4)}, "kaplan_meier 7d",
                Interval(mean, mean - spread, mean + spread), {})  # fmt: skip
    run.measured("windows_censored_interval_holds", _share(held["censored"]), 0.9)
    run.measured("windows_naive_interval_holds", _share(held["naive"]), 0.1, at_most=True)


def _share(hits: list[bool]) -> Interval:
    return Interval(float(np.mean(hits)), *wilson_interval(sum(hits), len(hits)))


if __name__ == "__main__":
    harness.main("windows_censoring", body)
