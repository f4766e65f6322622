"""The GPU benchmarks on the CPU: every path on tiny shapes, CPU kernels in octavo's place; figures on made-up times."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("pydantic")
FOLDER = Path(__file__).parents[2] / "benchmarks" / "python"
sys.path.insert(0, str(FOLDER))
try:
    harness, gpu_run = importlib.import_module("harness"), importlib.import_module("gpu_run")
finally:
    sys.path.remove(str(FOLDER))
# Ops of the rows, and the bars with what they ask for.
SCRIPTS = {
    "gpu_gemm": ({"linear"}, {"gpu_gemm_deepgemm_vs_scaled_mm": 0.95, "gpu_gemm_lrm_vs_scaled_mm": 1.1}),
    "gpu_norm_quantize": (
        {"quantize", "linear"},
        {f"gpu_norm_quantize_{group}_share{end}": 0.85 for group in ("quantize", "norm") for end in ("", "_worst")},
    ),
    "gpu_embedding": (
        {"bag_forward", "bag_backward"},
        {
            **{f"gpu_embedding_forward_{dtype}_share": 0.75 for dtype in ("fp32", "e4m3", "int8")},
            **{f"gpu_embedding_backward_{dtype}_share": 0.45 for dtype in ("fp32", "e4m3")},
            "gpu_embedding_step_vs_torch": 3.0,
        },
    ),
    "gpu_dispatch": (
        {"linear", "gemm"},
        {
            f"gpu_dispatch_{what}_{source}_{which}": bar
            for what in ("kernels", "tiles") for source in ("shipped", "tuned")
            for which, bar in (("mean", 0.03), ("max", 0.10))
        },
    ),
    "gpu_linear_norm": (
        {"linear"},
        {"gpu_linear_norm_vs_best": 1.5, "gpu_linear_norm_won": 0.95, "gpu_linear_norm_small_worst": 0.95},
    ),
    "gpu_model": (
        {"loka_inference", "loka_training"},
        {"gpu_model_inference_vs_best_torch": 1.4, "gpu_model_training_vs_best_torch": 1.2},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_list_names_the_scripts() -> None:
    assert list(SCRIPTS) == list(harness.GPU_BUDGETS)
    assert {path.stem for path in FOLDER.glob("gpu_*.py")} == {*SCRIPTS, "gpu_check", "gpu_run"}
    assert sum(harness.GPU_BUDGETS.values()) <= 18.5 * 60  # of a GPU lent for half an hour, build and tests besides


@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if name in ("gpu_gemm", "gpu_linear_norm"):
        request.getfixturevalue("row_scales")  # of their peers
    script, out = importlib.import_module(name), tmp_path / f"{name}.jsonl"
    assert gpu_run.main(name, script.body, ["--device", "cpu", "--smoke", "--json", "--out", str(out)]) == 0
    head, *rows, summary = map(json.loads, out.read_text().splitlines())
    assert (head["benchmark"], head["effort"], summary["summary"]) == (name, "smoke", name)
    ops, bars = SCRIPTS[name]
    assert {row["op"] for row in rows} == ops
    for row in rows:
        assert 0 < row["p10_us"] <= row["p50_us"] <= row["p90_us"]
        absent = {peer: why["absent"] for peer, why in row["peers"].items() if "absent" in why}
        smoke = {peer for peer, why in absent.items() if why.startswith("not in the smoke run")}
        assert set(absent) - smoke <= {"quantize_dynamic x86, byte rows"} | {p for p in absent if _is_of_cpu(p)}, absent
        assert row["peers"].keys() - absent.keys() or row["op"].startswith("bag_"), row
    found = {bar["name"]: bar for bar in summary["bars"]}
    for bar, value in bars.items():
        assert found[bar]["bar"] == value, found
        assert found[bar]["figure"] is not None, found[bar]
        assert "did_not_run" not in found[bar], found[bar]


def _is_of_cpu(peer: str) -> bool:
    """Peers of the LoKA scripts that may be missing on this machine, and that a GPU run leaves out."""
    return peer.startswith(("fbgemm", "torchao", "quantize_dynamic"))


def test_a_gpu_is_needed_unless_a_cpu_was_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(gpu_run, "unusable", lambda: "no usable CUDA device; see docs/gpu.md")
    assert gpu_run.main("gpu_gemm", lambda run: None, []) == 1
    assert capsys.readouterr().err == "gpu_gemm: no usable CUDA device; see docs/gpu.md\n"


def test_a_spent_budget_cuts_shapes_and_no_bar_holds(tmp_path: Path) -> None:
    script, out = importlib.import_module("gpu_gemm"), tmp_path / "x.jsonl"
    arguments = ["--device", "cpu", "--smoke", "--json", "--budget", "0", "--out", str(out)]
    assert gpu_run.main("gpu_gemm", script.body, arguments) == 0
    _, *rows, summary = map(json.loads, out.read_text().splitlines())
    assert [row["skipped"] for row in rows] == ["the script's budget is spent"] * 2
    assert summary["cut_shapes"] == 2
    assert not any(bar["holds"] for bar in summary["bars"])


def test_what_was_measured_is_written_where_a_script_fails(tmp_path: Path) -> None:
    def body(run: Any) -> None:
        run.contest("linear", {"m": 1}, [harness.Entry("octavo", lambda i: torch.zeros(1))], [])
        raise RuntimeError("a kernel failed")

    out = tmp_path / "x.jsonl"
    with pytest.raises(RuntimeError, match="a kernel failed"):
        gpu_run.main("gpu_gemm", body, ["--device", "cpu", "--smoke", "--json", "--out", str(out)])
    assert not out.exists()
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl.partial").read_text().splitlines()]
    assert [line.get("entry") for line in lines] == [None, "octavo"]


# --- figures on made-up times -----------------------------------------------------------------------------------------
def made_up(monkeypatch: pytest.MonkeyPatch, name: str, contests: list[tuple[dict[str, Any], dict[str, float]]]) -> Any:
    """A run whose contests gave these times: (shape, us by entry; octavo's first words its side)."""
    monkeypatch.setattr(harness, "facts", lambda: {"commit": "c0ffee", "device": "fake", "isa": "sm_90"})
    monkeypatch.setattr(harness, "_kernel_of", lambda op, entry: None)
    run = gpu_run.GpuRun(name, "full", True, "cpu", 100.0)
    for shape, times in contests:
        run._timing = lambda entries, effort, times=times: {n: np.full(5, us) for n, us in times.items()}
        entries = [harness.Entry(n, print, group="octavo" if n.startswith("octavo") else "torch") for n in times]
        run.contest("linear", shape, [e for e in entries if e.group == "octavo"],
                    [e for e in entries if e.group == "torch"])  # fmt: skip
    return run


def figures(run: Any) -> dict[str, tuple[float | None, bool | None]]:
    return {bar["name"]: (bar["figure"], bar["holds"]) for bar in run.bars}


def chain_figures(monkeypatch: pytest.MonkeyPatch, times: dict[int, tuple[float, float]]) -> Any:
    script = importlib.import_module("gpu_linear_norm")
    chain = {"widths": "8-8", "norm": "layer"}
    contests = [({"m": m, **chain}, {"octavo e4m3_row": ours, **dict.fromkeys(script.NAMED, theirs)})
                for m, (ours, theirs) in times.items()]  # fmt: skip
    run = made_up(monkeypatch, "gpu_linear_norm", contests)
    monkeypatch.setattr(script, "Chain", None)
    monkeypatch.setattr(script, "WIDTHS", {"full": {"layer": []}})
    script.body(run)
    return figures(run)


def test_a_chains_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chain_figures(monkeypatch, {16: (10, 9.6), 128: (9.8, 20), 256: (10, 20), 1024: (10, 40), 4096: (50, 40)})
    geomean = (2 * 4 * 0.8) ** (1 / 3)
    assert found["gpu_linear_norm_vs_best"] == (pytest.approx(geomean, abs=1e-4), True)
    assert found["gpu_linear_norm_won"] == (pytest.approx(2 / 3), False)
    assert found["gpu_linear_norm_small_worst"] == (pytest.approx(0.96), True)
    assert found["gpu_linear_norm_small_monotone"] == (pytest.approx(10 / 9.8), True)


def test_a_chain_that_is_slower_with_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chain_figures(monkeypatch, {1: (30, 30), 16: (40, 30), 64: (20, 30), 256: (25, 30)})
    assert found["gpu_linear_norm_small_monotone"] == (pytest.approx(2.0), False)
    assert found["gpu_linear_norm_small_worst"] == (pytest.approx(0.75), False)


def test_a_fall_is_to_any_larger_number_of_rows() -> None:
    script = importlib.import_module("gpu_linear_norm")
    assert script.steepest_fall({256: 3.0, 1: 2.0, 16: 2.5}) == pytest.approx(2.5 / 3)
    assert script.steepest_fall({1: 4.0, 16: 4.1, 64: 3.9}) == pytest.approx(4.1 / 3.9)
    assert script.steepest_fall({1: 4.0}) == 0.0


def test_regrets_are_of_the_choice_over_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("gpu_dispatch")
    run = made_up(monkeypatch, "gpu_dispatch", [])
    regrets: Any = {script.SHIPPED: [], script.TUNED: []}
    for shipped, times in (("a", {"a": 10.0, "b": 8.0, "c": 9.0}), ("c", {"a": 10.0, "b": 8.0, "c": 7.9})):
        run._timing = lambda entries, effort, times=times: {n: np.full(5, us) for n, us in times.items()}
        script.contest_of(run, "gemm", {"m": 1}, dict.fromkeys(times, print), {script.SHIPPED: shipped,
                          script.TUNED: "b"}, regrets)  # fmt: skip
    script.bars(run, "tiles", regrets)
    found = figures(run)
    assert found["gpu_dispatch_tiles_shipped_mean"] == (pytest.approx(0.125), False)
    assert found["gpu_dispatch_tiles_shipped_max"] == (pytest.approx(0.25), False)
    assert found["gpu_dispatch_tiles_tuned_mean"] == (pytest.approx((8 / 7.9 - 1) / 2), True)
    assert found["gpu_dispatch_tiles_tuned_max"] == (pytest.approx(8 / 7.9 - 1), True)


def test_samples_are_per_call_and_entries_with_preparation_are_refused() -> None:
    turns: list[int] = []
    entry = harness.Entry("a", turns.append)
    effort = harness.Effort("x", 0.0, 4, 4, 1e9, 1.0)
    found = gpu_run.interleaved([entry], effort, "cpu")
    assert len(found["a"]) == 4
    assert turns == [0, 1, *range(5 * 10)]  # two looks, then ten calls a sample, the first to know their cost
    with pytest.raises(ValueError, match="b: entries that prepare"):
        gpu_run.interleaved([harness.Entry("b", print, prepare=print)], effort, "cpu")


def test_inputs_rotate_past_the_caches() -> None:
    made = gpu_run.rotating(lambda i: i, 1 << 20, "cuda")
    assert [made(i) for i in range(12)] == [*range(10), 0, 1]
    made = gpu_run.rotating(lambda i: i, 1 << 30, "cuda")
    assert [made(i) for i in range(4)] == [0, 1, 0, 1]


def test_the_header_says_which_gpu_and_its_clocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = importlib.import_module("machine")
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, total_memory=1 << 37,
                                 L2_cache_size=60 << 20)  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    asked = tmp_path / "nvidia-smi"
    asked.write_text('#!/bin/sh\necho "1980 MHz, 1980 MHz, 3201 MHz, 110.50 W, 700.00 W, 31, 580.1"\n')
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = machine.gpu_facts()
    assert (found["device"], found["isa"], found["multiprocessors"]) == ("NVIDIA H200", "sm_90", 132)
    assert found["gpu_clocks"]["clocks.sm"] == "1980 MHz"
    assert found["gpu_clocks"]["driver_version"] == "580.1"
    asked.write_text("#!/bin/sh\nexit 9\n")
    assert machine.gpu_facts()["gpu_clocks"] is None


def test_a_kernel_is_checked_in_its_own_process_and_its_verdict_kept() -> None:
    from gpu_check import verdict_apart

    from octavo import _core, _qualification_cache

    kernel = _core.kernel("cpu.generic.quantize")
    assert verdict_apart(kernel) == ""
    assert _qualification_cache.read()["cpu.generic.quantize"] == ""
    assert verdict_apart(kernel, patience_s=0.01) == "its check did not end within 0.01 s"
    assert _qualification_cache.read()["cpu.generic.quantize"].endswith("0.01 s")
    lost = SimpleNamespace(name="cuda.sm90.no_such", library="octavo")
    assert "status 1" in verdict_apart(lost)
    assert "no_such" in _qualification_cache.read()["cuda.sm90.no_such"]
