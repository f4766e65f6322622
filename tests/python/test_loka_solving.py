"""loka.solve: against brute force, with whole intervals, with reasons; plans as files."""

import itertools
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from loka_reports import SITES, finding, report

from octavo import loka
from octavo.loka import DIRECTIONS, Estimate, Finding, solve
from octavo.ops import kernels
from octavo.ops._types import NUMERICS
from octavo.ops.dispatch import Plan, Requirement
from octavo.ops.linear_backward import GRAD_INPUT, GRAD_WEIGHT

ONE = SITES[1:2]
LOW = [numerics for numerics in NUMERICS if numerics != "fp32"]
ELSEWHERE = "another CPU, avx2, 64 threads"


def _random_report(seed: int):
    rng = np.random.default_rng(seed)
    findings = []
    for site, direction, numerics in itertools.product(SITES, DIRECTIONS, LOW):
        errors = {}
        for name in ("rel_l1", "signal_rel", "sqnr_db", "post_norm"):
            if rng.random() < 0.9:
                low, value, high = sorted(rng.uniform(0, 40 if name == "sqnr_db" else 0.1, 3))
                errors[name] = Estimate(value, low, high)
        us = None if rng.random() < 0.1 else float(rng.integers(5, 40))
        findings.append(Finding(site.path, direction, numerics, errors, us, 30.0, 10))
    return report(*(findings[i] for i in rng.permutation(len(findings))), where=ELSEWHERE)


def _brute_force(made, site: str, direction: str, demands: dict, min_speedup: float) -> tuple[str, float]:
    served = {"forward": NUMERICS, "grad_input": GRAD_INPUT, "grad_weight": GRAD_WEIGHT}[direction]
    best, time = "fp32", math.inf
    for f in made.findings:
        if (f.site, f.direction) != (site, direction) or f.us is None or f.numerics not in served:
            continue
        meets = 30.0 / f.us >= min_speedup
        for name, bound in demands.items():
            error = name[4:]
            if (error, direction) in (
                ("post_norm", "grad_input"), ("post_norm", "grad_weight"), ("signal_rel", "grad_weight")
            ):  # fmt: skip
                error = "rel_l1"
            if error not in f.errors:
                meets = False
            elif name.startswith("min"):
                meets &= f.errors[error].low >= bound
            else:
                meets &= f.errors[error].high <= bound
        if meets and (f.us < time or (f.us == time and NUMERICS.index(f.numerics) < NUMERICS.index(best))):
            best, time = f.numerics, f.us
    return best, time


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "demands",
    [{"max_signal_rel": 0.07}, {"max_post_norm": 0.08, "max_rel_l1": 0.09}, {"min_sqnr_db": 12.0}, {}],
    ids=["signal", "two", "floor", "none"],
)
def test_it_is_the_best_of_all_choices(seed, demands) -> None:
    made, min_speedup = _random_report(seed), 1.05
    plan = solve(made, Requirement(**demands), min_speedup, training=True)
    assert [(e.site, e.direction) for e in plan] == list(itertools.product([s.path for s in SITES], DIRECTIONS))
    chosen = {}
    for entry in plan:
        best, us = _brute_force(made, entry.site, entry.direction, demands, min_speedup)
        assert entry.numerics == best
        chosen[best] = chosen.get(best, 0) + 1
        if best != "fp32":
            assert entry.predicted_us == us
    assert plan == solve(made, Requirement(**demands), min_speedup, training=True)
    assert len(chosen) > 1


def test_the_whole_interval_counts() -> None:
    made = report(finding("middle", "forward", "int8_dynamic", rel_l1=0.01), sites=ONE)
    assert solve(made, Requirement(max_rel_l1=0.0111))["middle"].numerics == "int8_dynamic"
    kept = solve(made, Requirement(max_rel_l1=0.0109))["middle"]
    assert kept.numerics == "fp32"
    assert kept.reason == "nothing meets: int8_dynamic: rel_l1 0.01 (to 0.011), not <= 0.0109"
    floor = report(finding("middle", "forward", "bf16", sqnr_db=50.0), sites=ONE)
    assert solve(floor, Requirement(min_sqnr_db=45))["middle"].numerics == "bf16"
    assert solve(floor, Requirement(min_sqnr_db=45.1))["middle"].numerics == "fp32"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (finding("middle", "forward", "bf16", 29.0, ("speed",), rel_l1=0.0),
         "nothing meets: bf16 1.03x, not 1.05x (speed)"),
        (finding("middle", "forward", "bf16", None, rel_l1=0.0), "bf16: was not timed"),
        (finding("middle", "forward", "bf16", signal_rel=0.0), "bf16: rel_l1 was not estimated"),
        (finding("middle", "forward", "bf16", concerns=("offset", "tail", "speed"), rel_l1=1.0),
         "rel_l1 1 (to 1.1), not <= 0.05 (offset, tail)"),
        (finding("middle", "forward", "bf16", rel_l1=math.nan), "bf16: rel_l1 nan"),
        (finding("middle", "grad_input", "bf16", rel_l1=0.0), "the report has no forward of this site"),
    ],
)  # fmt: skip
def test_high_precision_comes_with_its_reason(given, reason) -> None:
    entry = solve(report(given, sites=ONE), Requirement(max_rel_l1=0.05))["middle"]
    assert entry.numerics == "fp32"
    assert entry.predicted_us == (30.0 if given.direction == "forward" else None)
    assert reason in entry.reason


def test_a_forward_pays_for_a_weight_that_changes() -> None:
    def made(pack_us: float, unpack_us: float, grad_input: float):
        forward = finding("middle", "forward", "int8_dynamic", 20.0, rel_l1=0.01)
        backward = finding("middle", "grad_input", "bf16", grad_input, rel_l1=0.01)
        return report(replace(forward, pack_us=pack_us, unpack_us=unpack_us), backward, sites=ONE)

    def chosen(found, training: bool = True) -> str:
        plan = solve(found, Requirement(max_rel_l1=0.05), training=training)
        return next(e.numerics for e in plan if e.direction == "forward")

    assert chosen(made(5, 20, 10.0)) == "int8_dynamic"  # 25 of 30 us; grad_input has a class of its own
    assert chosen(made(9, 0, 10.0)) == "fp32"  # 29 us are no 1.05
    assert chosen(made(9, 0, 10.0), training=False) == "int8_dynamic"  # packed once
    assert chosen(made(5, 20, 40.0)) == "fp32"  # grad_input in FP32 reads the codes back


def test_rows_with_nan_are_unsafe() -> None:
    made = report(finding("middle", "forward", "bf16", rel_l1=0.0, concerns=("nan",)), sites=ONE)
    entry = solve(made, Requirement(max_rel_l1=1))["middle"]
    assert entry.numerics == "fp32"
    assert "bf16: rows with NaN were seen (nan)" in entry.reason


def test_rows_of_x_with_nan_make_the_gradient_of_the_weight_unsafe() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 16)
    with loka.Probe(torch.nn.Sequential(layer), every=1) as probe:
        for _ in range(2):
            x = torch.randn(64, 32)
            x[5] = math.nan
            z = probe.model(x)
            z.backward(torch.where(z.isnan(), 0.0, torch.randn_like(z)))  # finite gradients
            probe.step()
    plan = solve(probe.evaluate(draws=2, rows=32), Requirement(), min_speedup=1e-3, training=True)
    reasons = {entry.direction: entry.reason for entry in plan}
    assert "rows with NaN were seen (nan)" in reasons["forward"]
    assert "rows with NaN were seen (nan)" in reasons["grad_weight"]
    assert "nan" not in reasons["grad_input"]


def test_a_site_that_saw_nothing_finite_says_so() -> None:
    seen = {"middle": {"input": {"rows": 0, "nan_rows": 300, "infinite_rows": 2}}}
    made = report(sites=ONE, settings={"statistics": seen})
    assert solve(made, Requirement())["middle"].reason.endswith("no row was finite: 300 had NaN, 2 infinities")


def test_classes_that_no_gradient_kernel_has_are_refused() -> None:
    made = report(
        finding("middle", "grad_weight", "int8_dynamic", 5.0, rel_l1=0.01),
        finding("middle", "grad_input", "int8_dynamic", 5.0, rel_l1=0.01),
        sites=ONE,
    )
    by_direction = {e.direction: e for e in solve(made, Requirement(max_post_norm=0.05), training=True)}
    assert by_direction["grad_input"].numerics == "int8_dynamic"  # rel_l1 stands for post_norm
    assert by_direction["grad_weight"].reason.endswith(
        "int8_dynamic: octavo has no kernel of grad_weight in this class"
    )
    theirs = report(finding("middle", "forward", "fp8_tensor", 5.0, rel_l1=0.01), sites=ONE)
    assert "fp8_tensor: octavo has no kernel of forward" in solve(theirs, Requirement())["middle"].reason


def test_each_direction_may_have_its_own_requirement() -> None:
    made = report(*(finding("middle", d, "bf16", rel_l1=0.01) for d in DIRECTIONS), sites=ONE)
    strict, loose = Requirement(max_rel_l1=0.001), Requirement(max_rel_l1=0.1)
    demands = {"forward": strict, "grad_input": loose, "grad_weight": strict}
    assert [e.numerics for e in solve(made, demands, training=True)] == ["fp32", "bf16", "fp32"]
    with pytest.raises(ValueError, match="requirement: says nothing of grad_input, grad_weight"):
        solve(made, {"forward": strict}, training=True)
    assert [e.requirement for e in solve(made, {"forward": strict})] == [{"max_rel_l1": 0.001}]


def test_a_plan_reloads_exactly_and_names_kernels_of_its_class(tmp_path) -> None:
    made = report(finding("middle", "forward", "int8_dynamic", rel_l1=0.01, sqnr_db=math.inf),
                  finding("head", "forward", "bf16", 40.0, rel_l1=0.01))  # fmt: skip
    plan = solve(made, Requirement(max_rel_l1=0.05, deterministic=True), training=True)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.origin == {"model": made.model, "machine": made.machine, "steps": "100", "min_speedup": "1.05"}
    for entry in plan.of_direction("forward"):
        assert set(entry.kernels) == {"1", "16", "128", "1024", "8192"}
        assert {kernels.by_name(name).numerics.name for name in entry.kernels.values()} == {entry.numerics}
    assert all(not entry.kernels for entry in plan if entry.direction != "forward")
    assert plan["middle"].numerics == "int8_dynamic"


def test_a_report_of_another_machine_is_said(caplog) -> None:
    made = report(finding("middle", "forward", "bf16", rel_l1=0.01), sites=ONE, where=ELSEWHERE)
    with caplog.at_level(logging.WARNING, "octavo.loka"):
        entry = solve(made, Requirement(max_rel_l1=0.05))["middle"]
    assert (entry.numerics, entry.kernels) == ("bf16", {})
    assert f"solve: the report was timed on {ELSEWHERE}, this is" in caplog.text


def test_bad_arguments() -> None:
    made = report(sites=ONE)
    with pytest.raises(TypeError, match="report: expected an octavo.loka.Report, found dict"):
        solve({}, Requirement())
    with pytest.raises(TypeError, match="requirement: expected an octavo.ops.dispatch.Requirement, found float"):
        solve(made, 0.05)
    with pytest.raises(ValueError, match="requirement: found 'backward'"):
        solve(made, {"backward": Requirement()})
    for wrong in (0, math.nan, math.inf, "2"):
        with pytest.raises(ValueError, match="min_speedup: expected a number above 0"):
            solve(made, Requirement(), min_speedup=wrong)
