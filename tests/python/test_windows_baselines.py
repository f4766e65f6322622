"""The baselines' one interface: what each learns from, and that it learns it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from octavo.config import build_config
from octavo.data import Dense, EventLog, Label, Schema, Sparse
from octavo.training.delayed import DFM, FNW, BucketHazard
from octavo.windows import PersonalizedInterpolator, WindowsError
from octavo.windows.baselines import Delayed, Events, FixedWindows, Interpolated, Recipe, WindowModel

DAY = 86_400_000
SECONDS = 86_400.0
MEANS = np.array([1.0, 8.0])  # days, of two advertisers
COUNT = 12_000


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Events:
    """P(converts) = 0.1 or 0.5 by ``strong``, exponential delays by advertiser, 40 days."""
    rng = np.random.default_rng(0)
    time = np.sort(rng.integers(0, 40 * DAY, COUNT))
    strong, advertiser = rng.integers(0, 2, COUNT), rng.integers(0, 2, COUNT)
    came = rng.random(COUNT) < np.where(strong == 1, 0.5, 0.1)
    delay = np.where(came, rng.exponential(MEANS[advertiser]) * SECONDS, np.nan)
    schema = Schema(
        dense=(Dense("strong"),), sparse=(Sparse("advertiser", 2),), labels=(Label("sale", delay="sale_delay"),)
    )
    columns = {"time": time, "id": np.arange(COUNT), "strong": strong.astype(float), "advertiser": advertiser}
    table = pa.table({**columns, "sale": came.astype(np.int8), "sale_delay": pa.array(delay, mask=~came)})
    path: Path = tmp_path_factory.mktemp("baselines") / "log"
    return Events(EventLog.write(path, schema, [table]), "sale")


def recipe(**changes: object) -> Recipe:
    model = build_config({"model": {"kind": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [16]}}).model
    return Recipe(model, **{"epochs": 3, "batch_size": 128, "lr": 0.005, **changes})  # type: ignore[arg-type]


def truth(events: Events, rows: np.ndarray, days: float) -> np.ndarray:
    strong = events.table["strong"].to_numpy()[rows]
    advertiser = events.table["advertiser"].to_numpy()[rows]
    return np.where(strong == 1, 0.5, 0.1) * -np.expm1(-days / MEANS[advertiser])


def test_labels_are_what_was_known(events: Events) -> None:
    rows, until = np.arange(COUNT), 20 * DAY
    early = np.flatnonzero(events.time <= until)
    labels = events.labels(early, 7 * DAY, until)
    final = events.labels(rows, 7 * DAY)
    assert np.array_equal(final == 1, events.delay <= 7 * SECONDS)
    open_ = events.time[early] + 7 * DAY > until
    assert np.array_equal(np.isnan(labels), open_)  # positives that came already too
    assert (final[early][~open_] == labels[~open_]).all()
    closed = Events(events._log, "sale", events.time + 2 * DAY)
    known = closed.labels(early, 7 * DAY, until)
    assert np.isnan(known).sum() < np.isnan(labels).sum()
    assert not np.isnan(known[events.time[early] + 2 * DAY <= until]).any()
    found = events.conversions(early, until, ["advertiser"])
    assert np.nanmax(found["converted"]) <= until


def test_batches_are_those_of_the_log(events: Events) -> None:
    rows = np.array([5, 3, 3, 11_999])
    found = events.batch(rows)
    expected = events._log.encode(events.table.take(pa.array(rows)))
    for name in ("dense", "time", "id", "user", "weight"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert torch.equal(found.sparse.values, expected.sparse.values)
    assert torch.equal(found.sparse.offsets, expected.sparse.offsets)


@pytest.mark.parametrize("kind", ["gold", "heads", "personal", "dfm", "hazard", "fnw"])
def test_each_learns_the_worlds_probabilities(events: Events, kind: str) -> None:
    """3-day probabilities of later events, by group, from what was known on day 30."""
    pi = PersonalizedInterpolator(("1d", "7d"), ["advertiser"], half_life=None)
    days = (0, 0.25, 0.5, 1, 2, 3, 5, 7, 14, 30)
    made: dict[str, WindowModel] = {
        "gold": FixedWindows(["3d"], recipe()),
        "heads": FixedWindows(["1d", "3d", "7d"], recipe()),
        "personal": Interpolated(FixedWindows(["1d", "7d"], recipe()), pi),
        "dfm": Delayed(DFM(), recipe()),
        "hazard": Delayed(BucketHazard(tuple(SECONDS * d for d in days)), recipe()),
        "fnw": Delayed(FNW(3 * SECONDS), recipe()),
    }
    until = 30 * DAY
    model = made[kind].fit(events, np.flatnonzero(events.time <= until), until)
    later = np.flatnonzero(events.time > until)
    p = model.predict(events, later, "3d")
    exact = truth(events, later, 3.0)
    for advertiser in (0, 1):
        for strong in (0, 1):
            inside = (events.table["advertiser"].to_numpy()[later] == advertiser) & (
                events.table["strong"].to_numpy()[later] == strong
            )
            assert p[inside].mean() == pytest.approx(exact[inside].mean(), rel=0.3, abs=0.02), (advertiser, strong)
    assert p.mean() == pytest.approx(exact.mean(), rel=0.15)
    if kind in ("gold", "fnw"):
        with pytest.raises(WindowsError, match="window: found"):
            model.predict(events, later, "5d")


def test_nothing_known_is_an_error(events: Events) -> None:
    with pytest.raises(WindowsError, match="no event's outcome is known"):
        FixedWindows(["30d"], recipe()).fit(events, np.flatnonzero(np.isnan(events.delay))[:10], 5 * DAY)
    with pytest.raises(WindowsError, match="task: 'sale' has no delay column"):
        Events(events._log.with_labels(Label("sale")), "sale")
