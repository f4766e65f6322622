"""Memory of large outputs: never shared by living tensors, used again afterwards."""

import gc

import pytest
import torch

from octavo import _core


def test_living_outputs_share_nothing_and_dead_ones_lend_their_memory() -> None:
    a, b = (_core.empty_output((1024, 300)) for _ in range(2))
    a.fill_(1)
    b.fill_(2)
    assert bool((a == 1).all())
    assert (a.shape, a.dtype, a.is_contiguous()) == ((1024, 300), torch.float32, True)
    assert a.data_ptr() % 64 == 0
    assert not a._is_view()
    address, view = a.data_ptr(), a[3:5]
    del a
    gc.collect()
    assert _core.empty_output((1024, 300)).data_ptr() not in (address, b.data_ptr())  # a view lives
    assert bool((view == 1).all())
    del view
    assert _core.empty_output((512, 600)).data_ptr() == address


def test_autograd_keeps_what_it_saved() -> None:
    x = _core.empty_output((1024, 300)).fill_(3).requires_grad_()
    y = (x * x).sum()
    address = x.data_ptr()
    del x
    assert _core.empty_output((1024, 300)).data_ptr() != address
    assert y.item() == 9 * 1024 * 300


def test_reused_memory_does_not_grow_under_a_tensor() -> None:
    x = _core.empty_output((1024, 300))
    with pytest.raises(RuntimeError, match="not resizable"):
        x.resize_(1024, 301)


@pytest.mark.parametrize("shape", [(), (3, 0), (0, 3), (3, 4), (1024, 600), (1, 17 << 20), (64, 100, 50), (5,)])
@pytest.mark.parametrize("is_bf16", [False, True])
def test_any_shape_and_type(shape, is_bf16) -> None:
    x = _core.empty_output(shape, is_bf16).fill_(2)
    assert (x.shape, x.dtype, x.is_contiguous()) == (shape, torch.bfloat16 if is_bf16 else torch.float32, True)
    assert x.double().sum().item() == 2 * x.numel()


def test_what_is_kept_is_bounded() -> None:
    # 40 sizes of 12 MB each: were all of them kept, the process would have grown by 480 MB
    before = _resident()
    for columns in range(3000, 3040):
        _core.empty_output((1024, columns)).fill_(1)
    assert _resident() - before < 200 << 20


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
