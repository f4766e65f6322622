"""octavo evaluate and octavo train --resume as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_cli_commands import octavo
from training_support import small_config

from octavo.config import ConfigError, RunConfig, build_config, save_config
from octavo.data import AdsWorld, EventLog, Label
from octavo.evaluation import auc, gauc, ne
from octavo.training import Trainer, evaluate_run, open_log
from octavo.training.evaluate import load_trained
from octavo.training.slices import predict

WORLD = {
    "name": "world",
    "data": {"source": "world", "preset": "reference", "events": 3000, "seed": 1},
    "model": {"embedding_dim": 8, "bottom": [8], "top": [16]},
    "training": {"batch_size": 128, "window": 1000, "checkpoint_every": 9},
}


def trained(run_dir: Path, config: RunConfig) -> Path:
    trainer = Trainer(config, open_log(config.data, run_dir), run_dir)
    for _ in trainer.run():
        pass
    save_config(config, run_dir / "config.yaml")
    return run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("evaluate") / "run", build_config(WORLD))


def test_every_head_and_domain_with_intervals(run_dir) -> None:
    found = evaluate_run(run_dir, resamples=100)
    assert (found.start, found.stop, found.step, found.clusters) == (2400, 3000, 19, "users")
    assert [(row.head, row.domain) for row in found.rows] == [
        (head, domain) for head in ("click", "conversion") for domain in (None, 0, 1, 2)
    ]
    [log] = [EventLog(path) for path in run_dir.glob("world-*")]
    model, _ = load_trained(run_dir, build_config(WORLD), log)
    seen = predict(model, log, 2400, 3000)
    z, y = seen.logits["click"], seen.labels["click"]
    row = found.rows[0]
    assert row.events == 600
    assert row.metrics["ne"].estimate == pytest.approx(ne(z, y, logits=True), rel=1e-12)
    assert row.metrics["auc"].estimate == pytest.approx(auc(z, y))
    assert row.metrics["gauc"].estimate == pytest.approx(gauc(z, y, seen.user))
    assert row.metrics["auc"].low < row.metrics["auc"].estimate < row.metrics["auc"].high
    assert sum(row.events for row in found.rows[1:4]) == 600


def test_another_run_and_a_part(run_dir, tmp_path) -> None:
    other = trained(tmp_path / "other", build_config(WORLD, ["model.seed=3", "training.precision=bf16"]))
    found = evaluate_run(run_dir, part="2450:2900", against=other, resamples=100)
    assert (found.start, found.stop) == (2450, 2900)
    row = found.rows[0]
    assert row.differences is not None
    backwards = evaluate_run(other, part="2450:2900", against=run_dir, resamples=100).rows[0]
    assert row.differences["ne"].estimate == pytest.approx(-backwards.differences["ne"].estimate, abs=1e-3)
    same = evaluate_run(run_dir, against=run_dir, resamples=100).rows[0]
    assert same.differences is not None
    assert (same.differences["auc"].low, same.differences["auc"].high) == (0, 0)


def test_a_comparison_is_on_events_that_neither_run_has_seen(run_dir, tmp_path) -> None:
    other = trained(tmp_path / "other", build_config(WORLD, ["training.holdout=0.1"]))
    words = r"trained on the first 2700 events and the slice begins at 2400; neither has seen --slice 2700:3000"
    with pytest.raises(ConfigError, match=f"against: {other} was {words}"):
        evaluate_run(run_dir, against=other, resamples=100)
    with pytest.raises(ConfigError, match=f"against: {other} was {words.replace('2400', '2500')}"):
        evaluate_run(other, part="2500:2900", against=run_dir, resamples=100)
    found = evaluate_run(run_dir, part="2700:3000", against=other, resamples=100)
    assert found.rows[0].differences is not None
    assert found.rows[0].differences["ne"].estimate != 0
    AdsWorld("reference", 5).write(tmp_path / "log", events=300)
    assert evaluate_run(run_dir, log=tmp_path / "log", against=other, resamples=100).start == 0  # neither's log


def test_another_log_has_the_labels_of_the_run(tmp_path) -> None:
    labels = "[{task: click}]"
    run = trained(tmp_path / "run", build_config(WORLD, ["data.events=600", f"data.labels={labels}"]))
    log = AdsWorld("reference", 5).write(tmp_path / "log", events=300)
    found = evaluate_run(run, log=log.path, resamples=100)
    model, _ = load_trained(run, build_config(WORLD), log.with_labels(Label("click")))
    seen = predict(model, log.with_labels(Label("click")), 0, 300)
    assert {row.head for row in found.rows} == {"click"}
    wanted = ne(seen.logits["click"], seen.labels["click"], logits=True)
    assert found.rows[0].metrics["ne"].estimate == pytest.approx(wanted, rel=1e-12)


def test_the_command(run_dir, tmp_path) -> None:
    done = octavo("evaluate", str(run_dir), "--json", "--resamples", "100", "--checkpoint", "18", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["step"] == 18
    assert found["rows"][0]["metrics"]["ne"]["low"] < found["rows"][0]["metrics"]["ne"]["high"]
    AdsWorld("reference", 5).write(tmp_path / "log", events=500)
    table = octavo("evaluate", str(run_dir), "--log", "log", "--resamples", "100", cwd=tmp_path)
    assert (table.returncode, table.stderr) == (0, "")
    assert "events 0 to 500 of log" in table.stdout.replace("\n", " ")
    assert "95% intervals over users" in table.stdout
    uri = (tmp_path / "log").as_uri()
    read = octavo("evaluate", str(run_dir), "--log", uri, "--json", "--resamples", "100", cwd=tmp_path)
    assert (read.returncode, read.stderr) == (0, "")
    assert json.loads(read.stdout)["log"] == uri


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "nowhere/config.yaml: not found; is nowhere a directory that octavo train left?"),
        (("RUN", "--checkpoint", "3"), "has no checkpoint of step 3; there are 18, 19"),
        (("RUN", "--slice", "5:4"), "slice: expected heldout, all or BEGIN:END within 0:3000, found '5:4'"),
        (("RUN", "--slice", "some"), "slice: expected heldout, all or BEGIN:END"),
        (("RUN", "--log", "delay"), "was trained on another schema than that of delay"),
    ],
)
def test_mistakes_are_one_line(run_dir, tmp_path, arguments, words) -> None:
    AdsWorld("exfm", 1).write(tmp_path / "delay", events=50)
    done = octavo("evaluate", *(str(run_dir) if a == "RUN" else a for a in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_resume_is_a_demand(tmp_path) -> None:
    save_config(small_config(data__events=1500), tmp_path / "run.yaml")
    refused = octavo("train", "run.yaml", "--run-dir", "out", "--resume", cwd=tmp_path)
    assert refused.returncode == 2
    assert "out/checkpoints: holds no checkpoint to resume from" in refused.stderr
    both = octavo("train", "run.yaml", "--run-dir", "out", "--resume", "--fresh", cwd=tmp_path)
    assert both.returncode == 2
    assert "give one of them" in both.stderr
    assert octavo("train", "run.yaml", "--run-dir", "out", cwd=tmp_path).returncode == 0
    again = octavo("train", "run.yaml", "--run-dir", "out", "--resume", cwd=tmp_path)
    assert again.returncode == 0
    for text in ("wall time: ", "peak memory: ", "throughput: "):
        assert text in again.stdout
