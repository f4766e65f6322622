"""Scratch memory of CUDA kernels is torch's, taken through its table of C functions; here on the CPU."""

from __future__ import annotations

import threading

import pytest
import torch

from octavo import _core, ops


def test_bytes_come_and_go_without_the_interpreters_lock() -> None:
    """Threads that allocate hold no lock: the core gives it up before it launches."""
    failures = []

    def work() -> None:
        try:
            for size in (0, 1, 1000, 1 << 22) * 20:
                _core.try_scratch(size)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_no_memory_is_torchs_own_error() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="allocate"):
        _core.try_scratch(1 << 60)
    assert issubclass(torch.OutOfMemoryError, RuntimeError)  # what callers that shrink their batch catch
    _core.try_scratch(1)


@pytest.mark.gpu
def test_layers_take_scratch_from_torchs_cache_and_give_it_back() -> None:
    w = ops.pack_weight(torch.randn(512, 500, device="cuda"))  # padded on every call
    x = torch.randn(4096, 500, device="cuda")
    with torch.no_grad():
        y = ops.linear(x, w, norm=ops.Norm("layer"))
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        ops.linear(x, w, norm=ops.Norm("layer"), out=y)
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() >= before + x.numel()  # its codes at least


@pytest.mark.gpu
def test_no_memory_on_a_device_is_an_error_that_passes() -> None:
    w = ops.pack_weight(torch.randn(512, 500, device="cuda"))
    x = torch.randn(65536, 500, device="cuda")
    with torch.no_grad():
        y = ops.linear(x, w)
        torch.cuda.empty_cache()
        share = (torch.cuda.memory_reserved() + (8 << 20)) / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share)
        try:
            with pytest.raises(torch.OutOfMemoryError, match="scratch memory"):
                ops.linear(x, w, out=y)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert torch.equal(ops.linear(x, w, out=y), ops.linear(x, w))


@pytest.mark.gpu
def test_layers_on_a_stream_of_their_own() -> None:
    w = ops.pack_weight(torch.randn(256, 100, device="cuda"))
    x = torch.randn(300, 100, device="cuda")
    expected = ops.linear(x, w)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = [ops.linear(x, w) for _ in range(20)]
    stream.synchronize()
    assert all(torch.equal(y, expected) for y in found)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_a_device_that_is_not_current() -> None:
    weight, x = torch.randn(64, 40), torch.randn(9, 40)
    expected = ops.linear(x.to("cuda:0"), ops.pack_weight(weight.to("cuda:0"))).cpu()
    with torch.cuda.device(0):
        assert torch.equal(ops.linear(x.to("cuda:1"), ops.pack_weight(weight.to("cuda:1"))).cpu(), expected)
        assert ops.quantize(torch.empty(3, 0, device="cuda:1")).scale.tolist() == [1.0] * 3
        with pytest.raises(ValueError, match="x: is on cuda:0 but the weight is on cuda:1"):
            ops.linear(x.to("cuda:0"), ops.pack_weight(weight.to("cuda:1")))
