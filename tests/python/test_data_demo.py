"""The generated world: deterministic, honest about its true probability, learnable, fast."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("sklearn")

from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression

from octavo import evaluation
from octavo.data import EventLog, write_demo_log
from octavo.data.history import before


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    return write_demo_log(tmp_path_factory.mktemp("demo") / "log", 40_000, seed=3)


def test_same_seed_same_log(log: EventLog, tmp_path: Path) -> None:
    assert write_demo_log(tmp_path / "same", 40_000, seed=3).fingerprint == log.fingerprint
    assert write_demo_log(tmp_path / "other", 40_000, seed=4).fingerprint != log.fingerprint


def test_labels_are_drawn_from_the_true_probability(log: EventLog) -> None:
    p = np.array(log.columns(["_p_true"]).column("_p_true"))
    y = log.read().labels["click"].numpy()
    deviation = (y - p).sum() / np.sqrt((p * (1 - p)).sum())
    assert abs(deviation) < 4
    for found in evaluation.calibration_bins(p, y, bins=10):
        spread = np.sqrt(found.predicted * (1 - found.predicted) / found.events)
        assert abs(found.observed - found.predicted) < 4 * spread


def test_shape_of_the_world(log: EventLog) -> None:
    batch = log.read()
    table = log.columns(["user", "item", "time", "user_events", "item_events", "item_age_hours", "rating", "tags"])
    user, item, when = (np.array(table.column(name)) for name in ("user", "item", "time"))
    shares = np.sort(np.unique(user, return_counts=True)[1])[::-1] / len(user)
    assert shares[: len(shares) // 10].sum() > 0.3  # the most active tenth
    half = len(item) // 2
    assert len(set(item[half:].tolist()) - set(item[:half].tolist())) > 20  # items that appear later
    assert np.array(table.column("item_age_hours")).min() >= 0  # no item before its birth
    assert (np.array(table.column("user_events")) == before(user, when, np.zeros(len(user)))[0]).all()
    assert (np.array(table.column("item_events")) == before(item, when, np.zeros(len(user)))[0]).all()
    assert 0.02 < table.column("rating").null_count / len(table) < 0.08
    lengths = table.column("tags").combine_chunks().value_lengths().to_numpy()
    assert lengths.min() == 0
    assert lengths.max() > 1
    assert batch.sparse.bags == len(log.schema.sparse) * len(batch)
    assert float(batch.dense.abs().max()) < 8
    assert 0.08 < float(batch.labels["click"].mean()) < 0.35


def test_ctr_drifts_for_a_segment_and_category(log: EventLog) -> None:
    """The true appeal of (segment, category) pairs differs between the first and the last quarter."""
    table = log.columns(["segment", "category", "_p_true"])
    pair = np.array(table.column("segment")).astype(int) * 24 + np.array(table.column("category"))
    p, quarter = np.array(table.column("_p_true")), len(table) // 4
    moves = []
    for kind in np.unique(pair):
        early, late = p[:quarter][pair[:quarter] == kind], p[-quarter:][pair[-quarter:] == kind]
        if min(len(early), len(late)) >= 30:
            moves.append(abs(late.mean() - early.mean()))
    assert len(moves) > 50
    assert np.median(moves) > 0.03


def test_signal_is_learnable_and_the_floor_is_far_below_the_base_rate(log: EventLog) -> None:
    batch, cut = log.read(), 32_000
    y = batch.labels["click"].numpy()
    p = np.array(log.columns(["_p_true"]).column("_p_true"))
    events, offsets = len(batch), batch.sparse.offsets.numpy()
    parts = [csr_matrix(batch.dense.numpy())]
    for number, feature in enumerate(log.schema.sparse):
        bounds = offsets[number * events : (number + 1) * events + 1]
        ids = batch.sparse.values.numpy()[bounds[0] : bounds[-1]]
        parts.append(csr_matrix((np.ones(len(ids)), ids, bounds - bounds[0]), (events, feature.rows)))
    x = hstack(parts).tocsr()
    model = LogisticRegression(C=0.2, max_iter=300).fit(x[:cut], y[:cut])
    learned = evaluation.ne(model.decision_function(x[cut:]), y[cut:], logits=True)
    floor = evaluation.ne(p[cut:], y[cut:])
    assert floor < 0.78
    assert floor + 0.03 < learned < 0.93


def test_small_logs_and_refusals(tmp_path: Path) -> None:
    for events in (1, 2, 50):
        assert len(write_demo_log(tmp_path / str(events), events)) == events
    with pytest.raises(ValueError, match="events: expected at least 1, found 0"):
        write_demo_log(tmp_path / "none", 0)


def test_two_hundred_thousand_events_take_seconds(tmp_path: Path) -> None:
    begin = time.process_time()
    assert len(write_demo_log(tmp_path / "log", 200_000)) == 200_000
    assert time.process_time() - begin < 15
