"""Progressive validation: exact windows, exact sums, a state that goes on bit for bit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.evaluation import Progressive, auc, quality

TASKS = ("click", "buy@7d")


def stream(events: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = {"time": torch.arange(events) // 3 * 1000, "weight": torch.rand(events, generator=generator) + 0.1}
    for number, task in enumerate(TASKS):
        logits = torch.randn(events, generator=generator) * 2 - 1 + number
        labels = (torch.rand(events, generator=generator) < torch.sigmoid(logits)).float()
        labels[torch.rand(events, generator=generator) < 0.3 * number] = math.nan
        rows[f"logits/{task}"], rows[f"labels/{task}"] = logits, labels
    return rows


def feed(progress: Progressive, rows: dict[str, torch.Tensor], begin: int, end: int, weighted: bool = True) -> list:
    part = slice(begin, end)
    logits, labels = ({task: rows[f"{name}/{task}"][part] for task in TASKS} for name in ("logits", "labels"))
    return progress.update(logits, labels, rows["time"][part], rows["weight"][part] if weighted else None)


def test_windows_are_exact() -> None:
    rows = stream(250)
    progress = Progressive(TASKS, window=100)
    points = [point for begin in range(0, 250, 30) for point in feed(progress, rows, begin, min(begin + 30, 250))]
    assert [(point.task, point.position) for point in points] == [(t, p) for p in (100, 200) for t in TASKS]
    points += progress.flush()
    assert progress.points == points
    assert progress.flush() == []
    for point, (begin, end) in zip(points[::2], [(0, 100), (100, 200), (200, 250)], strict=True):
        part = slice(begin, end)
        wanted = quality(rows["logits/click"][part], rows["labels/click"][part], rows["weight"][part], logits=True)
        assert point.quality == wanted
        assert point.time_ms == rows["time"][end - 1]
        assert point.position == end
    assert progress.position == 250


def test_cumulative_is_everything_seen_open_window_included() -> None:
    rows = stream(3050)
    for weighted in (True, False):
        progress = Progressive(TASKS, window=1000)
        feed(progress, rows, 0, 3050, weighted)
        for task in TASKS:
            weight = rows["weight"] if weighted else None
            wanted = quality(rows[f"logits/{task}"], rows[f"labels/{task}"], weight, logits=True)
            found = progress.cumulative()[task]
            assert found.events == wanted.events
            assert found.ne == pytest.approx(wanted.ne, rel=1e-12)
            assert found.calibration == pytest.approx(wanted.calibration, rel=1e-12)
            assert found.auc == pytest.approx(wanted.auc, abs=2e-4)
        assert len(progress.points) == 6  # asking closes nothing


@given(st.lists(st.tuples(st.floats(-20, 20, width=32), st.integers(0, 1)), min_size=2, max_size=60))
def test_cumulative_auc_is_off_by_half_the_pairs_that_share_a_bucket_at_most(events: list[tuple[float, int]]) -> None:
    x, y = torch.tensor([e[0] for e in events]), torch.tensor([float(e[1]) for e in events])
    progress = Progressive(["y"], window=7)
    progress.update({"y": x}, {"y": y}, torch.arange(len(x)))
    found, wanted = progress.cumulative()["y"].auc, auc(x, y)
    if found is None:
        assert math.isnan(wanted)
        return
    bucket = (x + 0.0).view(torch.int32) >> 16
    positive, negative = y == 1, y == 0
    shared = (bucket[positive][:, None] == bucket[negative][None, :]) & (x[positive][:, None] != x[negative][None, :])
    assert abs(found - wanted) <= 0.5 * shared.float().mean().item() + 1e-12


def test_cumulative_auc_orders_negative_zero_and_positive_logits() -> None:
    x = torch.tensor([-math.inf, -30.0, -1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0, 30.0, math.inf])
    for cut in range(1, 10):
        progress = Progressive(["y"], window=100)
        y = (torch.arange(10) >= cut).float()
        progress.update({"y": x}, {"y": y}, torch.arange(10))
        assert progress.cumulative()["y"].auc == pytest.approx(auc(x, y), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_killed_anywhere_and_cut_anyhow_ends_bit_for_bit_the_same(data: st.DataObject) -> None:
    rows = stream(500)
    whole = Progressive(TASKS, window=90)
    feed(whole, rows, 0, 500)
    position, resumed = 0, Progressive(TASKS, window=90)
    while position < 500:
        size = data.draw(st.integers(1, 250))
        feed(resumed, rows, position, min(500, position + size))
        position = min(500, position + size)
        if data.draw(st.booleans()):
            state = resumed.state_dict()
            resumed = Progressive(TASKS, window=90)
            resumed.load_state_dict(state)
    assert same(resumed.state_dict(), whole.state_dict())
    assert resumed.points == whole.points
    assert resumed.cumulative() == whole.cumulative()
    assert resumed.flush() == whole.flush()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


def test_state_survives_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    progress = Progressive(TASKS, window=90)
    feed(progress, stream(500), 0, 500)
    safetensors.save_file(progress.state_dict(), tmp_path / "state.safetensors")
    again = Progressive(TASKS, window=90)
    again.load_state_dict(safetensors.load_file(tmp_path / "state.safetensors"))
    assert same(again.state_dict(), progress.state_dict())
    assert again.points == progress.points


def test_state_is_a_copy() -> None:
    rows = stream(200)
    progress = Progressive(TASKS, window=50)
    feed(progress, rows, 0, 120)
    state = progress.state_dict()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    feed(progress, rows, 120, 200)
    assert same(state, kept)
    other = Progressive(TASKS, window=50)
    other.load_state_dict(state)
    feed(other, rows, 120, 200)
    assert same(state, kept)
    assert same(other.state_dict(), progress.state_dict())


def test_window_without_known_labels_has_no_metrics() -> None:
    progress = Progressive(["y"], window=2)
    unknown = torch.full((2,), math.nan)
    [point] = progress.update({"y": torch.zeros(2)}, {"y": unknown}, torch.tensor([5, 6]))
    assert (point.position, point.time_ms) == (2, 6)
    assert (point.quality.events, point.quality.ne, point.quality.auc, point.quality.calibration) == (
        0,
        None,
        None,
        None,
    )
    again = Progressive(["y"], window=2)
    again.load_state_dict(progress.state_dict())
    assert again.points == progress.points
    assert again.cumulative()["y"].events == 0


def test_no_events() -> None:
    progress = Progressive(["y"], window=2)
    empty = torch.zeros(0)
    assert progress.update({"y": empty}, {"y": empty}, torch.zeros(0, dtype=torch.int64)) == []
    assert progress.points == []
    assert progress.cumulative()["y"].ne is None


def test_refuses() -> None:
    with pytest.raises(ValueError, match="window: expected at least 1 event, found 0"):
        Progressive(TASKS, 0)
    for tasks in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="tasks: expected distinct names"):
            Progressive(tasks, 5)
    progress = Progressive(["y"], 5)
    time, one = torch.arange(2), torch.ones(2)
    with pytest.raises(ValueError, match="task 'y': predictions: nan at known event 1; the model diverged"):
        progress.update({"y": torch.tensor([0.0, math.nan])}, {"y": one}, time)
    with pytest.raises(ValueError, match=r"labels\['y'\]: expected one per time \(3\), found 2"):
        progress.update({"y": one}, {"y": one}, torch.arange(3))
    with pytest.raises(ValueError, match="task 'y': labels: expected 0 or 1, found 0.5"):
        progress.update({"y": one}, {"y": one / 2}, time)
    with pytest.raises(KeyError, match="y"):
        progress.update({"x": one}, {"y": one}, time)
    assert progress.position == 0
    with pytest.raises(ValueError, match="the tasks differ"):
        progress.load_state_dict(Progressive(["x"], 5).state_dict())
    with pytest.raises(ValueError, match="state: was written with window=6, this accumulator has window=5"):
        progress.load_state_dict(Progressive(["y"], 6).state_dict())


def test_numpy_is_as_good_as_torch() -> None:
    progress = Progressive(["y"], window=4)
    [point] = progress.update({"y": np.array([1.0, -1.0, 0.5, 0.0])}, {"y": np.array([1, 0, 0, 1])}, np.arange(4))  # type: ignore[dict-item,arg-type]
    assert point.quality == quality([1.0, -1.0, 0.5, 0.0], [1, 0, 0, 1], logits=True)


def by_domain(events: int, window: dict[str, int]) -> tuple[Progressive, dict[str, torch.Tensor]]:
    rows = stream(events)
    generator = torch.Generator().manual_seed(9)
    rows["user"] = torch.randint(-1, 9, (events,), generator=generator)
    rows["domain"] = torch.randint(-1, 3, (events,), generator=generator)
    return Progressive(TASKS, **window), rows


def feed_all(progress: Progressive, rows: dict[str, torch.Tensor], begin: int, end: int) -> list:
    part = slice(begin, end)
    logits, labels = ({task: rows[f"{name}/{task}"][part] for task in TASKS} for name in ("logits", "labels"))
    columns = (rows[name][part] for name in ("time", "weight", "user", "domain"))
    return progress.update(logits, labels, *columns)


def test_each_domain_has_points_and_totals_of_its_own() -> None:
    progress, rows = by_domain(400, {"window": 200})
    points = [point for begin in range(0, 400, 70) for point in feed_all(progress, rows, begin, begin + 70)]
    assert [p.domain for p in points] == [None, 0, 1, 2] * 4
    for point in points:
        window = torch.arange(400) // 200 == point.position // 200 - 1
        inside = window if point.domain is None else window & (rows["domain"] == point.domain)
        columns = (rows[f"logits/{point.task}"], rows[f"labels/{point.task}"], rows["weight"], rows["user"])
        x, y, w, u = (column[inside] for column in columns)
        assert point.quality == quality(x, y, w, logits=True, group=u)
        assert point.quality.gauc is not None
    for domain, found in progress.cumulative_by_domain()["buy@7d"].items():
        inside = rows["domain"] == domain
        wanted = quality(rows["logits/buy@7d"][inside], rows["labels/buy@7d"][inside], rows["weight"][inside], True)
        assert found.events == wanted.events
        assert found.ne == pytest.approx(wanted.ne, rel=1e-12)


def test_windows_of_event_time_close_with_the_next_span_however_batches_are_cut() -> None:
    progress, rows = by_domain(300, {"window_ms": 20_000})
    rows["time"][150:] += 50_000  # a gap: spans without events make no points
    feed_all(progress, rows, 0, 300)
    spans = rows["time"] // 20_000
    ends = [int((spans == span).nonzero()[-1]) + 1 for span in spans.unique()]
    whole = [p for p in progress.points if p.task == "click" and p.domain is None]
    assert [p.position for p in whole] == ends[:-1]
    assert [p.time_ms for p in whole] == [int(rows["time"][end - 1]) for end in ends[:-1]]
    inside = spans == spans[0]
    first = [rows[name][inside] for name in ("logits/click", "labels/click", "weight")]
    assert whole[0].quality == quality(*first, logits=True, group=rows["user"][inside])
    for size in (1, 7, 130):
        again = by_domain(300, {"window_ms": 20_000})[0]
        for begin in range(0, 300, size):
            feed_all(again, rows, begin, begin + size)
            restored = by_domain(300, {"window_ms": 20_000})[0]
            restored.load_state_dict(again.state_dict())
            again = restored
        assert same(again.state_dict(), progress.state_dict())
    assert progress.flush()[0].position == 300


def test_heads_may_come_at_different_times() -> None:
    rows = stream(300)
    progress, late = Progressive(TASKS, window=100), Progressive(TASKS, window=100)
    feed(progress, rows, 0, 300)
    order = [("click", 0), ("click", 100), ("buy@7d", 0), ("click", 200), ("buy@7d", 100), ("buy@7d", 200)]
    for task, begin in order:
        part = slice(begin, begin + 100)
        columns = ({task: rows[f"{name}/{task}"][part]} for name in ("logits", "labels"))
        found = late.update(*columns, rows["time"][part], rows["weight"][part], tasks=[task])
        assert [(p.task, p.position) for p in found] == [(task, begin + 100)]
    assert late.points == progress.points
    assert same(late.state_dict(), progress.state_dict())
