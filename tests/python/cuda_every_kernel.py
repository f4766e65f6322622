"""Every CUDA kernel of octavo on small odd shapes, for compute-sanitizer to watch (test_cuda_sanitizer.py).

Nothing is compared here: other tests do that. A kernel that none of these calls reaches is run through its own check.
"""

from __future__ import annotations

import sys
from itertools import product

import torch

from octavo import _core, nn, ops
from octavo.ops.batch_checks import batch_failure
from octavo.ops.epilogue import Norm
from octavo.ops.linear_backward import run_grad_input, run_grad_weight, run_gradients
from octavo.ops.linear_call import run
from octavo.ops.packing import pack_as
from octavo.ops.qualification import check_of
from octavo.ops.quantization import SCALINGS

FLOATS = (torch.float32, torch.bfloat16)
ROWS = ("fp32", "fp16", "bf16", "e4m3", "int8", "int4")


def main() -> int:
    """Run them; the kernels' names and how often they were called go to standard output."""
    own = [k for k in _core.kernels() if k.device == _core.Device.cuda and k.library == "octavo" and k.supported]
    for kernel in own:  # as if each had been checked: what they compute is not the question here
        kernel.qualify()
    torch.manual_seed(0)
    linears = [k for k in own if k.op == _core.Op.linear]
    if linears:
        tiles()
    for kernel in linears:
        layers(kernel)
    for kernel in own:
        if kernel.op in (_core.Op.linear_grad_input, _core.Op.linear_grad_weight):
            products_of_gradients(kernel)
    gradients_of_epilogues()
    quantizers()
    tables()
    for kernel in own:
        if kernel.calls == 0:
            check_of(kernel.op)(kernel)
    torch.cuda.synchronize()
    for kernel in own:
        print(kernel.name, kernel.calls)
    return 0 if all(kernel.calls for kernel in own) else 1


def normal(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers on the device."""
    return torch.randn(*size, device="cuda").to(dtype)


def tiles() -> None:
    """Each GEMM instantiation on tails of its tile."""
    for tile in _core.gemm_tiles():
        m, n, k = 72, 56, 144
        e5m2, bf16 = tile["product"] == "e5m2", tile["product"] == "bf16"
        x = normal(m, k).to(torch.bfloat16 if bf16 else torch.float8_e5m2 if e5m2 else torch.float8_e4m3fn)
        w = normal(n, k).to(torch.bfloat16 if bf16 else torch.float8_e4m3fn)
        x = x.T.contiguous() if tile["x_major"] == "mn" else x
        w = w.T.contiguous() if tile["w_major"] == "mn" else w
        scales = [torch.ones(rows * -(-k // 128), device="cuda") for rows in (m, n)]  # as many as blocks have
        d = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
        _core.run_gemm_tile(
            str(tile["name"]), m, n, k, x.data_ptr(), w.data_ptr(), scales[0].data_ptr(), scales[1].data_ptr(),
            d.data_ptr(), False, torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip


def layers(kernel: _core.Kernel) -> None:
    """Epilogues inside the GEMM, in its tile's rows, and in a kernel of their own; codes out; K and N of any size."""
    numerics = kernel.numerics.name
    for (m, n, k), dtype in product(((1, 8, 16), (19, 130, 57), (70, 264, 33)), FLOATS):
        w, bias = pack_as(normal(n, k), numerics), normal(n)
        x, residual = normal(m, k, dtype=dtype), normal(m, n, dtype=dtype)
        for kind in (None, "layer", "rms", "block", "swish_rms"):
            norm = None if kind is None else Norm(kind, block=48)
            activation = None if kind == "swish_rms" else "gelu"
            run(x, w, bias, norm, activation, kernel=kernel)
            run(x, w, bias, norm, activation, residual, kind == "layer", kernel=kernel)
        if numerics != "bf16":
            run(x, w, bias, Norm("layer"), "silu", kernel=kernel, out_format="e4m3")
    if kernel.takes_batches:
        batch_failure(kernel)


def products_of_gradients(kernel: _core.Kernel) -> None:
    """Sizes that need padding, and a batch of several slices."""
    numerics = kernel.numerics.name
    for m, n, k in ((1, 1, 1), (19, 130, 57), (1187, 33, 70)):
        grad = normal(m, n, dtype=torch.bfloat16)
        if kernel.op == _core.Op.linear_grad_weight:
            x = normal(m, k)
            run_grad_weight(kernel, grad, x)
            for other in _core.kernels():
                if other.works_with(kernel):
                    run_gradients(other, kernel, grad, pack_as(normal(n, k), numerics), x)
        else:
            run_grad_input(kernel, grad, pack_as(normal(n, k), numerics), torch.float32)


def gradients_of_epilogues() -> None:
    """A layer with a norm and everything that can require a gradient, each class of its products' gradients."""
    for kind, (n, dtype) in product((None, "layer", "rms", "block", "swish_rms"), ((67, FLOATS[0]), (320, FLOATS[1]))):
        x, weight = normal(37, 24, dtype=dtype).requires_grad_(), normal(n, 24).requires_grad_()
        bias, residual = normal(n).requires_grad_(), normal(37, n, dtype=dtype).requires_grad_()
        norm = None if kind is None else Norm(kind, block=48)
        activation = None if kind == "swish_rms" else "silu"
        for backward in ("bf16", "e4m3_row"):
            y = ops.linear(x, pack_as(weight, "e4m3_row"), bias, norm, activation, residual, backward=backward)
            y.sum().backward()


def quantizers() -> None:
    """Each format of codes and kind of scales, short rows and long."""
    for format, dtype, columns in product(("e4m3", "e5m2", "int8"), (*FLOATS, torch.float16), (1, 67, 300, 9000)):
        x = normal(5, columns, dtype=dtype)
        for scaling in SCALINGS if format != "int8" else SCALINGS[:-1]:
            ops.quantize(x, format, scaling)


def tables() -> None:
    """Each row format pooled, one by one and trained; ids of a dynamic table; a row with many lookups."""
    offsets = torch.tensor([0, 3, 3, 900, 901, 904, 905], device="cuda")
    for optimizer in (nn.SGD(0.1), nn.RowWiseAdagrad(0.1), nn.Adagrad(0.1), nn.Adam(0.1)):
        for kind, dtype in product((nn.EmbeddingBags, nn.EmbeddingCollection), ROWS):
            made = [nn.Table("a", 7, 67, dtype, dynamic=nn.Dynamic()), nn.Table("b", 40, 5, dtype, pooling="mean")]
            module = kind(made, optimizer).cuda()
            values = torch.randint(0, 7, (905,), device="cuda")
            for _ in range(2):
                out = module.train()(values, offsets)
                sum(part.sum() for part in (out.values() if isinstance(out, dict) else [out])).backward()
            module.eval()(values, offsets)


if __name__ == "__main__":
    sys.exit(main())
