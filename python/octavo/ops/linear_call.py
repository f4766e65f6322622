"""The eager path of ``linear``: arguments checked once, a kernel chosen once, the prepared call remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, overload

import torch
from torch.autograd import forward_ad

from octavo import _core
from octavo.ops import kernels
from octavo.ops._types import ACTIVATIONS, DTYPES, FORMATS, NORMS, address, choice, expect_no_tangents, expect_tensor
from octavo.ops.epilogue import Norm, apply_epilogue, describe
from octavo.ops.output_checks import expect_writable
from octavo.ops.packing import PackedWeight, activation_scaling
from octavo.ops.quantization import QuantizedTensor, as_rows, scale_shape
from octavo.ops.residual_rows import expect_rows, gathered

_FLOATS = (torch.float32, torch.bfloat16)
_F32 = int(_core.DType.f32)
_DTYPES = {dtype: int(code) for dtype, code in DTYPES.items()}
CODE_FORMATS = {torch.float8_e4m3fn: "e4m3", torch.int8: "int8"}
# What a class rounds its activations to, of those that round them to codes.
ACTIVATION_FORMATS = {"e4m3_row": "e4m3", "e4m3_row_fast": "e4m3", "e4m3_block": "e4m3", "int8_dynamic": "int8"}
_NORM_KINDS = {None: 0} | {name: 1 + i for i, name in enumerate(NORMS)}
_core.use_torch(
    torch.Tensor.__dlpack_c_exchange_api__, torch.Tensor, torch.nn.Parameter, torch.is_grad_enabled,
    torch.OutOfMemoryError, vars(forward_ad),
)  # fmt: skip
_ACTIVATION_KINDS = {None: 0} | {name: 1 + i for i, name in enumerate(ACTIVATIONS)}


def check(
    x: torch.Tensor | QuantizedTensor,
    w: PackedWeight,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    residual: torch.Tensor | None,
    out_dtype: torch.dtype | None,
    out: torch.Tensor | None,
    out_format: str | None = None,
) -> None:
    """Raise for the first argument of :func:`linear` that no kernel could take."""
    x = _codes_of(x, w) if isinstance(x, QuantizedTensor) else expect_tensor("x", x, _FLOATS)
    if x.dim() == 0 or x.shape[-1] != w.k:
        raise ValueError(
            f"x: shape {list(x.shape)} does not fit weight {list(w.shape)}; the last dimension must be K = {w.k}"
        )
    shape = [*x.shape[:-1], w.n]
    if activation is not None:
        choice("activation", activation, ACTIVATIONS)
    if out_dtype is not None and out_dtype not in _FLOATS:
        raise TypeError(f"out_dtype: expected torch.float32 or torch.bfloat16, found {out_dtype}")
    if out_format is not None:
        choice("out_format", out_format, tuple(CODE_FORMATS.values()))
        for name, given in (("out_dtype", out_dtype), ("out", out)):
            if given is not None:
                raise ValueError(
                    f"{name}: cannot be combined with out_format, which returns codes and scales of its own"
                )
    vectors = [("bias", bias)]
    if norm is not None:
        if not isinstance(norm, Norm):
            raise TypeError(f"norm: expected an octavo.ops.Norm, found {type(norm).__name__}")
        norm.expect_activation(activation)
        vectors += [("norm.weight", norm.weight), ("norm.bias", norm.bias)]
    for name, vector in vectors:
        if vector is not None and expect_tensor(name, vector, (torch.float32,), 1).shape[0] != w.n:
            raise ValueError(f"{name}: has {vector.shape[0]} elements; expected N = {w.n}")
    for name, tensor in (("residual", residual), ("out", out)):
        if tensor is not None and list(expect_tensor(name, tensor, _FLOATS).shape) != shape:
            raise ValueError(f"{name}: shape {list(tensor.shape)}; expected {shape}")
    if out is not None:
        if out_dtype is not None and out.dtype != out_dtype:
            raise TypeError(f"out: is {out.dtype} but out_dtype is {out_dtype}")
        if not (out.is_contiguous() or (out.dim() <= 2 and out.stride(-1) == 1)):
            raise ValueError("out: rows must be contiguous; pass a contiguous tensor or a row slice of one")
        expect_writable("out", out)
    for name, tensor in [("x", x), *vectors, ("residual", residual), ("out", out)]:
        if tensor is not None and tensor.device != w.device:
            raise ValueError(f"{name}: is on {tensor.device} but the weight is on {w.device}; move one with .to()")
    expect_no_tangents(("x", x), *vectors, ("residual", residual), ("out", out))


def _codes_of(x: QuantizedTensor, w: PackedWeight) -> torch.Tensor:
    """The codes of ``x`` [..., K]; raises unless they are what the class of ``w`` multiplies."""
    taken = ACTIVATION_FORMATS.get(w.numerics)
    if x.format != taken:
        wanted = "float32 or bfloat16" if taken is None else f"float32, bfloat16 or quantized {taken}"
        raise TypeError(f"x: is quantized {x.format}; a weight of class {w.numerics} takes {wanted}")
    scaling = activation_scaling(w.numerics)
    if x.scaling != scaling and (x.scaling, scaling) != ("tensor", "row"):
        raise ValueError(f"x: has {x.scaling} scaling; class {w.numerics} takes quantize(..., scaling={scaling!r})")
    codes = expect_tensor("x.data", x.data, (FORMATS[taken],))
    scale = expect_tensor("x.scale", x.scale, (torch.float32,))
    shape = scale_shape(codes.shape, x.scaling)
    if tuple(scale.shape) != shape or scale.device != codes.device:
        raise ValueError(
            f"x.scale: is {list(scale.shape)} on {scale.device}; {x.scaling} scaling of {list(codes.shape)} has "
            f"{list(shape)} on {codes.device}"
        )
    return codes


def scales_of(x: QuantizedTensor) -> torch.Tensor:
    """The scales of :func:`_codes_of`'s codes as kernels read them: one number for all is given to every row."""
    scale = x.scale.reshape(()).expand(x.data.shape[:-1]) if x.scaling == "tensor" else x.scale
    return scale.contiguous()


@overload
def run(
    x: torch.Tensor | QuantizedTensor,
    w: PackedWeight,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    residual_before_norm: bool = False,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    kernel: _core.Kernel | None = None,
    out_format: None = None,
    residual_rows: torch.Tensor | None = None,
) -> torch.Tensor: ...
@overload
def run(
    x: torch.Tensor | QuantizedTensor,
    w: PackedWeight,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    residual_before_norm: bool = False,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    kernel: _core.Kernel | None = None,
    *,
    out_format: Literal["e4m3", "int8"],
    residual_rows: torch.Tensor | None = None,
) -> QuantizedTensor: ...
@overload
def run(
    x: torch.Tensor | QuantizedTensor,
    w: PackedWeight,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    residual_before_norm: bool = False,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    kernel: _core.Kernel | None = None,
    *,
    out_format: str | None,
    residual_rows: torch.Tensor | None = None,
) -> torch.Tensor | QuantizedTensor: ...
def run(
    x: torch.Tensor | QuantizedTensor,
    w: PackedWeight,
    bias: torch.Tensor | None = None,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    residual_before_norm: bool = False,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    kernel: _core.Kernel | None = None,
    out_format: str | None = None,
    residual_rows: torch.Tensor | None = None,
) -> torch.Tensor | QuantizedTensor:
    """The eager path of :func:`linear`, without gradients. ``kernel`` runs that one instead of the chosen one.

    The layer is prepared once per combination of types, epilogue and vectors and remembered on the weight; the latest
    one is ``w.served``, which :func:`linear` asks first. CUDA kernels read ``residual_rows``, a CPU gathers them.
    """
    if residual_rows is not None:
        check(x, w, bias, norm, activation, None, out_dtype, out, out_format)
        residual = expect_rows(residual, residual_rows, x, w)
        if w.device.type != "cuda":
            residual, residual_rows = gathered(residual, residual_rows), None
    own = residual if residual_rows is None else None  # rows of x's shape
    layer = layer_for(x, w, bias, norm, activation, own, residual_before_norm, out_dtype, out, kernel, out_format)
    if kernel is None:
        w.served = layer.prepared
    prepared = layer.prepared if residual_rows is None else None
    y = NotImplemented if prepared is None else prepared(cast(torch.Tensor, x), out, residual)
    if y is not NotImplemented:
        return cast(torch.Tensor, y)
    check(x, w, bias, norm, activation, own, out_dtype, out, out_format)
    return layer.launch(w, layer.prepared, x, out, residual, rows=residual_rows)


def record(
    x: torch.Tensor,
    w: PackedWeight,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    residual: torch.Tensor | None,
    residual_before_norm: bool,
    out_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor | None, Layer]:
    """:func:`run` for a later backward: y, what the norm saw [..., N] in y's type (None where neither norm nor
    activation follows the product), and the layer.
    """
    layer = layer_for(x, w, bias, norm, activation, residual, residual_before_norm, out_dtype)
    if norm is None and activation is None:
        y = NotImplemented if layer.prepared is None else layer.prepared(x, None, residual)
        if y is not NotImplemented:
            return cast(torch.Tensor, y), None, layer
        check(x, w, bias, norm, activation, residual, out_dtype, None)
        return cast(torch.Tensor, layer.launch(w, layer.prepared, x, None, residual)), None, layer
    both = NotImplemented if layer.prepared is None else layer.prepared.record(x, residual)
    if both is NotImplemented:
        check(x, w, bias, norm, activation, residual, out_dtype, None)
        z = torch.empty((*x.shape[:-1], w.n), dtype=layer.y_dtype, device=x.device)
        return cast(torch.Tensor, layer.launch(w, layer.prepared, x, None, residual, z)), z, layer
    return (*both, layer)


def layer_for(
    x: torch.Tensor | QuantizedTensor,
    w: PackedWeight,
    bias: torch.Tensor | None,
    norm: Norm | None,
    activation: str | None,
    residual: torch.Tensor | None = None,
    residual_before_norm: bool = False,
    out_dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    kernel: _core.Kernel | None = None,
    out_format: str | None = None,
) -> Layer:
    """The layer these arguments of :func:`run` ask for: the remembered one, or a new one from checked arguments."""
    try:
        quantized = isinstance(x, QuantizedTensor)
        x_dtype = x.data.dtype if isinstance(x, QuantizedTensor) else x.dtype
        y_dtype = (
            FORMATS[out_format] if out_format is not None else out_dtype if out_dtype is not None
            else out.dtype if out is not None else torch.float32 if quantized else x_dtype
        )  # fmt: skip
        key = (
            kernel, x_dtype, y_dtype, activation, residual_before_norm, _vector_key(bias),
            None if norm is None else
            (norm.kind, norm.eps, norm.block, _vector_key(norm.weight), _vector_key(norm.bias)),
        )  # fmt: skip
        layer: Layer | None = w.route(key)
    except (AttributeError, TypeError, KeyError):  # no tensors, no such format: say which
        check(x, w, bias, norm, activation, residual, out_dtype, out, out_format)
        raise
    if layer is None:
        check(x, w, bias, norm, activation, residual, out_dtype, out, out_format)
        layer = Layer(w, bias, norm, activation, residual_before_norm, x_dtype, y_dtype, kernel)
        if not layer.has_copies:
            if layer.x_dtype in _FLOATS and layer.y_dtype in _FLOATS:
                layer.prepare()
            w.remember(key, layer)
    else:
        layer.follow(w, layer.prepared)
    return layer


class Layer:
    """A layer whose arguments were checked, without x: what it computes, in which types, by which kernels.

    It holds no weight: a weight remembers its layers, and cycles would keep layouts alive. ``has_copies``: a vector
    was not contiguous, so the layer shows its values of now only.
    """

    def __init__(
        self,
        w: PackedWeight,
        bias: torch.Tensor | None,
        norm: Norm | None,
        activation: str | None,
        before: bool,
        x_dtype: torch.dtype,
        y_dtype: torch.dtype,
        kernel: _core.Kernel | None = None,
    ) -> None:
        self.before, self.x_dtype, self.y_dtype, self.kernel = before, x_dtype, y_dtype, kernel
        self.norm, self.activation = norm, activation
        given = (bias, None if norm is None else norm.weight, None if norm is None else norm.bias)
        self.has_copies = any(v is not None and not (v.is_contiguous() and not v.is_neg()) for v in given)
        self.epilogue, self.vectors = epilogue_of(bias, norm, activation)
        self.core = w.core()
        self.codes = w.codes
        self.generation, self.threads = kernels.generation, _core.threads()
        self.prepared: _core.PreparedLinear | None = None
        self._chosen: dict[tuple[int, int, bool], _core.Kernel] = {}

    def prepare(
        self, trainable: tuple[torch.Tensor, ...] = (), slow: Callable[..., torch.Tensor] | None = None
    ) -> _core.PreparedLinear:
        """The layer as a compiled callable, whose calls that need a closer look go to ``slow``."""
        prepared = _core.prepare_linear(
            self.core, self.codes, self.epilogue, self.before, self.vectors, trainable, self.norm, self.activation,
            self.x_dtype, self.y_dtype, self.x_dtype == torch.float32, self.y_dtype == torch.float32, slow,
        )  # fmt: skip
        if slow is None:
            self.prepared = prepared
        return prepared

    def kernel_for(self, w: PackedWeight, m: int, with_residual: bool) -> _core.Kernel:
        """The kernel that serves m rows on so many threads, chosen once."""
        key = (self.threads, m, with_residual)
        kernel = self.kernel or self._chosen.get(key)
        if kernel is None:
            where = None if not with_residual else "before" if self.before else "after"
            words = describe(self.vectors[0] is not None, self.norm.kind if self.norm else None, self.activation, where)
            kernel = _kernel_for(w, m, self.x_dtype, self.y_dtype, words)
            if len(self._chosen) >= 1024:
                self._chosen.clear()
            self._chosen[key] = kernel
        return kernel

    def follow(self, w: PackedWeight, prepared: _core.PreparedLinear | None) -> None:
        """Take up that the weight has other codes, or that other kernels may be chosen."""
        core, threads = w.core(), _core.threads()
        if core is self.core and self.generation == kernels.generation and self.threads == threads:
            return
        if self.generation != kernels.generation:
            self._chosen.clear()
        self.core, self.generation, self.threads = core, kernels.generation, threads
        if prepared is not None:
            _core.refresh_prepared(prepared, core)

    def resolve(
        self, w: PackedWeight, prepared: _core.PreparedLinear | None, m: int, with_residual: bool
    ) -> _core.Kernel:
        """The kernel for m rows, and from now on ``prepared``'s for their bucket."""
        kernel = None
        while kernel is None:
            self.follow(w, prepared)
            kernel = self.kernel_for(w, m, with_residual)
            if self.generation != kernels.generation:  # the first choice of all qualified kernels
                kernel = None
        if prepared is not None and kernel.library == "octavo":
            _core.set_prepared_kernel(prepared, m, with_residual, kernel)
        return kernel

    def launch(
        self,
        w: PackedWeight,
        prepared: _core.PreparedLinear | None,
        x: torch.Tensor | QuantizedTensor,
        out: torch.Tensor | None,
        residual: torch.Tensor | None,
        saved: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor | QuantizedTensor:
        """Run on any tensors that :func:`check` let pass. ``saved`` [..., N], contiguous, of y's type: gets what the
        norm sees. ``rows``: of the residual [R, N] the one that each row adds, on CUDA.
        """
        x_scale = None
        if isinstance(x, QuantizedTensor):
            x_scale, x = scales_of(x), x.data
        n = w.n
        shape = (*x.shape[:-1], n)
        if self.y_dtype not in CODE_FORMATS:
            return self._launch(w, prepared, x, x_scale, out, None, residual, saved, rows)
        y = torch.empty(shape, dtype=self.y_dtype, device=x.device) if out is None else out
        y_scale = torch.ones(shape[:-1], device=x.device) if n == 0 else torch.empty(shape[:-1], device=x.device)
        self._launch(w, prepared, x, x_scale, y, y_scale, residual, None, rows)
        return QuantizedTensor(y, y_scale, CODE_FORMATS[self.y_dtype], "row")

    def _launch(
        self,
        w: PackedWeight,
        prepared: _core.PreparedLinear | None,
        x: torch.Tensor,
        x_scale: torch.Tensor | None,
        y: torch.Tensor | None,
        y_scale: torch.Tensor | None,
        residual: torch.Tensor | None,
        saved: torch.Tensor | None,
        residual_rows: torch.Tensor | None,
    ) -> torch.Tensor:
        m, n = x.shape[:-1].numel(), w.n
        shape = (*x.shape[:-1], n)
        if m == 0 or n == 0:
            return torch.empty(shape, dtype=self.y_dtype, device=x.device) if y is None else y
        kernel = self.resolve(w, prepared, m, residual is not None)
        if residual_rows is not None and kernel.library != "octavo":
            residual, residual_rows = gathered(cast(torch.Tensor, residual), residual_rows), None
        rows, r = as_rows(x), None if residual is None else as_rows(residual)
        if kernel.library != "octavo":
            bias, norm_weight, norm_bias = self.vectors
            spec = self.norm and Norm(self.norm.kind, norm_weight, norm_bias, self.norm.eps, self.norm.block)
            kernel.count()
            if saved is None and kernel.name in kernels.chains:
                chain = kernels.chains[kernel.name]
                whole = chain(rows, w, bias, spec, self.activation, r, self.before, self.y_dtype).view(shape)
                return whole if y is None else y.copy_(whole)
            z = kernels.externals[kernel.name](rows, w).float()
            if self.before or saved is not None:  # in two steps, so that what lies between can be kept
                z = apply_epilogue(z, bias, None, None, r if self.before else None, True)
                bias, r = None, None if self.before else r
            if saved is not None:
                saved.copy_(z.view(shape))
            z = apply_epilogue(z, bias, spec, self.activation, r).view(shape)
            return z.to(self.y_dtype).contiguous() if y is None else y.copy_(z)
        if y is None:
            y = torch.empty(shape, dtype=self.y_dtype, device=x.device)
        if residual_rows is not None:
            residual_rows = residual_rows.contiguous()
        _core.linear(
            kernel,
            rows.data_ptr(),
            m,
            rows.stride(0) if m > 1 else w.k,
            _DTYPES[x.dtype],
            w.core(),
            y.data_ptr(),
            as_rows(y).stride(0) if m > 1 else n,
            _DTYPES[y.dtype],
            self.epilogue,
            address("residual", r),
            0 if r is None else r.stride(0) if r.shape[0] > 1 else n,
            _F32 if r is None else _DTYPES[r.dtype],
            self.before,
            kernels.stream_of(x),
            address("x.scale", x_scale),
            0 if y_scale is None else y_scale.data_ptr(),
            0 if saved is None else saved.data_ptr(),
            address("residual_rows", residual_rows),
            0 if r is None else r.shape[0],
        )
        return y


def _kernel_for(w: PackedWeight, m: int, x_dtype: torch.dtype, out_dtype: torch.dtype, epilogue: str) -> _core.Kernel:
    from octavo.ops.dispatch.choice import kernel_for  # dispatch measures by running linear

    return kernel_for(w, m, x_dtype, out_dtype, epilogue)


def _vector_key(vector: torch.Tensor | None) -> tuple[Any, ...] | None:
    return None if vector is None else (vector.data_ptr(), vector.shape, vector.stride(), vector.dtype)


def epilogue_of(
    bias: torch.Tensor | None, norm: Norm | None, activation: str | None
) -> tuple[_core.Epilogue, tuple[torch.Tensor | None, ...]]:
    """The core's view of an epilogue, and the vectors that it names: it is good while they live."""
    given = (bias, None if norm is None else norm.weight, None if norm is None else norm.bias)
    # Detached, so that they keep alive what the addresses name when a parameter gets other data.
    vectors = tuple(None if v is None else v.detach().resolve_neg().contiguous() for v in given)
    return _epilogue(vectors, norm, activation), vectors


def _epilogue(vectors: Sequence[torch.Tensor | None], norm: Norm | None, activation: str | None) -> _core.Epilogue:
    names = ("bias", "norm.weight", "norm.bias")
    bias, weight, shift = (address(name, v) for name, v in zip(names, vectors, strict=True))
    if norm is None:
        return _core.Epilogue(bias, 0, 0, 0, 0.0, 256, _ACTIVATION_KINDS[activation])
    kind = _NORM_KINDS[norm.kind]
    return _core.Epilogue(bias, kind, weight, shift, norm.eps, norm.block, _ACTIVATION_KINDS[activation])
