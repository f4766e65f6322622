"""Figures in docs/ are drawn from the results that are there."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("matplotlib")


def test_every_figure_is_of_the_committed_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "python"))
    figures = importlib.import_module("figures")
    drawn = sorted(path.stem for path in (ROOT / "docs" / "figures").glob("*.svg"))
    assert drawn == sorted(figures.FIGURES)
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    for name in drawn:
        first = (ROOT / "benchmarks" / "results" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[0]
        said = f"results of commit {json.loads(first)['commit']}"
        assert said in (ROOT / "docs" / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert said in figures.draw(name).read_text(encoding="utf-8")
