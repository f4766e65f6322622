"""Which kernel, and why: predicates, accuracy, cost; registration of other libraries' kernels; counters."""

import math
import uuid

import pytest
import torch

from octavo import _core, ops
from octavo.ops import kernels
from octavo.ops.dispatch import Evidence, Problem, Requirement, choose, explain, register
from octavo.ops.packing import PackedWeight, pack_as

PROBLEM = Problem("linear", 64, 128, 96, epilogue="bias+layer+hardswish")


@pytest.fixture(autouse=True)
def _no_measured_costs():
    _core.forget_costs()
    yield
    _core.forget_costs()


def _record(name: str, problem: Problem, us: float) -> None:
    _core.record_cost(kernels.by_name(name), problem.core(), us)


def _all_cost(problem: Problem, us: float) -> None:
    for kernel in _core.kernels():
        if kernel.op == _core.Op.linear:
            _core.record_cost(kernel, problem.core(), us)


def test_the_fastest_admitted_kernel_is_chosen() -> None:
    problem = Problem("linear", 64, 128, 96, out_dtype="bfloat16")
    _all_cost(problem, 50.0)
    _record("torch.cpu.linear.bf16", problem, 7.0)
    decision = choose(problem)
    assert decision.kernel == "torch.cpu.linear.bf16"
    assert decision.numerics == "bf16"
    assert decision.predicted_us == 7.0
    assert decision.predicted_error["sqnr_db"] == 52.0
    assert "fastest of" in decision.reason
    assert "7 us measured" in decision.reason


def test_a_product_in_bf16_serves_bf16_outputs_only() -> None:
    _all_cost(PROBLEM, 50.0)
    _record("torch.cpu.linear.bf16", PROBLEM, 7.0)
    row = next(a for a in choose(PROBLEM).alternatives if a.kernel == "torch.cpu.linear.bf16")
    assert row.reason == "rounds its product to bfloat16, the output is float32"


def test_low_precision_is_never_chosen_when_slower() -> None:
    _all_cost(PROBLEM, 50.0)
    _record("torch.cpu.linear.fp32", PROBLEM, 49.0)
    assert choose(PROBLEM).numerics == "fp32"


def test_equally_fast_means_more_precise() -> None:
    _all_cost(PROBLEM, 50.0)
    assert choose(PROBLEM).numerics == "fp32"


def test_accuracy_comes_before_cost() -> None:
    _all_cost(PROBLEM, 50.0)
    int8 = next(k.name for k in _core.kernels() if k.numerics.name == "int8_dynamic" and k.library == "octavo")
    _record(int8, PROBLEM, 1.0)
    assert choose(PROBLEM, Requirement(min_sqnr_db=39.0)).kernel == int8
    refused = choose(PROBLEM, Requirement(min_sqnr_db=40.0))
    assert refused.numerics != "int8_dynamic"
    row = next(a for a in refused.alternatives if a.kernel == int8)
    assert not row.admitted
    assert row.reason == "SQNR 39.5 dB < 40 dB"


def test_evidence_overrides_the_nominal_error() -> None:
    _all_cost(PROBLEM, 50.0)
    int8 = next(k.name for k in _core.kernels() if k.numerics.name == "int8_dynamic" and k.library == "octavo")
    _record(int8, PROBLEM, 1.0)
    evidence = Evidence({"int8_dynamic": {"sqnr_db": 17.0, "signal_rel": 0.4}})
    assert choose(PROBLEM, Requirement(min_sqnr_db=20), evidence).kernel != int8
    good = Evidence({"int8_dynamic": {"sqnr_db": 45.0, "signal_rel": 0.01}})
    assert choose(PROBLEM, Requirement(min_sqnr_db=44, max_signal_rel=0.02), good).kernel == int8
    assert choose(PROBLEM, Requirement(max_signal_rel=0.005), good).kernel != int8


@pytest.mark.parametrize("name", ["max_mere", "max_signal_rel", "max_post_norm"])
def test_a_demand_on_an_unknown_error_refuses_low_precision(name) -> None:
    decision = choose(PROBLEM, Requirement(**{name: 10.0}))
    assert decision.numerics == "fp32"
    assert any("is not known here and the requirement bounds it" in a.reason for a in decision.alternatives)


@pytest.mark.parametrize("value", [math.nan])
def test_nan_is_no_requirement(value) -> None:
    with pytest.raises(ValueError, match="min_sqnr_db: is NaN"):
        Requirement(min_sqnr_db=value)


def test_no_error_is_negative() -> None:
    with pytest.raises(ValueError, match="max_post_norm: found -1, which no error meets"):
        Requirement(max_post_norm=-1)
    assert Requirement(max_post_norm=0.0, min_sqnr_db=-3.0).demands() == {"max_post_norm": 0.0, "min_sqnr_db": -3.0}


def test_a_nan_error_never_meets_a_bound() -> None:
    evidence = Evidence({c: {"sqnr_db": math.nan} for c in ("bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic")})
    assert choose(PROBLEM, Requirement(min_sqnr_db=0.0), evidence).numerics == "fp32"


def test_a_class_is_served_by_its_own_kernels_only() -> None:
    for numerics in ("bf16", "e4m3_row", "e4m3_weight_only", "int8_dynamic"):
        decision = choose(Problem("linear", 8, 64, 64, numerics=numerics))
        assert decision.numerics == numerics
        assert {a.numerics for a in decision.alternatives} <= {numerics}


def test_costs_are_kept_per_bucket_of_m() -> None:
    def us(m: int) -> float:
        problem = Problem("linear", m, 128, 96)
        rows = ops.dispatch.choice.judge(problem).candidates
        return next(c.predicted_us for c in rows if c.kernel.name == "torch.cpu.linear.bf16")

    _record("torch.cpu.linear.bf16", Problem("linear", 64, 128, 96), 1234.0)
    assert us(64) == us(33) == 1234.0
    assert us(65) != 1234.0
    assert us(32) != 1234.0


def test_explain_prints_the_table() -> None:
    text = explain(PROBLEM, Requirement(min_sqnr_db=35))
    assert "m=64 n=128 k=96" in text
    assert "requirement: min_sqnr_db=35" in text
    assert "torch.cpu.linear.fp32" in text
    assert "SQNR 28.5 dB < 35 dB" in text
    assert text.splitlines()[-1].startswith("chosen: fastest of")


def test_measure_replaces_priors_with_the_route_taken() -> None:
    problem = Problem("linear", 16, 64, 64, epilogue="bias+rms+relu+residual")
    times = ops.dispatch.measure(problem, budget_ms=1)
    assert len(times) >= 2
    decision = choose(problem)
    assert times[decision.kernel] == min(times.values())  # two kernels may tie to the nanosecond
    assert decision.predicted_us == pytest.approx(min(times.values()))


@pytest.mark.skipif(_core.cpu_features()["avx512_vnni"], reason="this CPU has VNNI")
def test_without_vnni_int8_is_never_left_to_torchs_plain_loop() -> None:
    for m in (1, 64, 1024, 8192):
        problem = Problem("linear", m, 1024, 512, numerics="int8_dynamic")
        assert not choose(problem).kernel.startswith("torch.")


def _register_product(numerics: str, wrong: float = 0.0) -> tuple[str, list[int]]:
    name, calls = f"test.cpu.linear.{numerics}.{uuid.uuid4().hex[:8]}", []

    def product(x: torch.Tensor, w: PackedWeight) -> torch.Tensor:
        calls.append(x.shape[0])
        return x.bfloat16().float() @ w.dequantize().T + wrong

    register(name, numerics, product, library="test", gmacs_per_s=1e6, gbytes_per_s=1e6, overhead_us=0.0)
    return name, calls


def test_a_registered_kernel_is_qualified_chosen_run_and_counted() -> None:
    name, calls = _register_product("bf16")
    try:
        assert choose(Problem("linear", 9, 16, 24, numerics="bf16")).kernel == name
        assert kernels.by_name(name).state == "qualified"
        x, w = torch.randn(9, 24), pack_as(torch.randn(16, 24), "bf16")
        calls.clear()
        y = ops.linear(x, w)
        assert calls == [9]
        assert ops.dispatch.counters()[name] >= 1
        assert torch.allclose(y, x.bfloat16().float() @ w.dequantize().T, atol=1e-5)
    finally:
        kernels.by_name(name).quarantine("the test that made it is over")
        kernels.new_generation()


def test_another_number_of_threads_is_another_choice() -> None:
    problem, before = Problem("linear", 9, 23, 37, out_dtype="bfloat16", numerics="bf16"), torch.get_num_threads()
    torchs = kernels.by_name("torch.cpu.linear.bf16")
    choose(problem)  # qualifies
    x, w = torch.randn(9, 37), pack_as(torch.randn(23, 37), "bf16")
    prepared = ops.prepare_linear(w, out_dtype=torch.bfloat16)
    try:
        for threads, us in ((before, 90.0), (before + 1, 7.0)):
            torch.set_num_threads(threads)
            _all_cost(problem, 50.0)
            _record(torchs.name, problem, us)
        for threads in (before, before + 1, before):
            torch.set_num_threads(threads)
            for call in (prepared, lambda x: ops.linear(x, w, out_dtype=torch.bfloat16)):
                for _ in range(2):
                    calls = torchs.calls
                    call(x)
                    assert torchs.calls - calls == (threads != before)
    finally:
        torch.set_num_threads(before)
        kernels.new_generation()


def test_a_wrong_kernel_is_quarantined_once_and_the_next_one_runs() -> None:
    name, _ = _register_product("bf16", wrong=0.5)
    problem = Problem("linear", 9, 16, 24, numerics="bf16")
    with pytest.warns(RuntimeWarning, match=f"{name} is quarantined.*expected error <= 1.0e-05.*found"):
        decision = choose(problem)
    assert decision.kernel != name
    assert kernels.by_name(name).state == "quarantined"
    refused = next(a for a in decision.alternatives if a.kernel == name)
    assert refused.reason.startswith("quarantined: linear m=1 n=1 k=1")
    x, w = torch.randn(9, 24), pack_as(torch.randn(16, 24), "bf16")
    assert torch.allclose(ops.linear(x, w), x.bfloat16().float() @ w.dequantize().T, atol=1e-4)


def test_a_kernel_that_raises_is_quarantined() -> None:
    name = f"test.cpu.linear.raises.{uuid.uuid4().hex[:8]}"

    def product(x: torch.Tensor, w: PackedWeight) -> torch.Tensor:
        raise OSError("no such device")

    register(name, "bf16", product, library="test")
    with pytest.warns(RuntimeWarning, match="raised OSError: no such device"):
        choose(Problem("linear", 1, 1, 1))


def test_shape_predicates_are_asked() -> None:
    name = f"test.cpu.linear.small.{uuid.uuid4().hex[:8]}"
    register(name, "bf16", lambda x, w: x.bfloat16().float() @ w.dequantize().T, library="test", trusted=True,
             accepts=lambda m, n, k: m <= 4, gmacs_per_s=1e6, gbytes_per_s=1e6, overhead_us=0.0)  # fmt: skip
    try:
        assert choose(Problem("linear", 4, 8, 8, numerics="bf16")).kernel == name
        assert choose(Problem("linear", 5, 8, 8, numerics="bf16")).kernel != name
    finally:
        kernels.by_name(name).quarantine("the test that made it is over")
        kernels.new_generation()


def test_bad_problems_and_registrations() -> None:
    with pytest.raises(ValueError, match="op: found 'conv'"):
        Problem("conv", 1, 1, 1)
    with pytest.raises(ValueError, match="m: expected a size >= 0, found -1"):
        Problem("linear", -1, 1, 1)
    with pytest.raises(ValueError, match="x_dtype: found 'float64'"):
        Problem("linear", 1, 1, 1, x_dtype="float64")
    with pytest.raises(ValueError, match="errors: found 'int4'"):
        choose(PROBLEM, evidence=Evidence({"int4": {}}))
    with pytest.raises(ValueError, match="a kernel named torch.cpu.linear.bf16 exists already"):
        register("torch.cpu.linear.bf16", "bf16", lambda x, w: x, library="torch")
    with pytest.raises(ValueError, match="library 'octavo' is for kernels compiled into octavo"):
        register("x", "bf16", lambda x, w: x, library="octavo")
    with pytest.raises(RuntimeError, match="no kernel may serve"):
        choose(Problem("linear", 1, 1, 1, device="cuda"))
