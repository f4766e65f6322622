"""Dynamic tables whose lookups go by the copy of ids that a device has, the kernel that reads it played by Python.

The kernel itself: tests/cpp/cuda_emulator/find_rows_test.cpp; both together on a device: test_cuda_dynamic.py.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from test_nn_dynamic import bags_of, longs

from octavo import _core, nn
from octavo.nn import device_ids
from octavo.nn.device_ids import DeviceIds
from octavo.ops import Jagged
from octavo.ops.find_rows import find_rows


def find_in_slots(maps: Sequence[torch.Tensor | None], values: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """What the kernel does, by nothing but the copies it is given."""
    rows = torch.full_like(values, -1)
    batch = (len(offsets) - 1) // len(maps)
    for t, slots in enumerate(maps):
        span = slice(int(offsets[t * batch]), int(offsets[(t + 1) * batch]))
        own = None if slots is None else {id_: row + 1 for id_, row in slots.tolist() if row >= 0}
        found = [v if own is None else own.get(v, 0) for v in values[span].tolist()]
        rows[span] = longs(*found)
    return rows


@contextmanager
def lookups_there() -> Iterator[list[int]]:
    """CPU tensors take the way of a device's; the slots that each copy to it took."""
    copied: list[int] = []

    def counted(self: DeviceIds, every: bool = False) -> None:
        before = [None if slots is None else slots.clone() for slots in self._slots]
        copy_ids(self, every)
        each = [(a, b) for a, b in zip(before, self._slots, strict=True) if a is not None and b is not None]
        copied.append(sum(int((a != b).any(1).sum()) for a, b in each))

    copy_ids = DeviceIds._copy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.EmbeddingBags, "_finds_there", lambda self, values, trains: not trains)
        patch.setattr(device_ids, "find_rows", find_in_slots)
        patch.setattr(DeviceIds, "_copy", counted)
        yield copied


def module_of(kind: type[nn.EmbeddingBags] = nn.EmbeddingBags) -> nn.EmbeddingBags:
    tables = [
        nn.Table("user", 40, 5, dynamic=nn.Dynamic(admit_after=2, max_age=30)),
        nn.Table("fixed", 9, 3),
        nn.Table("ad", 6, 4, dynamic=nn.Dynamic()),
    ]
    module = kind(tables, nn.RowWiseAdagrad(0.1))
    module.reset_parameters(0.25, torch.Generator().manual_seed(5))
    return module


def batch_of(step: int, size: int = 12) -> Jagged:
    g = torch.Generator().manual_seed(step)
    users = torch.randint(0, 90, (2 * size,), generator=g) * (2**50 + 1) - 2**55
    ads = torch.randint(0, 5, (size,), generator=g) + step // 3
    return Jagged(
        torch.cat([users, torch.randint(0, 9, (size,), generator=g), ads]),
        torch.cat([torch.arange(size + 1) * 2, 2 * size + 1 + torch.arange(size), 3 * size + 1 + torch.arange(size)]),
    )


def joined(out: torch.Tensor | dict[str, torch.Tensor]) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else torch.cat([rows.flatten() for rows in out.values()])


def trained(module: nn.EmbeddingBags, steps: range) -> list[torch.Tensor]:
    """What the module gives for events it did not train on, after each step."""
    found = []
    for step in steps:
        module.train().now = 2 * step
        joined(module(batch_of(step))).square().sum().backward()
        if step % 7 == 6:
            module.dynamic["user"].evict(2 * step + 1)
        found.append(joined(module.eval()(batch_of(step + 1))).clone())
    return found


def expect_same(module: nn.EmbeddingBags, other: nn.EmbeddingBags) -> None:
    mine, theirs = module.state_dict(), other.state_dict()
    for key, value in mine.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs[key]), key
    for name, ids in module.dynamic.items():
        for key, column in ids.entries().items():
            assert torch.equal(column, other.dynamic[name].entries()[key]), (name, key)


@pytest.mark.parametrize("kind", [nn.EmbeddingBags, nn.EmbeddingCollection])
def test_lookups_by_the_copy_are_those_by_the_map(kind: type[nn.EmbeddingBags]) -> None:
    module, other = module_of(kind), module_of(kind)
    expected = trained(module, range(30))
    with lookups_there() as copied:
        found = trained(other, range(30))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    expect_same(module, other)
    assert all(ids.map.removed > 0 for ids in other.dynamic.values())
    assert len(copied) > 20


def test_only_what_changed_is_copied() -> None:
    module = nn.EmbeddingBags([nn.Table("a", 1000, 2, dynamic=nn.Dynamic())], nn.SGD(0.1))
    with lookups_there() as copied:
        for first in (0, 500, 503, 503):
            module.train()(bags_of(*range(first, first + 5)))
            module.eval()(bags_of(first))
        slots = module._device_ids._slots[0]
        assert copied[1:] == [5, 3]  # the fourth time nothing had changed
        module.train()(bags_of(*range(900)))
        module.eval()(bags_of(1))  # too many to tell: all
        assert module._device_ids._slots[0] is slots
        assert module.eval()(bags_of(899)).count_nonzero() == 2
        module.dynamic["a"].erase(longs(899))
        assert module(bags_of(899)).count_nonzero() == 0


def test_a_copy_made_in_inference_mode_serves_outside_it() -> None:
    module = nn.EmbeddingBags([nn.Table("a", 50, 2, dynamic=nn.Dynamic())], nn.SGD(0.1))
    with lookups_there():
        module(bags_of(1))
        with torch.inference_mode():
            first = module.eval()(bags_of(1))
        module.train()(bags_of(2)).sum().backward()
        with torch.no_grad():
            found = module.eval()(bags_of(1, 2))
        assert torch.equal(found[:1], first)
        assert found[1].count_nonzero() == 2


def test_copies_files_and_new_ids_are_seen() -> None:
    with lookups_there():
        module = module_of()
        trained(module, range(6))
        expected = module.eval()(batch_of(5))
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        other = module_of()
        trained(other, range(50, 53))
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other.eval()(batch_of(5)), expected)
        twin = copy.deepcopy(module)
        assert torch.equal(twin(batch_of(5)), expected)
        trained(twin, range(20, 26))
        assert torch.equal(module.eval()(batch_of(5)), expected)
        twin.ids = copy.deepcopy(module.ids)  # as a reverted Mod puts others in their place
        twin.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("ids")}, strict=False)
        assert torch.equal(twin.eval()(batch_of(5)), expected)
        assert torch.equal(module.to_dtype("int8")(batch_of(5)), copy.deepcopy(module).to_dtype("int8")(batch_of(5)))
        module.reset_parameters(0.25, torch.Generator().manual_seed(5))
        dynamic = torch.cat([module(batch_of(5))[:, :5], module(batch_of(5))[:, 8:]], 1)
        assert dynamic.count_nonzero() == 0


@pytest.mark.parametrize("kind", [nn.EmbeddingBags, nn.EmbeddingCollection])
def test_a_gradient_of_an_id_that_lost_its_row_goes_to_the_shared_one(kind: type[nn.EmbeddingBags]) -> None:
    module = kind([nn.Table("a", 1, 3, dynamic=nn.Dynamic())], nn.SGD(1.0))
    with lookups_there():
        first = joined(module(bags_of(1)))
        fresh = joined(module(bags_of(2))).detach().clone()
        first.sum().backward()
        found = joined(module.eval()(bags_of(2, 1))).view(2, 3)
    assert torch.equal(found, torch.cat([fresh.view(1, 3), torch.full((1, 3), -1.0)]))


def test_the_step_stays_where_the_host_reads_it() -> None:
    module = nn.EmbeddingBags([nn.Table("a", 4, 3)], nn.Adam(0.1))
    module(longs(1), longs(0, 1)).sum().backward()
    step = module.step
    module.to("meta")
    assert module.rows.get("a").is_meta
    assert module.step is step
    assert int(step) == 1


def test_a_capture_is_refused_where_it_would_repeat_what_the_host_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    module = nn.EmbeddingBags([nn.Table("a", 4, 3, dynamic=nn.Dynamic())], nn.SGD(0.1))
    with pytest.raises(RuntimeError, match=r"call refresh_ids\(\) before the capture"):
        DeviceIds(module.ids, ["a"], torch.device("cuda", 0))
    there = property(lambda self: torch.device("cuda", 0))
    monkeypatch.setattr(nn.EmbeddingBags, "_device", there)
    with pytest.raises(RuntimeError, match="which a CUDA graph cannot repeat; capture forwards in eval mode"):
        module(longs(1), longs(0, 1))
    assert len(module.dynamic["a"]) == 0


def test_wrong_arguments_are_named() -> None:
    slots = torch.empty(8, 2, dtype=torch.int64)
    with pytest.raises(TypeError, match="values: expected int64, found float32"):
        find_rows([slots], torch.ones(1), longs(0, 1))
    with pytest.raises(ValueError, match=r"offsets: 2 entries; 2 table\(s\) need"):
        find_rows([slots, None], longs(1), longs(0, 1))
    with pytest.raises(ValueError, match="values: is on cpu, the maps are on meta"):
        find_rows([slots.to("meta")], longs(1), longs(0, 1))
    with pytest.raises(RuntimeError, match="find_rows: no usable kernel for cpu"):
        find_rows([slots], longs(1), longs(0, 1))
    with pytest.raises(ValueError, match=r"find_rows: cpu\.generic\.row_lookup finds no rows of ids"):
        find_rows([slots], longs(1), longs(0, 1), _core.kernel("cpu.generic.row_lookup"))
    module = module_of()
    module.refresh_ids()  # nothing to do on a CPU
    assert module._device_ids is None
    with pytest.raises(TypeError, match=r"values: expected a torch\.Tensor"):
        module([1], longs(0, 1, 1, 1))
