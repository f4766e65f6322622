"""Memory of large outputs: never shared by living tensors, used again afterwards."""

import gc

import torch

from octavo.ops import _outputs


def test_living_outputs_share_nothing_and_dead_ones_lend_their_memory() -> None:
    a, b = (_outputs.empty(1024, 300, torch.float32) for _ in range(2))
    a.fill_(1)
    b.fill_(2)
    assert bool((a == 1).all())
    assert a.data_ptr() % 64 == 0
    assert not a._is_view()
    address, view = a.data_ptr(), a[3:5]
    del a
    gc.collect()
    assert _outputs.empty(1024, 300, torch.float32).data_ptr() not in (address, b.data_ptr())  # a view lives
    assert bool((view == 1).all())
    del view
    assert _outputs.empty(512, 600, torch.float32).data_ptr() == address


def test_autograd_keeps_what_it_saved() -> None:
    x = _outputs.empty(1024, 300, torch.float32).fill_(3).requires_grad_()
    y = (x * x).sum()
    address = x.data_ptr()
    del x
    assert _outputs.empty(1024, 300, torch.float32).data_ptr() != address
    assert y.item() == 9 * 1024 * 300


def test_small_and_narrow_outputs_are_torchs() -> None:
    assert _outputs.empty(3, 0, torch.float32).shape == (3, 0)
    assert _outputs.empty(1024, 600, torch.bfloat16).dtype == torch.bfloat16
    before = dict(_outputs._lent)
    kept = [_outputs.empty(3, 4, torch.float32), _outputs.empty(1, 17 << 20, torch.float32)]
    assert len(kept) == 2
    assert before == _outputs._lent


def test_what_is_kept_is_bounded() -> None:
    for columns in range(3000, 3040):
        _outputs.empty(1024, columns, torch.float32)
    assert 4 * sum(size * len(blocks) for size, blocks in _outputs._free.items()) <= _outputs._KEPT
