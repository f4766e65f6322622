"""history.jsonl: one line per window, with the metrics of the progressive points, once each across kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_support import demo_log, small_config

from octavo.data import AdsWorld, EventLog
from octavo.training import CheckpointError, Trainer


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> EventLog:
    return demo_log(tmp_path_factory.mktemp("history") / "log")


def finished(trainer: Trainer) -> Trainer:
    trainer.resume()
    for _ in trainer.run():
        pass
    return trainer


def lines(run_dir: Path) -> list[dict]:
    found = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    for line in found:
        line.pop("rows_per_s", None)  # of the machine, not of the run
    return found


def test_a_line_per_window(log, tmp_path) -> None:
    trainer = finished(Trainer(small_config(), log, tmp_path))
    found = lines(tmp_path)
    whole = [p for p in trainer.progressive.points if p.domain is None]
    assert [line["position"] for line in found] == [1000, 2000, 3000, 4000, 4800]
    for line, point in zip(found, whole, strict=True):
        assert line["time_ms"] == point.time_ms
        head = line["heads"]["click"]
        assert (head["ne"], head["auc"], head["events"]) == (point.quality.ne, point.quality.auc, point.quality.events)
        assert 0.3 < head["gauc"] < 1
        assert 0.4 < line["loss"] < 0.8
        assert line["lr"] == 0.001
    assert found[0]["step"] == 15  # of the batch, the 16th, that completed the window


def test_domains_have_values_of_their_own(tmp_path) -> None:
    log = AdsWorld("reference", 1).write(tmp_path / "log", events=4000)
    config = small_config(model__bottom="[8]", training__window=1500)
    trainer = finished(Trainer(config, log, tmp_path / "run"))
    first = lines(tmp_path / "run")[0]["heads"]["click"]
    assert set(first["domains"]) == {"0", "1", "2"}
    assert sum(found["events"] for found in first["domains"].values()) == first["events"] == 1500
    points = [p for p in trainer.progressive.points if p.task == "click" and p.position == 1500]
    assert {str(p.domain): p.quality.ne for p in points[1:]} == {d: v["ne"] for d, v in first["domains"].items()}


def test_windows_of_event_time(tmp_path) -> None:
    log = AdsWorld("delay", 1).write(tmp_path / "log", events=4000)
    config = small_config(training__window_hours=0.05)
    finished(Trainer(config, log, tmp_path / "run"))
    found = lines(tmp_path / "run")
    spans = [line["time_ms"] // 180_000 for line in found]
    assert len(found) > 4
    assert spans == sorted(set(spans))
    assert found[-1]["position"] == 3200


_CHILD = """
import sys
sys.path.insert(0, sys.argv[3])
from training_support import demo_log, small_config
from pathlib import Path
from octavo.training import Trainer
config = small_config(training__window=150, training__checkpoint_every=3)
trainer = Trainer(config, demo_log(Path(sys.argv[1])), sys.argv[2])
trainer.resume()
print("go", flush=True)
for position in trainer.run():
    pass
"""


def test_kills_leave_no_gaps_and_no_duplicates(log, tmp_path) -> None:
    config = small_config(training__window=150, training__checkpoint_every=3)
    finished(Trainer(config, log, tmp_path / "whole"))
    command = [sys.executable, "-c", _CHILD, str(log.path), str(tmp_path / "run"), str(Path(__file__).parent)]
    for delay in (0.1, 0.25, 0.4):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "go\n"
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
            child.wait()
    with (tmp_path / "run" / "history.jsonl").open("a") as file:
        file.write('{"half a li')  # what a kill may leave
    finished(Trainer(config, log, tmp_path / "run"))
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_a_history_that_lost_lines_is_named(log, tmp_path) -> None:
    finished(Trainer(small_config(), log, tmp_path))
    path = tmp_path / "history.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(CheckpointError, match=r"history.jsonl: holds 2 lines, the checkpoint was written after 5"):
        Trainer(small_config(), log, tmp_path).resume()
