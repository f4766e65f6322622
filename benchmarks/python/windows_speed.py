"""How fast any window is served, and laws are fitted: predictions of a table of a million groups against a numpy gather
of the same bytes, and the fit of many groups against lifelines' fitters, a group at a time.

The gather takes the same rows of the same column into the same output: a prediction also reads two probabilities,
checks them, and combines. Like is fitted with like: the product-limit curve with KaplanMeierFitter, Weibull with
WeibullFitter (lifelines' have no truncation: they get the delays up to 7 days, censored at their age).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
from harness import Entry, Interval, where
from scipy import stats

from octavo.windows import LookupTable, PersonalizedInterpolator

DAY_MS = 86_400_000
ROWS = {"smoke": 1 << 14, "quick": 1 << 21, "full": 1 << 22}
TABLE = {"smoke": 1 << 12, "quick": 1_000_000, "full": 1_000_000}
GROUPS = {"smoke": 3, "quick": 300, "full": 500}
BIG = {"smoke": 50, "quick": 20_000, "full": 100_000}  # groups of ours alone, once
PER_GROUP = 200


def table_of(groups: int) -> LookupTable:
    """Shares that no fit made, of as many groups: what is served does not depend on it."""
    alpha = np.random.default_rng(0).random((groups, 1), np.float32)
    return LookupTable(alpha, (3 * DAY_MS,), (False,), (False,))


def predict(run: harness.Run) -> None:
    """One window for many requests."""
    rows, groups = ROWS[run.effort.name], TABLE[run.effort.name]
    rng = np.random.default_rng(1)
    table = table_of(groups)
    column = np.ascontiguousarray(table.alpha[:, 0])
    place = rng.integers(0, groups, rows)
    short = rng.random(rows, np.float32) / 2
    long = short + rng.random(rows, np.float32) / 2
    out, other = np.empty(rows, np.float32), np.empty(rows, np.float32)
    names = np.unique(rng.integers(0, 1 << 62, groups))  # anything of 64 bits
    pi, named = keyed(np.arange(groups)), keyed(names)
    keys = names[place % len(names)]
    found = table.predict(short, long, place, out=out)[0]
    exact = short.astype(np.float64) + column[place].astype(np.float64) * (long.astype(np.float64) - short)
    np.testing.assert_allclose(found, exact, atol=1e-6)
    ours = [
        Entry("compiled table", lambda i: table.predict(short, long, place, out=out), io="float32", items=rows,
              facts={"route": "table"}),
        Entry("predict, integer keys", lambda i: pi.predict(short, long, place, window="3d"), io="float32", items=rows,
              facts={"route": "keys"}),
        Entry("predict, 64-bit keys", lambda i: named.predict(short, long, keys, window="3d"), io="float32", items=rows,
              facts={"route": "hashed keys"}),
    ]  # fmt: skip
    peers = [Entry("numpy gather", lambda i: np.take(column, place, out=other, mode="clip"), io="float32", items=rows)]
    run.contest("windows_speed predict", {"rows": rows, "groups": groups}, ours, peers)


def keyed(group: np.ndarray) -> PersonalizedInterpolator:
    """A fit of these groups with a conversion each."""
    data = {
        "group": group,
        "anchor": np.zeros(len(group)),
        "converted": (1.5 + 5 * np.random.default_rng(2).random(len(group))) * DAY_MS,
    }
    return PersonalizedInterpolator(("1d", "7d"), ["group"], family="empirical", half_life=None).fit(data, 30 * DAY_MS)


def conversions(groups: int, each: int = PER_GROUP) -> dict[str, np.ndarray]:
    """Weibull delays of groups of different speed, anchors over 30 days."""
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(groups), each)
    scale = np.exp(rng.normal(1.0, 0.7, groups))
    anchor = rng.integers(0, 30 * DAY_MS, len(group))
    delay = stats.weibull_min(0.7).rvs(len(group), random_state=rng) * scale[group] * DAY_MS
    end = anchor + np.floor(delay)
    return {"group": group, "anchor": anchor, "converted": np.where(end <= 30 * DAY_MS, end, np.nan)}


def lifelines_fits(data: dict[str, np.ndarray], kind: str) -> Callable[[int], Any]:
    """A fitter for each group."""
    import lifelines

    came = ~np.isnan(data["converted"])
    waited = (np.where(came, data["converted"], 30 * DAY_MS) - data["anchor"]) / DAY_MS
    event = came & (waited <= 7)
    waited = np.clip(waited, 1e-6, 7.0)
    ends = np.flatnonzero(np.diff(data["group"])) + 1
    parts = list(zip(np.split(waited, ends), np.split(event, ends), strict=True))
    fitter = lifelines.KaplanMeierFitter if kind == "empirical" else lifelines.WeibullFitter

    def call(_: int) -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [fitter().fit(durations, events) for durations, events in parts]

    return call


def fit(run: harness.Run) -> None:
    """Laws of many groups at once."""
    groups = GROUPS[run.effort.name]
    data = conversions(groups)

    def ours(family: str) -> Callable[[int], Any]:
        return lambda i: PersonalizedInterpolator(("1d", "7d"), ["group"], family=family, half_life=None).fit(
            data, 30 * DAY_MS
        )

    for family, peer in (("empirical", "KaplanMeierFitter"), ("weibull", "WeibullFitter")):
        name = f"lifelines {peer}"
        try:
            peers, absent = [Entry(name, lifelines_fits(data, family), items=groups)], {}
        except ImportError as error:
            peers, absent = [], {name: str(error)}
        entries = [Entry(f"fit {kind}", ours(kind), facts={"family": kind}, items=groups) for kind in (family, "auto")]
        run.contest("windows_speed fit", {"groups": groups, "rows": len(data["group"]), "like": family}, entries,
                    peers, absent)  # fmt: skip
    big = BIG[run.effort.name]
    many = conversions(big, PER_GROUP // 4)
    start = time.perf_counter()
    PersonalizedInterpolator(("1d", "7d"), ["group"], half_life=None).fit(many, 30 * DAY_MS)
    seconds = time.perf_counter() - start
    run.measured("windows_fit_auto_groups_per_s", Interval(big / seconds, big / seconds, big / seconds), None,
                 groups=big, rows=len(many["group"]), seconds=round(seconds, 2))  # fmt: skip


def body(run: harness.Run) -> None:
    """Both, and their bars."""
    predict(run)
    fit(run)
    run.finding("windows_predict_vs_gather", where(route="table"), where(), ["numpy gather"], bar=0.3)
    run.finding("windows_predict_with_keys_vs_gather", where(route="keys"), where(), ["numpy gather"])
    run.finding("windows_predict_with_64_bit_keys_vs_gather", where(route="hashed keys"), where(), ["numpy gather"])
    for family, peer in (("empirical", "KaplanMeierFitter"), ("weibull", "WeibullFitter")):
        among = lambda shape, family=family: shape.get("like") == family  # noqa: E731
        name = f"windows_fit_{family}_vs_lifelines"
        run.finding(name, where(family=family), where(), [f"lifelines {peer}"], bar=5.0, among=among)
        run.finding(f"windows_fit_auto_vs_{peer.lower()}", where(family="auto"), where(), among=among)


if __name__ == "__main__":
    harness.main("windows_speed", body)
