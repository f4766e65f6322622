"""Classes and costs of CUDA kernels as dispatch sees them, on a machine without a device."""

import dataclasses

import pytest
import torch

from octavo import _core, loka, nn, ops
from octavo.loka.candidates import is_served, own_candidate
from octavo.ops import kernels
from octavo.ops.dispatch.choice import judge
from octavo.ops.linear_backward import by_kernels
from octavo.ops.packing import pack_as

with_cuda = pytest.mark.skipif(not _core.built_with_cuda, reason="octavo was built without CUDA (OCTAVO_CUDA=ON)")
without_device = pytest.mark.skipif(_core.cuda_info() is not None, reason="there is a CUDA device")


def test_the_fast_class_has_the_codes_of_the_other_and_no_kernel_on_a_cpu() -> None:
    weight, x = torch.randn(24, 40), torch.randn(3, 40)
    fast, row = pack_as(weight, "e4m3_row_fast"), pack_as(weight, "e4m3_row")
    assert fast.numerics == "e4m3_row_fast"
    assert torch.equal(fast.codes.view(torch.uint8), row.codes.view(torch.uint8))
    assert torch.equal(fast.dequantize(), row.dequantize())
    with pytest.raises(RuntimeError, match="no kernel may serve"):
        ops.linear(x, fast)
    with pytest.raises(TypeError, match="takes float32, bfloat16 or quantized e4m3"):
        ops.linear(ops.quantize(x, "int8"), fast)


def test_plans_do_not_try_the_fast_class_by_themselves() -> None:
    from octavo.ops.dispatch.plan import LOW_PRECISION

    assert "e4m3_row_fast" not in LOW_PRECISION
    layer = nn.Linear(8, 8)
    layer.numerics = "e4m3_row_fast"  # who wants it says so
    assert layer.packed().numerics == "e4m3_row_fast"


@with_cuda
@pytest.mark.parametrize("numerics", ["bf16", "e4m3_row", "e4m3_row_fast"])
@pytest.mark.parametrize("epilogue", ["", "bias+layer+silu", "bias+residual"])
def test_costs_come_from_the_plan_of_the_layer_and_never_fall(numerics: str, epilogue: str) -> None:
    name = f"cuda.sm90.linear.{numerics}"
    for n, k in ((128, 512), (512, 512), (2048, 100)):
        before = 0.0
        for m in (1, 16, 17, 100, 1000, 10000, 65536):
            problem = ops.dispatch.Problem("linear", m, n, k, "bfloat16", "bfloat16", epilogue, "cuda", numerics)
            (found,) = [c for c in judge(problem).candidates if c.kernel.name == name]
            assert found.source == "prior"
            assert found.predicted_us >= max(before, 2.5)
            before = found.predicted_us
    fused = ops.dispatch.Problem("linear", 4096, 128, 512, "bfloat16", "bfloat16", "layer+silu", "cuda", numerics)
    wide = ops.dispatch.Problem("linear", 4096, 128, 512, "bfloat16", "float32", "layer+silu", "cuda", numerics)
    us = [next(c.predicted_us for c in judge(p).candidates if c.kernel.name == name) for p in (fused, wide)]
    assert us[0] < us[1]  # FP32 goes through a second kernel
    blocks = [next(c.predicted_us for c in judge(dataclasses.replace(p, numerics="e4m3_block")).candidates
                   if c.kernel.name == "cuda.sm90.linear.e4m3_block") for p in (fused, wide)]  # fmt: skip
    assert 2.5 < blocks[0] < blocks[1]  # both do, and BF16 is less to write


@with_cuda
@without_device
def test_without_a_device_nothing_is_admitted_and_the_table_says_why() -> None:
    problem = ops.dispatch.Problem("linear", 64, 128, 128, device="cuda", numerics="e4m3_row")
    table = ops.dispatch.explain(problem)
    assert "this machine lacks what it needs" in table
    assert "nothing admitted" in table
    with pytest.raises(RuntimeError, match=r"cuda\.sm90\.linear\.e4m3_row"):
        ops.dispatch.choose(problem)


@without_device
def test_a_class_is_served_where_it_is_judged_and_where_it_is_timed() -> None:
    for direction in loka.DIRECTIONS:
        candidate = own_candidate("bf16", direction)
        assert candidate is not None
        assert is_served(candidate, 8, 16, 32)
        assert not is_served(candidate, 8, 16, 32, "cuda")


@without_device
def test_errors_say_what_keeps_cuda_kernels_from_serving() -> None:
    why = "octavo was built without CUDA" if not _core.built_with_cuda else "NVIDIA driver"
    assert why in _core.cuda_problem()
    problem = ops.dispatch.Problem("linear", 64, 128, 128, device="cuda", numerics="e4m3_row")
    with pytest.raises(RuntimeError, match=why):
        ops.dispatch.choose(problem)
    with pytest.raises(RuntimeError, match=f"bag_forward: no usable kernel for cuda; found none registered; .*{why}"):
        kernels.serving(_core.Op.bag_forward, ("cuda",))


@without_device
def test_gradients_on_cuda_are_torchs_where_a_kernel_lacks() -> None:
    assert by_kernels(torch.device("cpu"), ("int8_dynamic", "bf16"))
    assert not by_kernels(torch.device("cuda"), ("bf16", "bf16"))
    assert kernels.has_own(_core.Op.linear_grad_input, "cpu", "bf16")
    assert not kernels.has_own(_core.Op.linear_grad_weight, "cpu", "int8_dynamic")
