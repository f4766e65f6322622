"""The commands and the page: from a file of conversions to predictions and a report."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("typer")

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from scipy import stats
from typer.testing import CliRunner
from windows_support import DAY, drawn

from octavo.cli.main import app
from octavo.data import DataError
from octavo.evaluation import Interval
from octavo.report import Rival, write_windows_report
from octavo.windows import PersonalizedInterpolator, WindowsError
from octavo.windows.reporting import results_of

LAWS = [stats.expon(scale=1.5), stats.expon(scale=5.0), stats.expon(scale=5.0)]


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return str(done.output)


def scored(seed: int = 1, count: int = 20_000) -> pa.Table:
    """Anchors of known probability with the models' own true predictions."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, count)
    strength = rng.uniform(0.05, 0.6, count)
    anchor = rng.integers(0, 40 * DAY, count)
    delay = np.array([1.5, 5.0, 5.0])[group] * rng.exponential(size=count)
    came = (rng.random(count) < strength) & (anchor + delay * DAY <= 40 * DAY)
    p = {f"p{days}": strength * -np.expm1(-days / np.array([1.5, 5.0, 5.0])[group]) for days in (1, 7)}
    end = np.where(came, anchor + np.floor(delay * DAY), 0).astype(np.int64)
    names = np.array(["<fast>", "slow", "slow & new"])[group]
    return pa.table({"advertiser": names, "anchor": anchor, "converted": pa.array(end, mask=~came), **p})


def test_from_a_file_to_predictions_and_a_page(tmp_path: Path) -> None:
    data = drawn(LAWS, [8_000, 8_000, 40], 40, until=40)
    names = np.array(["<fast>", "slow", "slow & new"])[data["advertiser"]]
    converted = pa.array(data["converted"], pa.int64(), from_pandas=True, safe=False)
    table = pa.table({"advertiser": names, "anchor": data["anchor"], "converted": converted})
    half = len(table) // 2
    pq.write_table(table.slice(0, half), tmp_path / "first.parquet")
    pyarrow.csv.write_csv(table.slice(half), tmp_path / "second.csv")
    fit = tmp_path / "fit"
    options = ["--group", "advertiser", "--half-life", "none", "--observed-until", "1970-02-10"]
    said = run("windows", "fit", tmp_path / "first.parquet", fit, *options)
    assert "group" in said
    run("windows", "fit", tmp_path / "second.csv", fit, "--add", "--observed-until", "1970-02-10")
    whole = PersonalizedInterpolator(group=["advertiser"], half_life=None).fit(table, 40 * DAY)
    again = PersonalizedInterpolator.load(fit)
    keys = ["<fast>", "slow", "slow & new"]
    np.testing.assert_allclose(again.alpha(keys, "3d"), whole.alpha(keys, "3d"), atol=1e-6)

    pq.write_table(scored(), tmp_path / "scored.parquet")
    run("windows", "predict", fit, tmp_path / "scored.parquet", tmp_path / "out.parquet", "--p", "p1", "--p", "p7",
        "--window", "3d", "--window", "5d")  # fmt: skip
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column_names[-2:] == ["p_3d", "p_5d"]
    expected = again.predict(
        found["p1"].to_numpy(), found["p7"].to_numpy(), {"advertiser": found["advertiser"]}, window="3d"
    )
    assert np.array_equal(found["p_3d"].to_numpy(), expected)

    run("windows", "report", fit, tmp_path / "page.html", "--scored", tmp_path / "scored.parquet", "--p", "p1",
        "--p", "p7", "--window", "3d", "--observed-until", "1970-02-10", "--title", "A & B")  # fmt: skip
    page = (tmp_path / "page.html").read_text()
    assert "A &amp; B" in page
    assert "&lt;fast&gt;" in page
    assert "<fast>" not in page
    assert page.count("data:image/svg+xml;base64,") == 3
    assert not re.search(r"(src|href)=\"http", page)


def test_who_adds_at_the_same_time_loses_nothing(tmp_path: Path) -> None:
    data = drawn(LAWS, [3_000, 3_000, 40], 40, until=40)
    table = pa.table({name: pa.array(v, pa.int64(), from_pandas=True, safe=False) for name, v in data.items()})
    parts = [table.slice(begin, 2_100) for begin in range(0, len(table), 2_100)]
    for number, part in enumerate(parts):
        pq.write_table(part, tmp_path / f"{number}.parquet")
    options = ["--observed-until", "1970-02-10"]
    run("windows", "fit", tmp_path / "0.parquet", tmp_path / "fit", "--group", "advertiser", *options)
    call = [sys.executable, "-c", "from octavo.cli import main; main()", "windows", "fit"]
    adding = [
        subprocess.Popen(
            [*call, str(tmp_path / f"{number}.parquet"), str(tmp_path / "fit"), "--add", *options],
            stdout=subprocess.DEVNULL,
        )
        for number in range(1, len(parts))
    ]
    assert [process.wait() for process in adding] == [0] * (len(parts) - 1)
    whole = PersonalizedInterpolator(group=["advertiser"]).fit(table, 40 * DAY)
    again = PersonalizedInterpolator.load(tmp_path / "fit")
    assert again._outcomes.count.sum() == whole._outcomes.count.sum()
    assert again._anchors.count.sum() == len(table)
    np.testing.assert_allclose(again.alpha([0, 1, 2], "3d"), whole.alpha([0, 1, 2], "3d"), atol=1e-6)


def test_late_outcomes_are_no_new_anchors(tmp_path: Path) -> None:
    first = pa.table({"anchor": [0, 0, 0, DAY], "converted": pa.array([None, None, 2 * DAY, None], pa.int64())})
    pq.write_table(first, tmp_path / "first.parquet")
    pq.write_table(pa.table({"anchor": [0], "converted": [3 * DAY]}), tmp_path / "late.parquet")
    run("windows", "fit", tmp_path / "first.parquet", tmp_path / "fit", "--half-life", "none", "--observed-until",
        "1970-01-06")  # fmt: skip
    run("windows", "fit", tmp_path / "late.parquet", tmp_path / "fit", "--add", "--late", "--observed-until",
        "1970-01-21")  # fmt: skip
    assert PersonalizedInterpolator.load(tmp_path / "fit").kaplan_meier("7d")[0] == pytest.approx(0.5)
    done = CliRunner().invoke(
        app, ["windows", "fit", str(tmp_path / "late.parquet"), str(tmp_path / "other"), "--late"]
    )
    assert done.exit_code == 2
    assert not (tmp_path / "other").exists()


def test_what_the_page_shows_is_what_came() -> None:
    table = scored(2)
    pi = PersonalizedInterpolator(group=["advertiser"], half_life=None).fit(table, 40 * DAY)
    results = results_of(pi, "t", table, ["p1", "p7"], ["3d"], 40 * DAY, resamples=200)
    assert [one.window for one in results.calibration] == ["1d", "3d", "7d"]
    three = results.calibration[1]
    assert not three.own
    old = table["anchor"].to_numpy() + 3 * DAY <= 40 * DAY
    assert three.events == old.sum()
    delay = table["converted"].to_numpy(zero_copy_only=False) - table["anchor"].to_numpy()
    p = pi.predict(table["p1"].to_numpy(), table["p7"].to_numpy(), {"advertiser": table["advertiser"]}, window="3d")
    assert three.calibration.estimate == pytest.approx(p[old].sum() / (delay[old] <= 3 * DAY).sum())
    assert three.calibration.low < 1 < three.calibration.high
    assert [name for name, _, _ in three.groups] == ["<fast>", "slow", "slow & new"] or len(three.groups) == 3
    first = results.laws[0]
    assert (first.name, first.level) == ("all", "all")
    assert len(results.laws) == 4
    assert results.hidden == 0
    curve = next(curve for curve in results.curves if curve.name == "<fast>")
    assert curve.alpha[0] == 0
    assert curve.alpha[-1] == pytest.approx(1)
    assert all(abs(np.interp(h, curve.hours, curve.alpha) - share) < 0.06 for h, share in curve.seen)


def test_a_page_without_predictions_has_laws_alone(tmp_path: Path) -> None:
    pi = PersonalizedInterpolator(half_life=None).fit(scored(), 40 * DAY)
    pi.save(tmp_path / "fit")
    run("windows", "report", tmp_path / "fit", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("data:image/svg+xml;base64,") == 1


def test_rivals_are_shown_with_what_is_outside_the_panel(tmp_path: Path) -> None:
    fit = PersonalizedInterpolator(half_life=None).fit(scored(), 40 * DAY)
    rivals = [
        Rival("personalized", "3d", Interval(-0.21, -0.64, 0.16), Interval(1.007, 0.996, 1.019), 1.035),
        Rival("dfm", "3d", Interval(7.5, 6.38, 8.57), Interval(0.576, 0.568, 0.585), 0.592),
        Rival("personalized", "14d", Interval(0.1, -0.2, 0.3), Interval(1.0, 0.99, 1.01), 1.1),
    ]
    results = dataclasses.replace(results_of(fit, "t"), rivals=rivals)
    page = write_windows_report(results, tmp_path / "page.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 2
    cells = re.findall(r"<tr><td>3d</td><td>dfm</td>(.*?)</tr>", page)
    assert re.findall(r">([^<>]+)</td>", cells[0]) == ["7.50", "6.38 to 8.57", "0.576", "0.568 to 0.585", "0.592"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    pi = PersonalizedInterpolator(half_life=None).fit(scored(), 40 * DAY)
    with pytest.raises(WindowsError, match="predictions: 1 columns; expected one for each of 1d, 7d"):
        results_of(pi, "t", scored(), ["p1"], ["3d"])
    young = scored().filter(pa.compute.greater(scored()["anchor"], 39 * DAY))
    with pytest.raises(WindowsError, match="windows: no event is older than 1d at the end"):
        results_of(pi, "t", young, ["p1", "p7"], ["3d"], 40 * DAY)
    with pytest.raises(DataError, match=r"expected a name that ends in \.parquet, \.pq or \.csv"):
        run("windows", "fit", tmp_path / "x.txt", tmp_path / "fit")
    with pytest.raises(DataError, match="cannot be read"):
        run("windows", "fit", tmp_path / "x.parquet", tmp_path / "fit")
