"""Problems timed once on this machine, tiles of octavo's GEMMs and then kernels, and kept between processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from octavo import _core, _tuning_cache
from octavo.ops import kernels
from octavo.ops._types import NORMS
from octavo.ops.dispatch.choice import judge
from octavo.ops.dispatch.measure import interleaved, timed
from octavo.ops.dispatch.problem import Problem
from octavo.ops.linear_call import CODE_FORMATS

# What octavo's classes multiply on Hopper, and the elements that an operand's rows are padded to; e4m3_block has one
# instantiation, and nothing to choose.
PRODUCTS = {"bf16": ("bf16", 8), "e4m3_row": ("e4m3", 16), "e4m3_row_fast": ("e4m3_fast", 16)}
_PREFIX = "cuda.sm90.linear."
_ONLY_MEASURED = "is chosen only where it was timed"  # as the core words it


@dataclass(frozen=True)
class Product:
    """One GEMM of a layer, as ``_core.rank_gemm_tiles`` takes it."""

    product: str
    m: int
    n: int
    k: int
    d_is_f32: bool = False
    norm: bool = False

    def tiles(self) -> list[str]:
        """The instantiations that make it, the fastest first by what is known."""
        return [name for name, _ in _core.rank_gemm_tiles(**asdict(self))]


@dataclass(frozen=True)
class Tuned:
    """What was measured of a problem: us by kernel, and us by tile of each product with a choice."""

    problem: Problem
    kernels: Mapping[str, float]
    tiles: Mapping[Product, Mapping[str, float]]


def tune(
    problems: Problem | Iterable[Problem],
    budget_s: float = 1.0,
    *,
    compiled: bool = False,
    keep: bool = True,
    progress: Callable[[int], None] | None = None,
    measured: Callable[[Problem, list[_core.Kernel], float], Mapping[str, float]] | None = None,
    tiles: Callable[[Product, list[str], float], Mapping[str, float]] | None = None,
) -> tuple[Tuned, ...]:
    """Time what can serve each linear problem, let dispatch choose by it, and ``keep`` it for later processes.

    On CUDA the tiles of octavo's own GEMMs come first, then, with the fastest of them, every library's kernels that
    take the problem; on a CPU, kernels alone. Within ``budget_s`` a problem, about; a few slow calls can take longer.
    What was tuned is known for all numbers of rows up to the next power of two. ``compiled``: time kernels too that
    compile at their first call, which takes seconds that the budget does not count. ``progress(problems done)`` is
    called after each. ``measured(problem, kernels, budget_ms each) -> name -> us`` and ``tiles(product, names,
    budget_ms each) -> name -> us`` replace the timing (tests). Raises TypeError for what is no problem,
    ValueError for one that is not linear.
    """
    problems = list(problems) if isinstance(problems, Iterable) else [problems]
    for problem in problems:
        if not isinstance(problem, Problem):
            raise TypeError(f"problems: expected an octavo.ops.dispatch.Problem or several, found {problem!r}")
        if problem.op != "linear":
            raise ValueError(f"problems: only linear problems are tuned, found op {problem.op!r}")
    load()
    found = []
    for done, problem in enumerate(problems):
        found.append(_tuned(problem, budget_s * 1e3, compiled, measured or timed, tiles or time_tiles))
        use(found[-1:])
        if progress is not None:
            progress(done + 1)
    if keep and found:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # load() has said it
            kept = _tuning_cache.read()
        _tuning_cache.write({**kept, **{_name(t.problem): _content(t) for t in found}})
    return tuple(found)


def _tuned(
    problem: Problem,
    budget_ms: float,
    compiled: bool,
    measured: Callable[[Problem, list[_core.Kernel], float], Mapping[str, float]],
    tiles: Callable[[Product, list[str], float], Mapping[str, float]],
) -> Tuned:
    rows = [c.kernel for c in judge(problem).candidates
            if c.admitted or (compiled and c.kernel.only_measured and c.reason.startswith(_ONLY_MEASURED))]  # fmt: skip
    products = {product: names for product in products_of(problem, rows) if len(names := product.tiles()) > 1}
    each = budget_ms / (2 * max(sum(map(len, products.values())), 1))
    times = {product: dict(tiles(product, names, each)) for product, names in products.items()}
    _use_tiles(times)
    return Tuned(problem, dict(measured(problem, rows, budget_ms / (2 * max(len(rows), 1)))), times)


def products_of(problem: Problem, rows: Sequence[_core.Kernel]) -> list[Product]:
    """The GEMMs that octavo's kernels among ``rows`` may run for ``problem`` (cuda/gemm/layer_plan.cpp): the layer
    whole, or with its norm in the kernel, or in steps, whose product is BF16 where the norm takes no mean off and y is
    not FP32, else FP32. Of layers that write codes those in steps alone."""
    words = problem.epilogue.split("+")
    norm = next((word for word in words if word in NORMS), None)
    has_norm = norm is not None
    codes = getattr(torch, problem.out_dtype) in CODE_FORMATS
    in_f32 = problem.out_dtype == "float32" or (norm == "layer" if has_norm else codes)
    found = []
    for row in rows:
        if problem.m == 0 or not row.name.startswith(_PREFIX) or row.numerics.name not in PRODUCTS:
            continue
        product, step = PRODUCTS[row.numerics.name]
        k = -(-max(problem.k, 1) // step) * step
        found.append(Product(product, problem.m, problem.n, k, in_f32))
        if has_norm and problem.out_dtype == "bfloat16":
            found.append(Product(product, problem.m, problem.n, k, norm=True))
    return found


def time_tiles(product: Product, names: list[str], budget_ms: float) -> dict[str, float]:
    """us of each instantiation on random operands, in CUDA graphs."""
    return interleaved(tile_calls(product, names), budget_ms, "cuda")


def tile_calls(product: Product, names: Iterable[str]) -> dict[str, Callable[[], object]]:
    """Each instantiation on the same random operands, on the current stream."""
    dtype = torch.bfloat16 if product.product == "bf16" else torch.float8_e4m3fn
    m, n, k = product.m, product.n, product.k
    x, w = (torch.randn(rows, k, device="cuda").to(dtype) for rows in (m, n))
    d = torch.empty(m, n, device="cuda", dtype=torch.float32 if product.d_is_f32 else torch.bfloat16)

    def run(name: str) -> None:
        _core.run_gemm_tile(name, m, n, k, x.data_ptr(), w.data_ptr(), 0, 0, d.data_ptr(), product.d_is_f32,
                            kernels.stream_of(d))  # fmt: skip

    return {name: partial(run, name) for name in names}


def use(found: Iterable[Tuned]) -> None:
    """Let dispatch choose by these times."""
    here = {kernel.name: kernel for kernel in _core.kernels()}
    for tuned in found:
        _use_tiles(tuned.tiles)
        for name, us in tuned.kernels.items():
            if name in here:
                _core.record_cost(here[name], tuned.problem.core(), us)
    kernels.new_generation()


def _use_tiles(times: Mapping[Product, Mapping[str, float]]) -> None:
    here = {tile["name"] for tile in _core.gemm_tiles()}
    for product, us in times.items():
        _core.keep_gemm_times({name: t for name, t in us.items() if name in here}, **asdict(product))


def load() -> None:
    """Use what earlier processes kept for this machine and number of threads; looked for once."""
    global _loaded
    where = _core.isa(), _core.threads()
    if _loaded == where:
        return
    _loaded = where
    content = _tuning_cache.read()
    if content:
        try:
            found = [_tuned_of(row) for row in content.values()]
        except (TypeError, ValueError, KeyError) as error:
            warnings.warn(f"octavo: {_tuning_cache.path()} holds other problems than octavo's ({error}) and is "
                          f"ignored; {_tuning_cache.HINT}", RuntimeWarning, stacklevel=2)  # fmt: skip
            return
        use(found)


_loaded: tuple[str, int] | None = None


def _name(problem: Problem) -> str:
    """Of all problems that the times of this one are for."""
    return "/".join(str(value) for value in {**asdict(problem), "m": f"bucket {_core.m_bucket(problem.m)}"}.values())


def _content(tuned: Tuned) -> dict[str, Any]:
    tiles = [{**asdict(product), "us": dict(us)} for product, us in tuned.tiles.items()]
    return {"problem": asdict(tuned.problem), "kernels": dict(tuned.kernels), "tiles": tiles}


def _tuned_of(row: Mapping[str, Any]) -> Tuned:
    tiles = {Product(**{k: v for k, v in tile.items() if k != "us"}): tile["us"] for tile in row["tiles"]}
    for product in tiles:
        product.tiles()  # raises for words that are none
    problem = Problem(**row["problem"])
    problem.core()  # likewise
    return Tuned(problem, row["kernels"], tiles)
