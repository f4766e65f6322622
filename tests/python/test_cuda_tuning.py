"""On a device: samples by events and graphs, tuning, torch's candidates, the kernel that ends a layer alone."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from octavo import _core, ops
from octavo.ops import kernels, qualification
from octavo.ops.dispatch import Problem, choose, tune, tuning
from octavo.ops.dispatch.timing import sampler
from octavo.ops.epilogue import Norm, apply_epilogue
from octavo.ops.linear_call import epilogue_of, run
from octavo.ops.packing import pack_as
from octavo.ops.torch_kernels import cuda_rows

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with warnings.catch_warnings():  # a verdict on a kernel is no matter of these
        warnings.simplefilter("ignore", RuntimeWarning)
        ops.dispatch.qualify()  # kept where it always is
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    _core.forget_costs()
    _core.forget_gemm_times()
    kernels.new_generation()


@pytest.mark.parametrize("captures", [True, False])
def test_a_sample_runs_its_calls_and_takes_the_devices_time(captures: bool) -> None:
    x = torch.zeros(1 << 24, device="cuda")
    take = sampler(lambda i: x.add_(1), "cuda", repeats=4, captures=captures)
    x.zero_()
    us = [take() for _ in range(5)]
    torch.cuda.synchronize()
    assert torch.equal(x, torch.full_like(x, 20.0))
    assert min(us) > 2 * x.nbytes / 8e6  # 8 TB/s


def test_tuning_measures_tiles_then_kernels_within_its_budget() -> None:
    problem = Problem("linear", 4096, 512, 1024, "bfloat16", "bfloat16", "bias+silu", "cuda")
    tune(problem, keep=False)  # loads every kernel's code and checks those that nobody has
    start = time.perf_counter()
    (tuned,) = tune(problem)
    assert time.perf_counter() - start < 1.5  # a second, about
    assert all(us > 0 for us in tuned.kernels.values())
    decision = choose(problem)
    assert decision.kernel == min(tuned.kernels, key=lambda name: tuned.kernels[name])
    for product, us in tuned.tiles.items():
        assert set(us) == set(product.tiles())
        assert product.tiles()[0] == min(us, key=lambda name: us[name])
    _core.forget_costs()
    _core.forget_gemm_times()
    tuning._loaded = None
    assert choose(problem).kernel == decision.kernel
    for product, us in tuned.tiles.items():
        assert product.tiles()[0] == min(us, key=lambda name: us[name])


@pytest.mark.parametrize("name", [row["name"] for row in cuda_rows((9, 0))])
def test_torchs_kernels_agree_with_fp64(name: str) -> None:
    if name not in {row["name"] for row in cuda_rows(torch.cuda.get_device_capability())}:
        pytest.skip("of another device")
    kernel = kernels.by_name(name)
    if kernel.numerics.name != "fp32" and not kernel.only_measured:
        assert qualification.check_of(kernel.op)(kernel) == ""


def test_a_compiled_layer_runs_and_is_recorded_in_a_graph() -> None:
    w, bias = pack_as(torch.randn(256, 128, device="cuda"), "bf16"), torch.randn(256, device="cuda")
    norm = Norm("layer", torch.ones(256, device="cuda"), torch.zeros(256, device="cuda"))
    kernel = kernels.by_name("torch.cuda.linear.bf16_compiled")
    for m in (64, 65, 7):
        x = torch.randn(m, 128, device="cuda", dtype=torch.bfloat16)
        z = torch.nn.functional.linear(x, w.codes).float()
        expected = apply_epilogue(z, bias, norm, "silu").bfloat16()
        if m != 7:
            assert torch.allclose(run(x, w, bias, norm, "silu", kernel=kernel), expected, 2e-2, 2e-2)
            torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = run(x, w, bias, norm, "silu", kernel=kernel)
        graph.replay()
        assert torch.allclose(y, expected, 2e-2, 2e-2)


@pytest.mark.parametrize("kind", ["layer", "rms", "block"])
def test_the_kernel_that_ends_a_layer_alone(kind: str) -> None:
    m, n = 300, 520
    z = torch.randn(m, n, device="cuda")
    weight = None if kind == "block" else torch.rand(n, device="cuda") + 0.5
    norm = Norm(kind, weight, torch.randn(n, device="cuda") if kind == "layer" else None)
    epilogue, vectors = epilogue_of(None, norm, "silu")
    expected = ops.quantize(apply_epilogue(z, None, norm, "silu"))
    codes, scale = torch.empty(m, n, dtype=torch.float8_e4m3fn, device="cuda"), torch.empty(m, device="cuda")
    _core.finish_linear(z.data_ptr(), m, n, epilogue, codes.data_ptr(), _core.DType.e4m3, scale.data_ptr(),
                        kernels.stream_of(z))  # fmt: skip
    assert vectors is not None
    assert torch.allclose(scale, expected.scale, 1e-4)
    found = ops.QuantizedTensor(codes, scale, "e4m3", "row").dequantize()
    assert float(ops.errors.relative_l1(found, expected.dequantize())) < 5e-3  # a code may be its neighbour
