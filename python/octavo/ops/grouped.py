"""``grouped_linear``: many small linear layers in one call, their work shared by all threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from octavo import _core
from octavo.ops.epilogue import Norm
from octavo.ops.linear import linear, records
from octavo.ops.linear_call import layer_for, run
from octavo.ops.output_checks import expect_distinct
from octavo.ops.packing import PackedWeight


def grouped_linear(
    xs: Sequence[torch.Tensor],
    ws: Sequence[PackedWeight],
    biases: Sequence[torch.Tensor | None] | None = None,
    norms: Sequence[Norm | None] | Norm | None = None,
    activations: Sequence[str | None] | str | None = None,
    out_dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """``[linear(x, w, bias, norm, activation) for ...]`` in one parallel region.

    For layers too small to fill the threads one by one: per-feature MLPs, the heads of many tasks, experts. Shapes and
    classes may differ from group to group. Each result is bitwise that of :func:`octavo.ops.linear`, which also runs
    the groups one by one where gradients are recorded, in compiled code, and for kernels of other libraries.

    On CUDA groups run one after the other, but neighbours of one shape, class, epilogue and type are one launch of each
    kernel where their memory lies evenly: weights of :func:`octavo.ops.pack_weights`, biases and norm vectors that are
    the rows of one [F, N] each, xs that are equally far apart (slices of one [F, M, K], or of the columns of one
    [M, F K]), outs likewise where they are given. Not in class ``e4m3_block``. Such a batch may run by other tiles
    than a layer alone, within the same bounds of error (docs/gpu.md).

    Args:
        xs: x [..., K] of each group; ``ws``: its packed weight [N, K]. Others as in :func:`octavo.ops.linear`, one for
            each group or (norm, activation) one for all.
        out_dtype: of every result; each x's dtype by default.

    Raises TypeError or ValueError that names the argument and the group.
    """
    count = len(ws)
    groups = _groups(count, xs=xs, biases=_each(biases, count), norms=_each(norms, count),
                     activations=_each(activations, count))  # fmt: skip
    arguments = [(x, w, *rest) for (x, *rest), w in zip(groups, ws, strict=True)]
    if torch.compiler.is_compiling() or any(records(*a[:4]) for a in arguments):
        return [_named(i, linear, *a, out_dtype=out_dtype) for i, a in enumerate(arguments)]
    layers = tuple(_named(i, _prepared, *a, out_dtype) for i, a in enumerate(arguments))
    own = [a[0] for a in arguments]
    found: list[Any] = _core.serve_group(layers, own, outs_for(layers, own))
    for i, y in enumerate(found):
        if y is NotImplemented:
            x, w, *rest = arguments[i]
            found[i] = _named(i, run, x, w, *rest, out_dtype=out_dtype)
    return found


class PreparedGroup:
    """Prepared layers that run together: ``group(xs, outs=None) -> [y, ...]``."""

    def __init__(self, layers: Sequence[_core.PreparedLinear]) -> None:
        for i, layer in enumerate(layers):
            if not isinstance(layer, _core.PreparedLinear):
                raise TypeError(
                    f"layers: group {i}: expected what octavo.ops.prepare_linear returns, found {type(layer).__name__}"
                )
        self.layers = tuple(layers)

    def __call__(
        self, xs: Sequence[torch.Tensor], outs: Sequence[torch.Tensor | None] | None = None
    ) -> list[torch.Tensor]:
        """Results in the order of the layers. ``outs``: tensors to write to, all different, or None, one for each.

        Without ``outs`` results of one shape and type on CUDA are slices of one new tensor [F, ..., N].
        """
        for name, values in (("xs", xs), ("outs", outs)):
            if values is not None and len(values) != len(self.layers):
                raise ValueError(f"{name}: expected one per layer ({len(self.layers)}), found {len(values)}")
        if outs is not None:
            expect_distinct("outs", outs)
        found: list[Any] = _core.serve_group(self.layers, xs, outs_for(self.layers, xs) if outs is None else outs)
        for i, y in enumerate(found):
            if y is NotImplemented:  # its kernel is not chosen yet, or is another library's
                found[i] = _named(i, self.layers[i], xs[i], None if outs is None else outs[i])
        return found


def prepare_grouped(layers: Sequence[_core.PreparedLinear]) -> PreparedGroup:
    """:func:`grouped_linear` with everything but the xs resolved, from layers of :func:`octavo.ops.prepare_linear`."""
    return PreparedGroup(layers)


def outs_for(
    layers: Sequence[_core.PreparedLinear | None], xs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...] | None:
    """Results side by side, as one launch of many layers writes them; None where layers or xs differ, or on a CPU."""
    on_device = len(layers) > 1 and isinstance(xs[0], torch.Tensor) and xs[0].is_cuda
    return side_by_side(layers, xs) if on_device else None


def side_by_side(
    layers: Sequence[_core.PreparedLinear | None], xs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...] | None:
    """The slices of a new tensor [F, ..., N] of all layers' type, on the device of the xs; None where they differ."""
    first, x = layers[0], xs[0]
    if first is None or not isinstance(x, torch.Tensor):
        return None
    n, dtype = first.weight.n, first.y_dtype
    for layer, other in zip(layers, xs, strict=True):
        if layer is None or (layer.weight.n, layer.y_dtype) != (n, dtype) or not isinstance(other, torch.Tensor):
            return None
        if other.shape[:-1] != x.shape[:-1] or other.device != x.device:
            return None
    return torch.empty((len(layers), *x.shape[:-1], n), dtype=dtype, device=x.device).unbind()


def _each(values: Any, count: int) -> Sequence[Any]:
    """One value for each group from one for all."""
    return [values] * count if values is None or isinstance(values, str | Norm) else values


def _groups(count: int, **sequences: Sequence[Any]) -> list[tuple[Any, ...]]:
    for name, values in sequences.items():
        if len(values) != count:
            raise ValueError(f"{name}: expected one per weight ({count}), found {len(values)}")
    return list(zip(*sequences.values(), strict=True))


def _named(group: int, function: Any, *arguments: Any, **options: Any) -> Any:
    """``function``'s result; errors about an argument say which group's."""
    try:
        return function(*arguments, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"group {group}: {error}") from error


def _prepared(
    x: torch.Tensor,
    w: PackedWeight,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    out_dtype: torch.dtype | None,
) -> _core.PreparedLinear | None:
    if not isinstance(w, PackedWeight):
        raise TypeError(f"ws: expected a PackedWeight from octavo.ops.pack_weight, found {type(w).__name__}")
    return layer_for(x, w, bias, norm, activation, out_dtype=out_dtype).prepared
