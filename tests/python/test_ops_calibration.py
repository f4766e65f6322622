"""Costs fitted to this machine: the fit, the file, and what dispatch makes of them."""

import json
import warnings

import pytest
import torch

from octavo import _calibration_cache, _core
from octavo.ops import kernels
from octavo.ops.dispatch import Fit, Problem, calibrate, calibration, choose, explain

PROBLEM = Problem("linear", 200, 96, 160, epilogue="bias+rms")


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _core.forget_costs()
    calibration.use(())
    yield
    _core.forget_costs()
    calibration.use(())


def _synthetic(problem: Problem, rows: list[_core.Kernel]) -> dict[str, float]:
    """Every kernel costs what COEFFICIENTS say, by the class."""
    features = _core.cost_features(problem.core())
    return {row.name: sum(a * b for a, b in zip(_coefficients(row.name), features, strict=True)) for row in rows}


def _coefficients(name: str) -> list[float]:
    size = 1.0 + sum(name.encode()) % 7
    return [size, 0.0, 0.01 * size, 0.2, 0.5 / size, 0.0, 1.0, 0.25]


def _fresh_process() -> None:
    """As if nothing had been loaded yet."""
    calibration.use(())
    calibration._loaded = None


def test_the_fit_recovers_known_coefficients() -> None:
    g = torch.Generator().manual_seed(1)
    features = torch.rand(40, 8, generator=g, dtype=torch.float64)
    truth = torch.tensor([2.0, 0.0, 0.01, 3.0, 0.0, 0.0, 0.7, 1e-3], dtype=torch.float64)
    found, error = calibration.fit(features.tolist(), (features @ truth).tolist())
    assert torch.allclose(torch.tensor(found, dtype=torch.float64), truth, atol=1e-8)
    assert error < 1e-9


def test_the_fit_is_never_negative_and_says_how_far_off_it_is() -> None:
    g = torch.Generator().manual_seed(2)
    features = torch.rand(40, 8, generator=g, dtype=torch.float64)
    times = 5 - 3 * features[:, 0] + torch.rand(40, generator=g, dtype=torch.float64)
    found, error = calibration.fit(features.tolist(), times.tolist())
    assert min(found) >= 0
    assert 0.01 < error < 0.5
    assert found[0] == 0  # what a negative coefficient would have explained


def test_calibration_replaces_priors_and_survives_the_process() -> None:
    before = choose(PROBLEM)
    assert "us prior)" in before.reason
    fits = calibrate(measured=_synthetic)
    assert {fit.io for fit in fits} == {"float32", "bfloat16"}
    assert all(fit.error < 1e-6 for fit in fits)
    expected = _synthetic(PROBLEM, [kernels.by_name(fit.kernel) for fit in fits if fit.io == "float32"])
    decision = choose(PROBLEM)
    assert decision.predicted_us == pytest.approx(min(expected.values()), rel=1e-6)
    assert expected[decision.kernel] == pytest.approx(min(expected.values()))
    assert "us calibrated)" in decision.reason
    rows = {a.kernel: a for a in decision.alternatives if a.source == "calibrated"}
    for name, us in expected.items():
        assert name == decision.kernel or rows[name].predicted_us == pytest.approx(us, rel=1e-6)
    assert "calibrated" in explain(PROBLEM)
    _fresh_process()
    again = choose(PROBLEM)
    assert (again.kernel, again.predicted_us) == (decision.kernel, decision.predicted_us)


def test_what_was_measured_comes_before_what_was_fitted() -> None:
    calibrate(measured=_synthetic)
    name = choose(PROBLEM).alternatives[0].kernel
    _core.record_cost(kernels.by_name(name), PROBLEM.core(), 1e-3)
    decision = choose(PROBLEM)
    assert decision.kernel == name
    assert "us measured)" in decision.reason
    assert {a.source for a in decision.alternatives if a.admitted} == {"calibrated"}


def test_other_types_and_other_numbers_of_threads_keep_their_priors() -> None:
    calibrate(measured=_synthetic)
    assert "us prior)" in choose(Problem("linear", 200, 96, 160, out_dtype="bfloat16")).reason
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert "us prior)" in choose(PROBLEM).reason
    finally:
        torch.set_num_threads(threads)
    assert "us calibrated)" in choose(PROBLEM).reason


def test_calibration_need_not_be_kept() -> None:
    calibrate(measured=_synthetic, keep=False)
    assert "us calibrated)" in choose(PROBLEM).reason
    assert not _calibration_cache.path().exists()


@pytest.mark.parametrize(
    "damage",
    ["{ not json", "[]", '{"version": 2}', '{"version": 2, "kept": {"a": {"float32": {"coefficients": [1]}}}}',
     '{"version": 2, "kept": {"a": {"float32": {"coefficients": [-1,0,0,0,0,0,0,0], "error": 0, "samples": 1}}}}'],
)  # fmt: skip
def test_a_damaged_file_is_ignored_with_a_hint(damage) -> None:
    calibrate(measured=_synthetic)
    _calibration_cache.path().write_text(damage)
    _fresh_process()
    with pytest.warns(RuntimeWarning, match=r"is damaged .* and ignored; run octavo doctor --calibrate"):
        decision = choose(PROBLEM)
    assert "us prior)" in decision.reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(PROBLEM)  # said once
    calibrate(measured=_synthetic)
    _fresh_process()
    assert "us calibrated)" in choose(PROBLEM).reason


def test_a_file_of_another_version_is_none() -> None:
    calibrate(measured=_synthetic)
    content = json.loads(_calibration_cache.path().read_text())
    _calibration_cache.path().write_text(json.dumps({**content, "version": 0}))
    _fresh_process()
    assert "us prior)" in choose(PROBLEM).reason


def test_fits_of_kernels_that_are_gone_are_left_out() -> None:
    calibration.use([Fit("cuda.sm120.linear.bf16", "float32", (1.0,) * 8, 0.0, 40)])
    assert "us prior)" in choose(PROBLEM).reason


def test_features_are_the_work_of_the_problem() -> None:
    small = _core.cost_features(Problem("linear", 2, 3, 5, epilogue="bias+layer").core())
    assert small == pytest.approx([1, 0, 0.03, 0.015, 0.010, 0.006, 2, 0.012])
    threads = _core.threads()
    large = _core.cost_features(Problem("linear", 100, 200, 300).core())
    assert large == pytest.approx(
        [1, float(threads > 1), 6000 / threads, 60 / threads, 30 / threads, 20 / threads, 0, 0]
    )


def test_real_kernels_are_timed() -> None:
    shares: list[float] = []
    fits = calibrate(0.01, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    names = {fit.kernel for fit in fits}
    assert "torch.cpu.linear.fp32" in names
    assert {fit.kernel for fit in fits if fit.kernel.startswith("cpu.")}
    assert all(fit.samples >= 12 and len(fit.coefficients) == 8 and min(fit.coefficients) >= 0 for fit in fits)
    kept = _calibration_cache.read()
    assert set(kept) == names
