"""What may multiply at a site: octavo's numerics classes by the kernels that really run, and kernels of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from octavo.loka.findings import DIRECTIONS
from octavo.ops._types import NUMERICS, choice
from octavo.ops.dispatch import Problem
from octavo.ops.dispatch.choice import judge
from octavo.ops.dispatch.plan import LOW_PRECISION
from octavo.ops.linear_backward import BACKWARDS, gradients
from octavo.ops.linear_call import Layer, run
from octavo.ops.packing import pack_as

# The kernels of each direction: what registry and dispatch call them.
OPS = {"forward": "linear", "grad_input": "linear_grad_input", "grad_weight": "linear_grad_weight"}
_GRADIENTS = {  # class of the product -> the ``backward`` whose first (grad_input) or second (grad_weight) it is
    "grad_input": {pair[0]: name for name, pair in BACKWARDS.items() if pair},
    "grad_weight": {pair[1]: name for name, pair in reversed(BACKWARDS.items()) if pair},
}


@dataclass(frozen=True)
class Operands:
    """One draw: x [M, K], gradient of the product [M, N], weight [N, K], bias [N] or None; FP32."""

    x: torch.Tensor
    grad: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None

    def exact(self, direction: str) -> torch.Tensor:
        """The direction's product in FP64."""
        if direction == "forward":
            z = self.x.double() @ self.weight.double().T
            return z if self.bias is None else z + self.bias.double()
        if direction == "grad_input":
            return self.grad.double() @ self.weight.double()
        return self.grad.double().T @ self.x.double()


@dataclass(frozen=True)
class Candidate:
    """A kernel to be judged beside or instead of the classes: ``run`` makes the direction's product.

    ``numerics``: its name in the report. ``run(operands)``: x W^T + bias [M, N] for ``forward``, grad W [M, K] for
    ``grad_input``, grad^T x [N, K] for ``grad_weight``. ``format`` (``e4m3``, ``int8`` or None) and ``scaling``
    (``row``, ``tensor``) of its activations: whose underflow and saturation counts concern it.
    """

    numerics: str
    run: Callable[[Operands], torch.Tensor]
    direction: str = "forward"
    format: str | None = None
    scaling: str = "row"

    def __post_init__(self) -> None:
        choice("direction", self.direction, DIRECTIONS)
        choice("scaling", self.scaling, ("row", "tensor"))
        if self.format is not None:
            choice("format", self.format, ("e4m3", "int8"))


def own_candidate(numerics: str, direction: str) -> Candidate | None:
    """The class's kernels in that direction, or None where octavo has none."""
    if direction == "forward":
        format = {"e4m3_row": "e4m3", "int8_dynamic": "int8"}.get(numerics)
        return Candidate(numerics, lambda operands: _forward(operands, numerics), direction, format)
    backward = _GRADIENTS[direction].get(numerics)
    if backward is None:
        return None
    # E4M3's gradients are in E5M2, whose range underflows nowhere; those of grad_weight are scaled by columns.
    format = "int8" if (direction, numerics) == ("grad_input", "int8_dynamic") else None
    return Candidate(numerics, lambda operands: backward_of(operands, backward, direction), direction, format)


def chosen_candidates(
    candidates: Sequence[str | Candidate] | None,
) -> tuple[Candidate, ...]:
    """Candidates of all directions; None: every class. Raises ValueError or TypeError naming the one that is none."""
    if isinstance(candidates, str):
        raise TypeError(f"candidates: expected several, found the string {candidates!r}; give [{candidates!r}]")
    found: list[Candidate] = []
    for candidate in LOW_PRECISION if candidates is None else candidates:
        if isinstance(candidate, Candidate):
            found.append(candidate)
            continue
        if not isinstance(candidate, str):
            raise TypeError(
                f"candidates: expected names of numerics classes or loka.Candidate, found {type(candidate).__name__}"
            )
        choice("candidates", candidate, tuple(name for name in NUMERICS if name != "fp32"))
        found += [own for direction in DIRECTIONS if (own := own_candidate(candidate, direction)) is not None]
    names = [(candidate.direction, candidate.numerics) for candidate in found]
    if len(set(names)) < len(names):
        raise ValueError("candidates: two of one direction have the same name")
    return tuple(found)


def is_served(candidate: Candidate, m: int, n: int, k: int, device: str = "cpu") -> bool:
    """Whether this machine has a qualified kernel for it on the CPU, which its errors are judged by, and on ``device``,
    which it is timed on; other people's candidates serve themselves."""
    if candidate.numerics not in NUMERICS:
        return True
    x_dtype = "float32" if candidate.direction == "forward" else "bfloat16"
    return all(
        any(row.admitted for row in judge(Problem(OPS[candidate.direction], m, n, k, x_dtype, "float32", "", where,
                                                  candidate.numerics)).candidates)
        for where in {"cpu", device}
    )  # fmt: skip


def _forward(operands: Operands, numerics: str) -> torch.Tensor:
    return run(operands.x, pack_as(operands.weight, numerics), operands.bias, out_dtype=torch.float32)


def backward_of(operands: Operands, backward: str, direction: str) -> torch.Tensor:
    """One gradient by the kernels of ``backward``, by the route that training takes."""
    pair = BACKWARDS[backward]
    assert pair is not None
    w = pack_as(operands.weight, pair[0])
    layer = Layer(w, None, None, None, False, torch.float32, torch.float32)
    x = operands.x if direction == "grad_weight" else operands.grad.new_empty(operands.grad.shape[0], w.k)  # unread
    needs = (direction == "grad_input", direction == "grad_weight", False, False, False, False)
    g_x, g_weight, *_ = gradients(operands.grad, x, None, w, layer.epilogue, pair, None, False, needs)
    found = g_x if direction == "grad_input" else g_weight
    assert found is not None
    return found
