"""A kernel may be chosen only after it ran on this machine and agreed with an FP64 reference.

Kernels are checked lazily when their family is first asked for, or all at once by ``octavo doctor --qualify``, through
the route their calls really take. Verdicts are kept per machine and build. A kernel that fails is quarantined with one
warning and the next candidate runs, so a kernel that never ran on some hardware can never silently be wrong there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from octavo import _core, _qualification_cache
from octavo.ops import kernels

# A check returns '' or what it found: shape, expected and found error.
Check = Callable[[_core.Kernel], str]


def _checks() -> dict[_core.Op, Check]:
    from octavo.ops import add_norm_checks, backward_checks, checks, embedding_checks, pairwise_checks

    return {
        _core.Op.linear: checks.check_linear,
        _core.Op.quantize: checks.check_quantize,
        _core.Op.bag_forward: embedding_checks.check_bag_forward,
        _core.Op.row_lookup: embedding_checks.check_row_lookup,
        _core.Op.find_rows: embedding_checks.check_find_rows,
        _core.Op.bag_backward: embedding_checks.check_bag_backward,
        _core.Op.linear_epilogue_backward: backward_checks.check_epilogue_backward,
        _core.Op.linear_grad_input: backward_checks.check_grad_input,
        _core.Op.linear_grad_weight: backward_checks.check_grad_weight,
        _core.Op.pairwise_dots: pairwise_checks.check_pairwise_dots,
        _core.Op.add_norm: add_norm_checks.check_add_norm,
    }


def check_of(op: _core.Op) -> Check:
    """What kernels of ``op`` are held to; its docstring says it in words."""
    return _checks()[op]


_RAISED = "raised "
_running = False


def ensure(op: _core.Op) -> None:
    """Qualify the supported kernels of ``op`` that are still unknown. Never while tracing or capturing a CUDA graph."""
    global _running
    unknown = [k for k in _core.kernels() if k.op == op and k.state == "unknown" and k.supported]
    if not unknown or _running or torch.compiler.is_compiling():
        return
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        warnings.warn(
            f"kernels of {op.name} cannot be checked while a CUDA graph is captured, so octavo's are left out of it: "
            "run the same once before (ops.dispatch.qualify() checks every kernel)",
            stacklevel=2,
        )
        return
    if op != _core.Op.quantize:
        ensure(_core.Op.quantize)  # classes that quantize their operands stand on it
    _running = True
    try:
        known, fresh = _qualification_cache.read(), {}
        for kernel in unknown:
            entry = _qualification_cache.entry(kernel)
            if entry not in known:
                known[entry] = fresh[entry] = _verdict(kernel)
            settle(kernel, known[entry])
        _keep(fresh)
    finally:
        _running = False
        kernels.new_generation()


def is_settled(op: _core.Op) -> bool:
    """Whether every supported kernel of ``op`` has been checked: what was chosen before then is not to be kept."""
    return not any(k.op == op and k.state == "unknown" and k.supported for k in _core.kernels())


def qualify(fresh: bool = False) -> dict[str, str]:
    """Qualify every kernel now; ``fresh`` checks again what was checked before. Returns name -> state."""
    if fresh:
        rows = [k for k in _core.kernels() if k.supported and k.state != "trusted"]
        for kernel in rows:
            kernel.forget()
        for kernel in sorted(rows, key=lambda k: k.op != _core.Op.quantize):
            check_again(kernel)
    for op in _core.Op:
        ensure(op)
    return {k.name: k.state if k.supported else "unsupported" for k in _core.kernels()}


def check_again(kernel: _core.Kernel) -> str:
    """Check one kernel, whatever is known of it. Returns why it failed, or an empty string."""
    if kernel.op != _core.Op.quantize:
        ensure(_core.Op.quantize)
    verdict = _verdict(kernel)
    settle(kernel, verdict)
    kernels.new_generation()
    _keep({_qualification_cache.entry(kernel): verdict})
    return verdict


def _keep(verdicts: dict[str, str]) -> None:
    """Write verdicts to the cache, but for exceptions: their cause may be gone tomorrow."""
    lasting = {entry: verdict for entry, verdict in verdicts.items() if not verdict.startswith(_RAISED)}
    if lasting:
        _qualification_cache.write(lasting)


def settle(kernel: _core.Kernel, verdict: str) -> None:
    """Enter a verdict into the table; a bad one is said aloud, once."""
    if not verdict:
        kernel.qualify()
        return
    kernel.quarantine(verdict)
    warnings.warn(
        f"octavo: kernel {kernel.name} is quarantined on this machine: {verdict}", RuntimeWarning, stacklevel=3
    )


def _verdict(kernel: _core.Kernel) -> str:
    generator_state = torch.random.get_rng_state()
    try:
        with torch.no_grad():
            return check_of(kernel.op)(kernel)
    except Exception as error:  # a kernel that raises is as unusable as one that is wrong
        return f"{_RAISED}{type(error).__name__}: {error}"
    finally:
        torch.random.set_rng_state(generator_state)
