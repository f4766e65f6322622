"""The benchmarks' arithmetic, on fake clocks and made-up times: rounds, quantiles, ratios, bars."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "python"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("harness")


class Clock:
    """Time that passes only when a call says so."""

    def __init__(self) -> None:
        self.now, self.log = 100.0, []

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, us: float) -> Any:
        def call(turn: Any) -> None:
            self.now += us * 1e-6
            self.log.append((name, turn))

        return call


def effort(harness: Any, **changes: Any) -> Any:
    defaults = dict(name="smoke", budget_s=1e-3, min_rounds=4, max_rounds=4, sample_us=1.0, roof_ms=1.0)
    return harness.Effort(**{**defaults, **changes})


def test_interleaved_times_are_per_call_and_each_round_has_its_own_order(harness: Any) -> None:
    clock = Clock()
    entries = [harness.Entry(name, clock.taking(name, us)) for name, us in (("a", 10.0), ("b", 40.0), ("c", 2.0))]
    rounds = 20
    samples = harness.interleaved(entries, effort(harness, min_rounds=rounds, max_rounds=rounds), clock)
    for name, us in (("a", 10.0), ("b", 40.0), ("c", 2.0)):
        assert samples[name] == pytest.approx([us] * rounds)
    order = [name for name, _ in clock.log][-2 * 3 * rounds :]  # a warm call and a timed one each
    assert order[::2] == order[1::2]
    met = ["".join(order[2 * 3 * turn : 2 * 3 * (turn + 1) : 2]) for turn in range(rounds)]
    assert {"".join(sorted(one)) for one in met} == {"abc"}
    assert len(set(met)) > 3  # more than the turns of one order: neighbours change
    turns = [turn for name, turn in clock.log if name == "a"]
    assert turns == list(range(len(turns)))  # never the same input twice


def test_short_calls_are_repeated_within_a_sample(harness: Any) -> None:
    clock = Clock()
    harness.interleaved([harness.Entry("a", clock.taking("a", 2.0))], effort(harness, sample_us=99.0), clock)
    calibration = 1 + 2 + 3
    assert len(clock.log) == calibration + 4 * (1 + 50)


def test_a_hopeless_entry_is_called_twice(harness: Any) -> None:
    clock = Clock()
    times = (("a", 1e3), ("b", 9e4), ("c", 2e5))  # slow, yet under a tenth of a second; hopeless
    entries = [harness.Entry(name, clock.taking(name, us)) for name, us in times]
    samples = harness.interleaved(entries, effort(harness), clock)
    assert samples["c"] == pytest.approx([2e5] * len(samples["a"]))
    calls = [name for name, _ in clock.log]
    assert calls.count("c") == 2  # the first call may have compiled
    assert calls.count("b") > 4


def test_a_first_call_does_not_stand_for_an_entry_that_later_ones_leave_behind(harness: Any) -> None:
    clock = Clock()

    def cold(name: str, first: float, then: float) -> Any:
        once = iter([clock.taking(name, first)])
        warm = clock.taking(name, then)
        return harness.Entry(name, lambda i: next(once, warm)(i))

    entries = [cold("a", 3e5, 1e3), cold("b", 3e6, 2e3)]  # b compiles, then a's cold call is the slowest of all
    samples = harness.interleaved(entries, effort(harness), clock)
    assert samples["a"] == pytest.approx([1e3] * len(samples["a"]))
    assert samples["b"] == pytest.approx([2e3] * len(samples["b"]))


def test_the_number_of_rounds_follows_the_budget_within_bounds(harness: Any) -> None:
    for budget, rounds in ((1e-6, 5), (1.0, 9), (20.05e-5 * 7 / 10, 7)):
        clock = Clock()
        entries = [harness.Entry("a", clock.taking("a", 10.0))]
        limits = effort(harness, budget_s=budget, min_rounds=5, max_rounds=9, sample_us=1.0)
        assert len(harness.interleaved(entries, limits, clock)["a"]) == rounds


def test_preparing_is_not_timed(harness: Any) -> None:
    clock = Clock()
    entry = harness.Entry("a", clock.taking("a", 30.0), prepare=lambda i: clock.taking("prepared", 500.0)(i) or i)
    assert harness.interleaved([entry], effort(harness), clock)["a"] == pytest.approx([30.0] * 4)
    assert len([1 for name, _ in clock.log if name == "prepared"]) == len([1 for name, _ in clock.log if name == "a"])


def test_median_interval_is_a_geometric_mean_of_medians(harness: Any) -> None:
    steady = harness.median_interval([np.full(9, 2.0), np.full(9, 8.0)])
    assert (steady.figure, steady.low, steady.high) == pytest.approx((4.0, 4.0, 4.0))
    noisy = harness.median_interval([np.array([1.0, 2.0, 3.0, 4.0, 100.0])])
    assert noisy.figure == pytest.approx(3.0)
    assert 0.99 < noisy.low < 3.0 < noisy.high < 100.1
    assert noisy == harness.median_interval([np.array([1.0, 2.0, 3.0, 4.0, 100.0])])  # the same resamples every time


@pytest.fixture
def run(harness: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    facts = {"commit": "c0ffee", "device": "fake", "isa": "avx2"}
    monkeypatch.setattr(harness, "facts", lambda: facts)
    monkeypatch.setattr(harness, "_kernel_of", lambda op, entry: "cpu.generic.linear")
    return harness.Run("linear_norm", effort(harness), as_json=True)


def contest(
    harness: Any, run: Any, times: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch, m: int = 1, **kw: Any
) -> None:
    monkeypatch.setattr(harness, "interleaved", lambda entries, e: {n: np.array(t) for n, t in times.items()})
    ours = [harness.Entry("octavo", print, io="float32", group="octavo", flops=2e6, facts={"numerics": "bf16"},
                          roof=harness.roofs.Roof("loop", 400.0, "GFLOP/s"))]  # fmt: skip
    rivals = [harness.Entry(n, print, io="bfloat16" if "bf" in n else "float32") for n in times if n != "octavo"]
    run.contest("linear", {"m": m}, ours, rivals, kw.get("absent"))


TIMES = {"octavo": [10.0, 10.0, 20.0, 10.0, 10.0], "slow": [50.0] * 5, "fast": [20.0] * 5, "bf": [15.0] * 5}


def test_rows_state_quantiles_rates_roof_and_ratios(
    harness: Any, run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contest(harness, run, TIMES, monkeypatch, absent={"fbgemm": "ModuleNotFoundError: fbgemm_gpu"})
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["p10_us"], row["p50_us"], row["p90_us"], row["rounds"]) == (10.0, 10.0, 16.0, 5)
    assert row["gflops"] == 200.0  # 2e6 in 10 us
    assert row["share_of_roof"] == 0.5
    assert row["roof"] == {"name": "loop", "value": 400.0, "unit": "GFLOP/s"}
    assert row["kernel"] == "cpu.generic.linear"
    assert row["peers"]["slow"] == {"io": "float32", "p50_us": 50.0}
    assert row["peers"]["fbgemm"] == {"absent": "ModuleNotFoundError: fbgemm_gpu"}
    assert (row["best_peer"]["name"], row["best_peer"]["ratio"]) == ("fast", 2.0)
    assert (row["best_peer_any"]["name"], row["best_peer_any"]["ratio"]) == ("bf", 1.5)
    assert row["best_peer"]["low"] <= 2.0 <= row["best_peer"]["high"]
    assert {"commit": "c0ffee", "device": "fake", "isa": "avx2"}.items() <= row.items()


def test_findings_gates_and_missing_peers(harness: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    contest(harness, run, TIMES, monkeypatch)
    contest(harness, run, {**TIMES, "fast": [80.0] * 5, "slow": [80.0] * 5}, monkeypatch)
    everyone = lambda entry: True  # noqa: E731
    float32 = lambda entry: entry.io == "float32"  # noqa: E731
    run.finding("finding", everyone, float32)
    run.finding("held", everyone, float32, bar=3.9)
    run.finding("missed", everyone, float32, bar=4.1)
    run.finding("absent", everyone, float32, named=("fast", "fbgemm"), bar=1.0)
    run.finding("nothing", everyone, lambda entry: entry.name == "fbgemm", named=("fbgemm",))
    bars = {bar["name"]: bar for bar in run.bars}
    assert bars["finding"]["figure"] == pytest.approx((2.0 * 8.0) ** 0.5)
    assert bars["finding"]["holds"] is None
    assert bars["finding"]["bar"] is None
    assert bars["held"]["holds"] is True
    assert bars["missed"]["holds"] is False
    assert bars["absent"]["holds"] is False
    assert bars["absent"]["did_not_run"] == ["fbgemm"]
    assert bars["nothing"]["figure"] is None
    assert bars["nothing"]["holds"] is False


def test_a_bar_between_two_entries_of_ours(harness: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for m, us in ((1, 30.0), (64, 5.0)):
        times = {"octavo": [10.0] * 5, "bf16": [us] * 5}
        monkeypatch.setattr(harness, "interleaved", lambda e, f, t=times: {n: np.array(v) for n, v in t.items()})
        run.contest("linear", {"m": m}, [harness.Entry(name, print) for name in times], [])
    run.rivalry("both", "octavo", "bf16", 1.2)
    run.rivalry("worst", "octavo", "bf16", 1.0, worst=True)
    run.rivalry("first", "octavo", "bf16", among=lambda shape: shape["m"] == 1)
    bars = {bar["name"]: bar for bar in run.bars}
    assert (bars["both"]["figure"], bars["both"]["holds"]) == (pytest.approx(1.5**0.5, abs=1e-4), True)
    assert (bars["worst"]["figure"], bars["worst"]["holds"], bars["worst"]["worst"]) == (0.5, False, {"m": 64})
    assert (bars["first"]["figure"], bars["first"]["holds"]) == (3.0, None)


def test_the_worst_contest_and_contests_of_some_shapes(harness: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    contest(harness, run, TIMES, monkeypatch)
    contest(harness, run, {**TIMES, "fast": [80.0] * 5, "slow": [80.0] * 5}, monkeypatch, m=64)
    everyone = lambda entry: True  # noqa: E731
    float32 = lambda entry: entry.io == "float32"  # noqa: E731
    run.finding("worst", everyone, float32, bar=2.1, worst=True)
    run.finding("large", everyone, float32, bar=7.9, among=lambda shape: shape["m"] >= 64)
    run.finding("none", everyone, float32, bar=1.0, among=lambda shape: shape["m"] > 64)
    run.share("share", everyone, bar=0.5)
    bars = {bar["name"]: bar for bar in run.bars}
    assert (bars["worst"]["figure"], bars["worst"]["holds"], bars["worst"]["worst"]) == (2.0, False, {"m": 1})
    assert (bars["large"]["figure"], bars["large"]["holds"], bars["large"]["contests"]) == (8.0, True, 1)
    assert (bars["none"]["figure"], bars["none"]["holds"]) == (None, False)
    assert (bars["share"]["figure"], bars["share"]["holds"], bars["share"]["contests"]) == (0.5, True, 2)


def test_where_matches_attributes_and_facts(harness: Any) -> None:
    entry = harness.Entry("a", print, io="float32", group="torch", facts={"numerics": "bf16"})
    assert harness.where()(entry)
    assert harness.where(io="float32", numerics="bf16", name="a")(entry)
    assert not harness.where(io="float32", numerics="fp32")(entry)
    assert not harness.where(route="ops.linear")(entry)


def test_records_do_not_keep_the_calls(harness: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    contest(harness, run, TIMES, monkeypatch)
    with pytest.raises(RuntimeError, match="contest is over"):
        run.contests[0].ours[0].call(0)


def test_the_last_line_is_the_summary(capsys: pytest.CaptureFixture[str], run: Any) -> None:
    run.skip("linear", {"m": 1}, "the tables need more memory")
    run.finish()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["benchmark"] == "linear_norm"
    assert lines[1]["skipped"] == "the tables need more memory"
    assert lines[-1]["summary"] == "linear_norm"
    assert lines[-1]["bars"] == []


def test_results_are_written_whole(harness: Any, tmp_path: Path) -> None:
    import records  # in the harness's folder

    target = tmp_path / "results" / "x.jsonl"
    records.write(target, [{"a": 1}, {"b": [2]}])
    assert [json.loads(line) for line in target.read_text().splitlines()] == [{"a": 1}, {"b": [2]}]
    with pytest.raises(TypeError):
        records.write(target, [{"a": object()}])
    assert json.loads(target.read_text().splitlines()[0]) == {"a": 1}
    assert [p.name for p in target.parent.iterdir()] == ["x.jsonl"]


def test_the_list_names_scripts_that_exist() -> None:
    done = subprocess.run([sys.executable, FOLDER / "harness.py", "--list"], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert len(set(names)) == len(names) >= 7
    assert all((FOLDER / f"{name}.py").exists() for name in names)


def test_a_wrong_peer_is_listed_not_timed(monkeypatch: pytest.MonkeyPatch, harness: Any) -> None:
    import torch

    peers = importlib.import_module("peers")
    rivals: list[Any] = []
    absent: dict[str, str] = {}

    def wrong() -> Any:
        peers.agrees(torch.ones(4) * 1.5, torch.ones(4), "bf16")
        return harness.Entry("wrong", print)

    peers.admit(rivals, absent, "wrong", wrong)
    peers.admit(rivals, absent, "right", lambda: harness.Entry("right", print))
    assert [entry.name for entry in rivals] == ["right"]
    assert absent == {"wrong": "Wrong: relative L1 error 0.5 against FP32, expected <= 0.03"}


@pytest.mark.parametrize(
    ("low", "high", "holds"),
    [(-0.04, 0.04, True), (-0.06, 0.04, False), (0.01, 0.05, False), (float("nan"), 0.0, False)],
)
def test_a_margin_holds_when_the_whole_interval_lies_inside(
    harness: Any, run: Any, low: float, high: float, holds: bool
) -> None:
    run.measured("gap", harness.Interval(0.0, low, high), 0.05, inside=True)
    run.measured("finding", harness.Interval(0.0, low, high), inside=True)
    assert [bar["holds"] for bar in run.bars] == [holds, None]
