"""octavo probe: what it trains, writes and shows, with a Probe of the test's own; and its page."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from loka_reports import finding, report
from training_support import demo_log, finished, small_config

from octavo import loka
from octavo.cli.main import app
from octavo.config import save_config
from octavo.data import EventLog
from octavo.loka import Report, SiteInfo
from octavo.loka.layers import fingerprint
from octavo.ops.dispatch import Plan, Requirement, sites
from octavo.report import render_probe
from octavo.training import Trainer, TrainingError, probe_run

CLASSES = ("bf16", "e4m3_row", "int8_dynamic")


class FakeProbe:
    """Knows the layers by running a batch; reports figures of its own."""

    made: list[FakeProbe] = []

    def __init__(self, model: torch.nn.Module, every: int = 100) -> None:
        self.model, self.every, self.steps, self.is_closed = model, every, 0, False
        self.rows: dict[str, torch.Tensor] = {}
        self.hook = model.register_forward_pre_hook(self._keep)
        FakeProbe.made.append(self)

    def _keep(self, module: torch.nn.Module, args: tuple[object, ...]) -> None:
        self.batch = args[0]

    def step(self) -> None:
        self.steps += 1

    def close(self) -> None:
        self.is_closed = True
        self.hook.remove()

    def evaluate(self, draws: int, requirement: Requirement) -> Report:
        if self.steps < self.every:
            raise RuntimeError(f"probe: none of {self.steps} steps was observed (every={self.every})")
        self.hook.remove()
        met = sites(self.model, self.batch)
        infos = tuple(SiteInfo(s.path, *s.weight.shape, len(s.x), s.epilogue, "float32") for s in met)
        found = [
            finding(s.path, direction, numerics, 10.0 + 25 * (s.path == met[-1].path), rel_l1=error, post_norm=error,
                    signal_rel=error)
            for s in met for direction in loka.DIRECTIONS
            for numerics, error in zip(CLASSES, (0.002, 0.03, 0.4), strict=True)
        ]  # fmt: skip
        made = report(*found, sites=infos, settings={"draws": draws, "unreached": ["a & b"]})
        return dataclasses.replace(made, model=fingerprint(self.model), steps=self.steps)


@pytest.fixture(autouse=True)
def _fake(monkeypatch) -> None:
    FakeProbe.made.clear()
    monkeypatch.setattr(loka, "Probe", FakeProbe, raising=False)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> EventLog:
    return demo_log(tmp_path_factory.mktemp("probing") / "log-3000-0", 3000)


def _config(**overrides):
    return small_config(data__events=3000, **overrides)


def _texts(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def test_a_new_model_is_probed_planned_and_reported(tmp_path, monkeypatch) -> None:
    from octavo.training import probing

    config = _config()
    said = []
    found = probe_run(config, tmp_path / "run", Requirement(max_post_norm=0.05), steps=12, every=3, draws=7,
                      listen=lambda *what: said.append(what[0]))  # fmt: skip
    (probe,) = FakeProbe.made
    assert (probe.steps, probe.every, probe.is_closed) == (12, 3, True)
    out = tmp_path / "run" / "probe"
    assert sorted(path.name for path in out.iterdir()) == ["plan.json", "report.html", "report.json"]
    assert not (tmp_path / "run" / "history.jsonl").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert Report.load(out / "report.json") == found.report
    plan = Plan.load(out / "plan.json")
    assert plan == found.plan == loka.solve(found.report, Requirement(max_post_norm=0.05), training=True)
    chosen = {(e.site, e.direction): e.numerics for e in plan}
    last = found.report.sites[-1].path
    assert chosen[last, "forward"] == "fp32"
    assert chosen["top.0", "forward"] == "bf16"  # of equally fast ones that of higher precision
    # Predictions are held against FP64 on held-out batches.
    by_class = {name: [r.errors["rel_l1"] for r in found.measured if r.numerics == name] for name in CLASSES}
    assert len(by_class["bf16"]) == len(found.report.sites) == len(found.inputs)
    for name, low, high in (("bf16", 1e-4, 0.01), ("e4m3_row", 0.005, 0.1), ("int8_dynamic", 0.001, 0.05)):
        assert all(low < median < high and least <= median <= most for median, least, most in by_class[name]), name
    for shape in found.inputs:
        assert sum(shape.shares) == pytest.approx(1)
        assert shape.mean**2 + shape.std**2 == pytest.approx(1, rel=1e-4)
    assert {row.numerics for row in found.numerics} == {"FP32", "planned"}
    assert {row.contestant for row in found.speed} >= {"torch FP32", "planned"}
    assert said[0] == "reading the log"
    assert said[-1] == "writing the report"
    assert probing.REACH * 2 / probing.BINS == 0.25


def test_a_run_is_gone_on_from_and_left_as_it_is(log, tmp_path) -> None:
    run_dir = tmp_path / "run"
    trainer = Trainer(_config(), log, run_dir)
    (run_dir / log.path.name).parent.mkdir(parents=True, exist_ok=True)
    finished(trainer)
    save_config(_config(), run_dir / "config.yaml")
    (run_dir / log.path.name).symlink_to(log.path)
    before = {p: p.read_bytes() for p in sorted(run_dir.rglob("*")) if p.is_file()}
    found = probe_run(_config(), run_dir, Requirement(max_rel_l1=0.05), steps=5, every=1, training=False,
                      out=tmp_path / "elsewhere")  # fmt: skip
    assert {p: p.read_bytes() for p in sorted(run_dir.rglob("*")) if p.is_file()} == before
    assert FakeProbe.made[0].steps == 5
    assert f"from the checkpoint of step {trainer.step}" in found.facts["trained"]
    assert {e.direction for e in found.plan} == {"forward"}
    with pytest.raises(TrainingError, match=r"none of 5 steps was observed \(every=9\)"):
        probe_run(_config(), run_dir, Requirement(), steps=5, every=9, out=tmp_path / "none")
    assert FakeProbe.made[1].is_closed
    assert not (tmp_path / "none").exists()


def test_without_held_out_events_predictions_are_held_against_training(tmp_path) -> None:
    found = probe_run(_config(training__holdout=0), tmp_path, Requirement(), steps=3, every=1)
    assert found.numerics == found.speed == []
    assert found.measured
    assert found.facts["held out"].startswith("none (training.holdout=0)")
    assert "What the plan costs and brings" not in (tmp_path / "probe" / "report.html").read_text()


def test_the_command_writes_and_prints(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    save_config(_config(), tmp_path / "run.yaml")
    app(["probe", "run.yaml", "training.batch_size=32", "--run-dir", "r", "--steps", "4", "--every", "2",
         "--max-signal-rel", "0.5", "--inference"], standalone_mode=False)  # fmt: skip
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"report: {tmp_path / 'r' / 'probe' / 'report.html'}"
    assert "Classes by site and direction" in out
    assert "top.0" in out
    plan = json.loads((tmp_path / "r" / "probe" / "plan.json").read_text())
    assert plan["entries"][0]["requirement"] == {"max_signal_rel": 0.5}
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["training"]["batch_size"] == 64


def test_the_page_holds_everything_by_itself(tmp_path) -> None:
    found = probe_run(_config(), tmp_path, Requirement(max_post_norm=0.05), steps=4, every=1)
    page = (tmp_path / "probe" / "report.html").read_text()
    assert page == render_probe(found)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/svg+xml;base64,") == 4
    text = _texts(page)
    for words in ("a & b", "post_norm at most 0.05", "Was the prediction right?", "What the layers see", "3.00x;",
                  f"{sum(e.numerics != 'fp32' for e in found.plan)} of {len(found.plan.entries)}"):  # fmt: skip
        assert words in text, words
    for entry in found.plan:
        assert entry.reason in text
    assert 'class="chip chosen"' in page
    assert 'class="chip slow"' in page
    assert 'class="chip unsafe"' in page
    for requirement in (Requirement(), Requirement(min_sqnr_db=20)):
        plan = loka.solve(found.report, requirement)
        other = dataclasses.replace(found, requirement=requirement, plan=plan, measured=[], inputs=[], speed=[])
        assert Path(tmp_path).name not in render_probe(other)
