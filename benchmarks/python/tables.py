"""The README's tables out of ``benchmarks/results``: prints them, or with ``--write`` puts them between its markers.

A test compares the README with what this prints, so a figure there always has its file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import NAMES

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: begin -->\n", "<!-- results: end -->\n"
CLASSES = ("int8_dynamic", "bf16", "e4m3_weight_only", "e4m3_row")


def lines(name: str) -> list[dict[str, Any]]:
    """Every line of a results file."""
    return [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def bars(name: str) -> dict[str, dict[str, Any]]:
    """The summary's bars by name."""
    return {bar["name"]: bar for bar in lines(name)[-1]["bars"]}


def ratio(bar: dict[str, Any]) -> str:
    """Figure and interval."""
    if bar["figure"] is None:
        return "did not run"
    digits = 4 if bar["bar"] is not None and abs(bar["bar"]) < 0.1 else 2  # differences in AUC
    return "{:.{d}f} ({:.{d}f} .. {:.{d}f})".format(bar["figure"], bar["low"], bar["high"], d=digits)


def header(*names: str) -> str:
    """Machine, date, commit and command of results files; what several share is said once."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        head = lines(name)[0]
        effort = "" if head["effort"] == "full" else f" --{head['effort']}"
        where = (f"{head['device']}, {head['threads']} threads, {head['isa']}", head["date"][:10], head["commit"][:7])
        groups.setdefault(where, []).append(f"`{name}.py{effort}`")
    said = [f"{where}, {day}, commit {commit}: {', '.join(ran)}" for (where, day, commit), ran in groups.items()]
    return "; ".join(said) + " (`benchmarks/python`, with `--out benchmarks/results/NAME.jsonl`)"


def table(titles: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    rule = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [titles, rule, *rows]) + "\n"


def linear_norm() -> str:
    """Geometric means over shapes, then the class by M."""
    found = bars("linear_norm")
    rows = []
    for name in CLASSES:
        pair = [found[f"linear_{name}_{io}_vs_best_float_same_io"] for io in ("float32", "bfloat16")]
        rows.append([name, *map(ratio, pair)])
    best = ratio(found["linear_norm_vs_best_peer"])
    peers = ratio(found["linear_int8_dynamic_vs_quantize_dynamic"])
    return (
        "**Linear + bias + LayerNorm + hardswish**, times as fast as the best of torch eager and compiled, FP32 and "
        "BF16, at the same input and output type (geometric mean over shapes, 95% interval):\n\n"
        + table(["class", "FP32 in and out", "BF16 in and out"], rows)
        + f"\nThe best class against the best peer of any kind, INT8 ones included: {best}. `int8_dynamic` against "
        f"`quantize_dynamic`, torch's fastest INT8 route: {peers}. {header('linear_norm')}\n"
    )


def embedding() -> str:
    """Forward and backward."""
    forward, backward = bars("embedding_forward"), bars("embedding_backward")
    both = "best of torch and FBGEMM"
    rows = []
    for name, slug, peer in (
        ("FP32", "fp32_vs_best_same_width", "FP32 rows"),
        ("BF16", "bf16_vs_best_same_width", "16-bit rows"),
        ("INT8", "int8_vs_best_same_width", "8-bit rows"),
        ("E4M3", "e4m3_vs_best_of_any_dtype", "any row format"),
    ):
        rows.append([f"forward, {name} rows", ratio(forward[f"embedding_forward_{slug}"]), f"{both}, {peer}"])
    for slug, peer in (("fbgemm", "FBGEMM, the same optimizer"), ("torch", "torch, sparse gradients and Adagrad")):
        rows.append(["backward + row-wise Adagrad", ratio(backward[f"embedding_backward_vs_{slug}"]), peer])
    return (
        "**Embedding bags**, times as fast as the peer:\n\n"
        + table(["", "ratio", "peer"], rows)
        + f"\n{header('embedding_forward', 'embedding_backward')}\n"
    )


def small() -> str:
    """Quantizers and overhead."""
    quantize, overhead = bars("quantize"), bars("overhead")
    rows = []
    for name, slug, peer in (
        ("E4M3", "e4m3_vs_best_torch", "best of torch eager and compiled"),
        ("INT8", "int8_vs_best_torch", "best of torch eager and compiled"),
        ("INT8", "int8_vs_fbgemm", "FBGEMM's 8-bit rows"),
    ):
        rows.append([f"quantize FP32 to {name} rows", ratio(quantize[f"quantize_float32_to_{slug}"]), peer])
    for name, slug in (("`ops.linear`, 1 x 64 x 64", ""), ("the same with gradients", "_with_gradients")):
        rows.append([name, ratio(overhead[f"overhead_ops_linear{slug}_vs_torch"]), "torch eager, the same layer"])
    return (
        "**Quantizers and the cost of a call**, times as fast as the peer:\n\n"
        + table(["", "ratio", "peer"], rows)
        + f"\n{header('quantize', 'overhead')}\n"
    )


def main_job() -> str:
    """MovieLens: quality and speed by numerics."""
    run = json.loads((RESULTS / "movielens.json").read_text(encoding="utf-8"))
    sizes = sorted({row["batch_size"] for row in run["speed"]})
    speed = {(row["contestant"], row["batch_size"]): row for row in run["speed"]}

    def cells(name: str) -> list[str]:
        return [f"{speed[name, size]['ratio']:.2f}" if (name, size) in speed else "" for size in sizes]

    rows = [["torch FP32", "", "", "", *cells("torch FP32")], ["torch BF16", "", "", "", *cells("torch BF16")]]
    for row in run["numerics"]:
        quality, gap = row["quality"], row["ne_difference"]
        values = [] if gap is None else [f"{gap[key] * 1e4:+.1f}" for key in ("estimate", "low", "high")]
        cost = "{} ({} .. {})".format(*values) if values else ""
        rows.append([row["numerics"], f"{quality['ne']:.4f}", f"{quality['auc']:.4f}", cost, *cells(row["numerics"])])
    for name, quality in run["baselines"].items():
        rows.append([f"{name}", f"{quality['ne']:.4f}", f"{quality['auc']:.4f}", "", *[""] * len(sizes)])
    titles = ["numerics", "NE", "AUC", "NE - FP32, 1e-4 (95%)", *(f"speed, batch {size}" for size in sizes)]
    machine = run["machine"]
    return (
        "**MovieLens-100K, a DLRM, one pass in event time**, scored on the last 20% (never trained on); speed of the "
        "whole forward pass, times torch FP32 with torch's own tables:\n\n"
        + table(titles, rows)
        + f"\n`planned`: {run['requirement']}. {machine['CPU']}, {machine['threads']} threads, {run['created'][:10]}: "
        "`octavo train examples/movielens.yaml plan.rounds=100`, its `results.json`.\n"
    )


# AUC / NE of one-hot logistic regression where the set's own documentation has them.
REAL_RUNS = {
    "movielens_by_user": {"like": (0.780, 0.823)},
    "deskdrop": {
        "like": (0.740, 0.892), "bookmark": (0.752, 0.907), "follow": (0.721, 0.925), "comment": (0.745, 0.899),
    },
    "hotel_bookings": {
        "cancel": (0.736, 0.882), "cancel_1d": (0.632, 0.981), "cancel_7d": (0.675, 0.952),
        "cancel_30d": (0.697, 0.925),
    },
    "online_retail": {},
}  # fmt: skip


def real_runs() -> str:
    """Every other real data set: held-out quality by task, in FP32 and by the plan."""
    rows, created = [], {}
    for name, floors in REAL_RUNS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            continue
        run = json.loads(path.read_text(encoding="utf-8"))
        created[name] = run["created"][:10]
        quality = {(row["task"], row["numerics"]): row["quality"] for row in run["numerics"]}
        for task in dict.fromkeys(row["task"] for row in run["numerics"]):
            own = next(iter(run["baselines"].values())) if task == run["task"] else None
            cells = [quality[task, "FP32"], quality[task, "planned"], own]
            cells = ["" if q is None else f"{q['auc']:.4f} / {q['ne']:.4f}" for q in cells]
            floor = "{:.3f} / {:.3f}".format(*floors[task]) if task in floors else ""
            rows.append([name, task, *cells, floor])
    titles = ["`octavo train examples/`", "task", "FP32", "planned", "logistic regression", "the set's own"]
    dates = ", ".join(sorted(set(created.values())))
    return (
        "**Other real data sets**, AUC / NE on events never trained on; logistic regression on the same features "
        "(first task) and as the set's documentation has it, on ids and attributes alone "
        "([docs/examples.md](docs/examples.md)):\n\n" + table(titles, rows) + f"\n{dates}.\n"
    )


LOKA_SPEED = ("loka_inference", "loka_training", "loka_dispatch")
LOKA = tuple(name for name in NAMES if name.startswith("loka_"))


def has_results(name: str) -> bool:
    """Whether a benchmark's results are on record."""
    return (RESULTS / f"{name}.jsonl").exists()


def loka_speed() -> str:
    """Whole rankers under a plan, by model: serving and training, and what serving costs in quality where that was
    measured. Empty until their results are there."""
    if not all(map(has_results, LOKA_SPEED)):
        return ""
    served, trained = bars("loka_inference"), bars("loka_training")
    rows = []
    for kind in dict.fromkeys(line["shape"]["model"] for line in lines("loka_inference") if "shape" in line):
        serving = [served[f"loka_inference_{kind}_vs_{peer}"] for peer in ("best_float", "best_any", "octavo_bf16")]
        training = [trained.get(f"loka_training_{kind}_vs_{peer}") for peer in ("best_torch", "fbgemm", "octavo_bf16")]
        steps = ["" if bar is None else ratio(bar) for bar in training]
        rows.append([kind, *map(ratio, serving), *steps, *served_quality(kind)])
    titles = ["ranker", "serving: best of torch in FP32, BF16", "best of torch, INT8 too", "octavo in BF16",
              "training: best of torch", "FBGEMM + torch", "octavo in BF16", "NE, plan - FP32, %",
              "NE, INT8 - FP32, %"]  # fmt: skip
    dispatch = bars("loka_dispatch")
    best, meeting = (ratio(dispatch[f"loka_dispatch_vs_best_single{end}"]) for end in ("", "_that_meets"))
    return (
        "**Whole rankers under LoKA's plan**, times as fast as the peer, embeddings included (serving: geometric mean "
        "over batches); NE of clicks where `loka_quality` served the same kind of model, with INT8 in all layers and, "
        "where it ran with the same instruction set and so under a plan like this one's, under its plan:\n\n"
        + table(titles, rows)
        + f"\nServing, the plan against the best single class in all layers: {best}; against the best that meets the "
        f"requirement: {meeting}. {header(*LOKA_SPEED)}\n"
    )


def served_quality(kind: str) -> list[str]:
    """NE of clicks minus FP32's, %, of a model served under its plan and in INT8; empty where it was not measured. What
    a plan holds goes by the machine's costs: one of another instruction set says nothing of the plan that was timed."""
    if not has_results("loka_quality"):
        return ["", ""]
    found = {
        line["entry"]: line
        for line in lines("loka_quality")
        if line.get("op") == "loka_quality inference"
        and (line["shape"]["model"], line["shape"]["task"]) == (kind, "click")
    }
    timed, scored = (next(iter(lines(name)))["isa"] for name in ("loka_inference", "loka_quality"))
    return [difference(found.get("plan") if timed == scored else None), difference(found.get("int8_dynamic"))]


def difference(line: dict[str, Any] | None) -> str:
    """A signed figure with its interval; empty for none."""
    return "" if line is None else f"{line['figure']:+.3f} ({line['low']:+.3f} .. {line['high']:+.3f})"


ARMS = {"aa": "FP32, initial weights one ulp off", "plan": "plan by this machine's costs",
        "narrow": "narrowest class that meets post-norm error 0.05",
        "strict": "narrowest class that meets post-norm error 0.01", "int8_dynamic": "INT8 in all layers",
        "naive": "tensor-wise FP8 in all layers (emulated)"}  # fmt: skip


def loka_quality() -> str:
    """NE of clicks and conversions under plans against FP32's. Empty until the results are there."""
    if not has_results("loka_quality"):
        return ""
    found = {
        (line["entry"], line["shape"]["model"], line["shape"]["task"], line["op"].split()[1]): line
        for line in lines("loka_quality")
        if "model" in line.get("shape", {})
    }
    columns = list(dict.fromkeys(key[1:] for key in found if key[2] == "click"))
    columns.sort(key=lambda column: (column[2], column[0]))

    rows = [[name, *(difference(found.get((entry, *c))) for c in columns)] for entry, name in ARMS.items()]
    titles = ["", *(f"{model}, {'serving' if what == 'inference' else what}" for model, _, what in columns)]
    events = next(iter(found.values()))["shape"]["rows"]
    return (
        f"**NE of clicks under LoKA's plans, minus FP32's, % of FP32's**, AdsWorld, {events:,} events each (serving: "
        "the same weights, 95% over users; training: mean of five paired seeds, 90%). More in "
        "[docs/loka.md](docs/loka.md#what-a-plan-costs-in-quality):\n\n"
        + table(titles, rows)
        + f"\n{header('loka_quality')}\n"
    )


# Whose gates are of the event-time core; the other benchmarks' are of the engine.
CORE = ("dynamic_table", "simulate", "memory", "bayes_gap", "quality_parity", "data_throughput", "train_throughput")
EXFM = tuple(name for name in NAMES if name.startswith(("exfm_", "das_")))
WINDOWS = tuple(name for name in NAMES if name.startswith("windows_"))
HOLDS = {True: "yes", False: "**no**", None: "not measured"}


def gates(title: str, names: Sequence[str], legend: str) -> str:
    """Every figure with a bar."""
    names = [name for name in names if has_results(name)]
    rows = [
        [slug, ratio(bar), f"{bar['bar']:g}", HOLDS[bar["holds"]]]
        for name in names
        for slug, bar in bars(name).items()
        if bar["bar"] is not None
    ]
    return (
        f"**{title}.** {legend} What was missed and why: [docs/cpu-gates.md](docs/cpu-gates.md).\n\n"
        + table(["figure", "measured (95%)", "gate", "holds"], rows)
        + f"\n{header(*names)}\n"
    )


def text() -> str:
    """All tables."""
    engine = [name for name in NAMES if name not in (*CORE, *LOKA, *EXFM, *WINDOWS)]
    all_gates = [
        gates("Gates of the CPU engine", engine, "Ratios to the best peer named by the figure, or shares of a measured "
              "roof; `worst`: the worst shape."),
        gates("Gates of the event-time core", CORE, "Ratios to the peer named by the figure, differences, or "
              "amounts that must stay below the gate (`peak`, `growth`, `idle`, `gap`)."),
        gates("Gates of LoKA", LOKA, "`prediction`: predicted errors against those of real held-out inputs (rank "
              "correlation, median |log ratio|). `faults`: faulty kernels' errors over right ones' on what Probe "
              "learned, the least wherever real inputs separate them by 10 (.. 97.5% of sites). `quality`, "
              "`comm_ne`: % of FP32's NE, the whole interval (training: 90% over seeds) within the gate of 0. "
              "`overhead`: time under a Probe over time without, at most. Others: ratios to the peer, or shares."),
        gates("Gates of ExFM", EXFM, "`stream`: gains in % of the NE without distillation, the interval's lower end "
              "above 0; of controls the whole interval within the gate of 0. `cost`: FLOPs of the teacher a student "
              "pays, times the number of students, over one student's alone; FLOPs served over those of a model "
              "without a teacher; counts; all at most. `das`: ratios of examples a second. Findings: "
              "[docs/exfm.md](docs/exfm.md)."),
        gates("Gates of windows", WINDOWS, "`synthetic`: differences of mean calibration errors in %, at most 0. "
              "`ratio`: how far sum(p) / sum(p of gold) is from 1, at most. `ne`: NE less gold's, relative, upper end. "
              "`within_10`: share of groups. Details: [docs/windows.md](docs/windows.md)."),
    ]  # fmt: skip
    parts = [main_job(), real_runs(), linear_norm(), embedding(), small(), loka_quality(), loka_speed(), *all_gates]
    return "\n".join(part for part in parts if part)


def main() -> int:
    """Print, or write into the README."""
    if "--write" not in sys.argv:
        print(text(), end="")
        return 0
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}{text()}{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
