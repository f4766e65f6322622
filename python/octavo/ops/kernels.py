"""The Python side of the one table of kernels: which may run, how other libraries' rows are run, when to forget.

Every memo of a chosen kernel holds the ``generation`` it was made in; quarantining a kernel or forcing another
instruction set starts a new one. Where costs decided it also holds the number of threads they were for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from octavo import _core
from octavo.ops._types import DTYPES

# How kernels of other libraries are run, by name: run(x [M, K], weight) -> x W^T [M, N].
externals: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {}
# Those of them that run a whole layer, epilogue and all: registration.Chain.
chains: dict[str, Callable[..., torch.Tensor]] = {}
# The shapes (m, n, k) that those take which do not take all.
limits: dict[str, Callable[[int, int, int], bool]] = {}
generation = 0
_serving: dict[tuple[Any, ...], _core.Kernel] = {}
_own: dict[tuple[Any, ...], bool] = {}


def new_generation() -> None:
    """Forget every chosen kernel."""
    global generation
    generation = _core.new_generation()
    _serving.clear()
    _own.clear()


def force_isa(level: str) -> None:
    """Run with instruction set ``baseline | avx2 | avx512`` from now on, as ``OCTAVO_ISA`` does at start-up.

    Kernels are qualified anew at that level. Raises ValueError for a level this CPU lacks.
    """
    _core.force_isa(level)
    for kernel in _core.kernels():
        if kernel.library == "octavo":
            kernel.forget()
    new_generation()


@contextmanager
def early_launches(allowed: bool = True) -> Iterator[None]:
    """Inside, octavo's CUDA kernels may start while the kernel before them still runs (programmatic dependent launch).

    Each waits at its start until that one is done, so results have the same bits; what is saved is a part of the
    launches, microseconds of a small layer's time. Outside it is off: no device has measured it yet. It holds for all
    threads of the process, and a CUDA graph keeps what held when it was recorded. Without effect where kernels do not
    run on a device of Hopper or later.
    """
    before = _core.start_launches_early(allowed)
    try:
        yield
    finally:
        _core.start_launches_early(before)


def by_name(name: str) -> _core.Kernel:
    """A row of the table. Raises KeyError for a name that is not there."""
    return _core.kernel(name)


def serving(op: _core.Op, words: tuple[str, ...]) -> _core.Kernel:
    """The preferred qualified kernel of ``op`` whose formats allow ``words`` (device, then left to right).

    Formats read ``float32|bfloat16 -> e4m3, row``; with the device alone any format will do. Rows registered later are
    hand-written for fewer formats and go first. Raises RuntimeError when none qualified.
    """
    key = (op, *words)
    kernel = _serving.get(key)
    if kernel is None:
        from octavo.ops import qualification

        qualification.ensure(op)
        device = _core.Device.cuda if words[0] == "cuda" else _core.Device.cpu
        rows = [k for k in _core.kernels() if k.op == op and k.device == device and k.supported]
        able = [k for k in rows if allows(k.formats, words[1:])]
        usable = [k for k in able if k.state in ("trusted", "qualified")]
        if not usable:
            found = ", ".join(f"{k.name} ({k.state})" for k in able) or "none registered"
            raise RuntimeError(f"{op.name}: no usable kernel for {', '.join(words)}; found {found}{why_not(words[0])}")
        kernel = usable[-1]
        if qualification.is_settled(op):
            _serving[key] = kernel
    return kernel


def kept(op: _core.Op, words: tuple[str, ...]) -> _core.Kernel | None:
    """The kernel that :func:`serving` will give for as long as this generation lasts; None where it may yet change."""
    return _serving.get((op, *words))


def why_not(device: str) -> str:
    """What keeps octavo's kernels from serving this kind of device, as the end of an error."""
    problem = _core.cuda_problem() if device == "cuda" else ""
    return f"; {problem}" if problem else ""


def has_own(op: _core.Op, device: str, numerics: str | None = None) -> bool:
    """Whether octavo itself has a qualified kernel of ``op`` (and class) for this kind of device."""
    key = (op, device, numerics)
    found = _own.get(key)
    if found is None:
        from octavo.ops import qualification

        qualification.ensure(op)
        found = any(
            k.op == op and k.library == "octavo" and k.device.name == device and k.supported and k.state == "qualified"
            and (numerics is None or k.numerics.name == numerics)
            for k in _core.kernels()
        )  # fmt: skip
        if qualification.is_settled(op):
            _own[key] = found
    return found


def allows(formats: str, words: tuple[str, ...]) -> bool:
    """Whether a kernel's ``formats`` (``float32|bfloat16 -> e4m3, row``) has each of ``words`` in its place, if any."""
    if not words:
        return True
    columns = formats.replace(" -> ", ", ").split(", ")
    return len(columns) == len(words) and all(w in c.split("|") for w, c in zip(words, columns, strict=True))


def stream_of(tensor: torch.Tensor) -> int:
    """torch's current stream where ``tensor`` lives; 0 on a CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def run_quantize(
    kernel: _core.Kernel,
    rows: torch.Tensor,
    format: _core.DType,
    scaling: _core.Scaling,
    pow2_scale: bool,
    data: torch.Tensor,
    scale: torch.Tensor,
) -> None:
    """Launch one quantizer on ``rows`` [M, K] into ``data`` and ``scale``."""
    m, k = rows.shape
    _core.quantize(
        kernel,
        rows.data_ptr(),
        m,
        k,
        rows.stride(0) if m > 1 else k,
        DTYPES[rows.dtype],
        format,
        scaling,
        pow2_scale,
        data.data_ptr(),
        scale.data_ptr(),
        stream_of(rows),
    )
