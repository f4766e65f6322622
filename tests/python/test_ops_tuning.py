"""Tuning with made-up times: what dispatch and the choice of tiles make of them, in this process and in later ones."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import _core, _tuning_cache, ops
from octavo.ops import kernels
from octavo.ops.dispatch import Problem, calibration, choose, explain, tune, tuning
from octavo.ops.dispatch.tuning import Product

PROBLEM = Problem("linear", 200, 96, 160, epilogue="bias+rms")
ON_CUDA = Problem("linear", 4096, 512, 1024, "bfloat16", "bfloat16", "bias+silu", "cuda")


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calibration.use(())
    _forget()
    yield
    _forget()


def _forget() -> None:
    """As if nothing had been measured or looked for."""
    _core.forget_costs()
    _core.forget_gemm_times()
    tuning._loaded = None
    kernels.new_generation()


def _slowest_first(problem: Problem, rows: list[_core.Kernel], budget_ms: float) -> dict[str, float]:
    """The last admitted kernel is the fastest."""
    return {row.name: 100.0 - at for at, row in enumerate(rows)}


def _tiles(product: Product, names: list[str], budget_ms: float) -> dict[str, float]:
    """So are tiles."""
    return {name: 50.0 - at for at, name in enumerate(names)}


class _Row:
    """A CUDA kernel that this machine lacks, as the table would have it."""

    def __init__(self, numerics: str) -> None:
        self.name, self.numerics = f"cuda.sm90.linear.{numerics}", _core.Numerics[numerics]


def test_the_fastest_is_chosen_here_and_in_later_processes() -> None:
    before = choose(PROBLEM)
    (tuned,) = tune(PROBLEM, measured=_slowest_first)
    best = min(tuned.kernels, key=lambda name: tuned.kernels[name])
    assert best != before.kernel
    assert tuned.tiles == {}  # of a CPU there are none
    assert choose(PROBLEM).kernel == best
    assert "us measured)" in choose(PROBLEM).reason
    assert choose(Problem("linear", 129, 96, 160, epilogue="bias+rms")).kernel == best  # up to the next power of two
    assert "us prior)" in choose(Problem("linear", 128, 96, 160, epilogue="bias+rms")).reason
    _forget()
    again = choose(PROBLEM)
    assert (again.kernel, "us measured)" in again.reason) == (best, True)


def test_what_is_not_kept_is_gone() -> None:
    tune(PROBLEM, keep=False, measured=_slowest_first)
    assert not _tuning_cache.path().exists()
    _forget()
    assert "us prior)" in choose(PROBLEM).reason


def test_a_problem_tuned_again_replaces_its_bucket_and_leaves_the_others() -> None:
    other = Problem("linear", 7, 32, 32)
    tune([PROBLEM, other], measured=_slowest_first)
    first = choose(PROBLEM).kernel
    tune(Problem("linear", 256, 96, 160, epilogue="bias+rms"),
         measured=lambda p, rows, ms: {row.name: 1.0 + at for at, row in enumerate(reversed(rows))})  # fmt: skip
    assert len(_tuning_cache.read()) == 2
    second = choose(PROBLEM).kernel
    _forget()
    assert choose(PROBLEM).kernel == second
    assert first in {a.kernel for a in (choose(PROBLEM)).alternatives} | {second}
    assert "us measured)" in choose(other).reason


def test_tiles_come_before_kernels_and_survive_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [_Row("bf16"), _Row("e4m3_row")]
    whole = tuning.products_of(ON_CUDA, rows)
    assert whole == [Product("bf16", 4096, 512, 1024), Product("e4m3", 4096, 512, 1024)]
    models = {product: product.tiles() for product in whole}
    seen: list[str] = []

    def kernels_after_tiles(problem: Problem, found: list[Any], budget_ms: float) -> dict[str, float]:
        seen.extend(product.tiles()[0] for product in whole)
        return {}

    monkeypatch.setattr(tuning, "products_of", lambda problem, found: whole)
    (tuned,) = tune(ON_CUDA, measured=kernels_after_tiles, tiles=_tiles)
    assert seen == [names[-1] for names in models.values()]
    assert tuned.tiles == {product: _tiles(product, names, 0.0) for product, names in models.items()}
    assert [product.tiles()[0] for product in whole] == seen
    _forget()
    assert [product.tiles()[0] for product in whole] == [names[0] for names in models.values()]
    tuning.load()
    assert [product.tiles()[0] for product in whole] == seen


@pytest.mark.parametrize(
    ("epilogue", "x", "out", "expected"),
    [
        ("", "bfloat16", "bfloat16", [(False, False)]),
        ("bias+silu+residual", "bfloat16", "bfloat16", [(False, False)]),
        ("bias", "float32", "float32", [(True, False)]),
        ("bias", "bfloat16", "float8_e4m3fn", [(True, False)]),
        ("bias+layer+silu", "bfloat16", "bfloat16", [(True, False), (False, True)]),
        ("layer+silu+residual", "bfloat16", "bfloat16", [(True, False), (False, True)]),
        ("bias+rms+silu", "bfloat16", "bfloat16", [(False, False), (False, True)]),
        ("block", "bfloat16", "float8_e4m3fn", [(False, False)]),
        ("layer", "bfloat16", "float8_e4m3fn", [(True, False)]),
        ("rms", "bfloat16", "float32", [(True, False)]),
    ],
)
def test_the_products_of_a_layer(epilogue: str, x: str, out: str, expected: list[tuple[bool, bool]]) -> None:
    problem = Problem("linear", 100, 128, 70, x, out, epilogue, "cuda")
    found = tuning.products_of(problem, [_Row("e4m3_row_fast"), *_core.kernels()[:1]])
    assert [(p.d_is_f32, p.norm) for p in found] == expected
    assert {(p.product, p.m, p.n, p.k) for p in found} == {("e4m3_fast", 100, 128, 80)}


def test_real_times_on_this_machine() -> None:
    (tuned,) = tune(Problem("linear", 16, 32, 48), budget_s=0.05, keep=False)
    assert tuned.kernels
    assert all(us > 0 for us in tuned.kernels.values())
    decision = choose(Problem("linear", 16, 32, 48))
    assert decision.predicted_us == pytest.approx(min(tuned.kernels.values()))


def test_only_linear_problems_are_tuned() -> None:
    with pytest.raises(ValueError, match="problems: only linear problems are tuned, found op 'quantize'"):
        tune(Problem("quantize", 1, 1, 1))
    for wrong in ("linear", 3, [None]):
        with pytest.raises(TypeError, match="problems: expected an octavo.ops.dispatch.Problem or several, found"):
            tune(wrong)  # type: ignore[arg-type]


def test_progress_is_told() -> None:
    seen: list[int] = []
    tune([PROBLEM, Problem("linear", 7, 32, 32)], keep=False, measured=_slowest_first, progress=seen.append)
    assert seen == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: "{ not json",
        lambda content: json.dumps({**content, "kept": {"a": {}}}),
        lambda content: json.dumps({**content, "kept": {"a": {"problem": {"m": 1}, "kernels": {}, "tiles": []}}}),
        lambda content: json.dumps(content).replace("100.0", "-1.0"),
        lambda content: json.dumps(content).replace('"bias+rms"', "7"),
        lambda content: json.dumps(content).replace('"float32"', '"float99"'),
        lambda content: "\x80",
    ],
)
def test_a_damaged_file_is_ignored_with_a_hint(change: Any) -> None:
    tune(PROBLEM, measured=_slowest_first)
    path = _tuning_cache.path()
    path.write_text(change(json.loads(path.read_text())), encoding="latin-1")
    _forget()
    with pytest.warns(RuntimeWarning, match=r"is ignored|and ignored; call octavo\.ops\.dispatch\.tune again"):
        decision = choose(PROBLEM)
    assert "us prior)" in decision.reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(PROBLEM)  # said once
    tune(PROBLEM, measured=_slowest_first)
    _forget()
    assert "us measured)" in choose(PROBLEM).reason


def test_another_version_and_kernels_that_are_gone_are_left_out() -> None:
    tune(PROBLEM, measured=lambda *_: {"cuda.sm120.linear.bf16": 1.0})
    _forget()
    assert "us prior)" in choose(PROBLEM).reason
    tune(PROBLEM, measured=_slowest_first)
    content = json.loads(_tuning_cache.path().read_text())
    _tuning_cache.path().write_text(json.dumps({**content, "version": 0}))
    _forget()
    assert "us prior)" in choose(PROBLEM).reason


def test_where_nothing_can_be_written_times_live_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    tune(PROBLEM, measured=_slowest_first)
    assert "us measured)" in choose(PROBLEM).reason


def test_what_compiles_is_chosen_only_where_it_was_timed() -> None:
    ran: list[tuple[Any, ...]] = []

    def product(x: torch.Tensor, w: ops.PackedWeight) -> torch.Tensor:
        ran.append(("product",))
        return x.bfloat16().float() @ w.codes.float().T

    def chain(x: torch.Tensor, w: ops.PackedWeight, bias: Any, norm: Any, activation: Any, residual: Any, before: bool,
              out_dtype: torch.dtype) -> torch.Tensor:  # fmt: skip
        ran.append(("chain", before, out_dtype))
        return ops.epilogue.apply_epilogue(product(x, w), bias, norm, activation, residual, before).to(out_dtype)

    name = "testing.cpu.linear.bf16_compiled"
    ops.dispatch.register(name, "bf16", product, library="testing", chain=chain, only_measured=True, trusted=True,
                          overhead_us=0.0, gmacs_per_s=1e9, gbytes_per_s=1e9)  # fmt: skip
    try:
        problem = Problem("linear", 30, 24, 16, epilogue="bias+layer+silu", numerics="bf16")
        assert choose(problem).kernel != name
        assert "is chosen only where it was timed (octavo.ops.dispatch.tune)" in explain(problem)

        def fastest(found: Problem, rows: list[_core.Kernel], budget_ms: float) -> Mapping[str, float]:
            return {row.name: 1.0 if row.name == name else 9.0 for row in rows}

        assert name not in tune(problem, keep=False, measured=fastest)[0].kernels
        assert name in tune(problem, keep=False, compiled=True, measured=fastest)[0].kernels
        assert choose(problem).kernel == name
        x, weight = torch.randn(30, 16), torch.randn(24, 16)
        bias, norm = torch.randn(24), ops.Norm("layer", torch.ones(24), torch.zeros(24))
        w = ops.pack_weight(weight, "bf16")
        ran.clear()
        y = ops.linear(x, w, bias, norm, "silu")
        assert ran == [("chain", False, torch.float32), ("product",)]
        z = x.bfloat16().float() @ weight.bfloat16().float().T
        expected = torch.nn.functional.silu(torch.nn.functional.layer_norm(z + bias, (24,)))
        assert torch.allclose(y, expected, atol=1e-5)
        out = torch.empty(30, 24)
        assert ops.linear(x, w, bias, norm, "silu", out=out) is out
        assert torch.equal(out, y)
    finally:
        kernels.by_name(name).quarantine("of a test")
        kernels.new_generation()
