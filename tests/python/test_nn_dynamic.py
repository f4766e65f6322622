"""nn.Table(dynamic=...): rows of ids that nobody knew, against a dict; what new, unknown and recycled rows hold."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import _core, nn
from octavo.nn.dynamic import DynamicRows
from octavo.ops import Jagged

LOW, HIGH = -(2**63), 2**63 - 1
OPTIMIZERS = [nn.SGD(0.1), nn.Adagrad(0.1), nn.RowWiseAdagrad(0.1), nn.Adam(0.1)]
DTYPES = ["fp32", "fp16", "bf16", "e4m3", "int8", "int4"]


def longs(*ids: int) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int64)


def bags_of(*ids: int) -> Jagged:
    """One bag an id."""
    return Jagged(longs(*ids), torch.arange(len(ids) + 1))


def module_of(rows: int = 8, dim: int = 5, optimizer: Any = None, dtype: str = "fp32", **dynamic: Any) -> Any:
    table = nn.Table("user", rows, dim, dtype=dtype, dynamic=nn.Dynamic(**dynamic))
    module = nn.EmbeddingBags([table], optimizer or nn.SGD(0.5), seed=3)
    module.reset_parameters(0.25, torch.Generator().manual_seed(5))
    return module


class Model:
    """What DynamicRows promises, in a dict."""

    def __init__(self, max_rows: int, max_age: int | None) -> None:
        self.max_rows, self.max_age, self.floor = max_rows, max_age, 0
        self.held: dict[int, list[int]] = {}  # id -> [row, score, last seen]

    def _drop(self, id_: int) -> None:
        del self.held[id_]

    def _old(self, id_: int, now: int) -> bool:
        return self.max_age is not None and now - self.held[id_][2] > self.max_age

    def _touch(self, id_: int, now: int) -> None:
        row, score, seen = self.held[id_]
        self.held[id_] = [row, min(max(score, self.floor) + 1, self.floor + 32), max(seen, now)]

    def _make_room(self, now: int, pinned: set[int]) -> None:
        wanted = max(1, self.max_rows // 16)
        old = [id_ for id_ in self.held if id_ not in pinned and self._old(id_, now)]
        for id_ in old:
            self._drop(id_)
        order = sorted((max(self.held[i][1], self.floor), self.held[i][2], i) for i in self.held if i not in pinned)
        for score, _, id_ in order[: max(0, wanted - len(old))]:
            self._drop(id_)
            self.floor = max(self.floor, score)

    def admit(self, ids: list[int], now: int) -> list[int]:
        pinned = {id_ for id_ in ids if id_ in self.held}
        known = [id_ in self.held for id_ in ids]
        for id_ in pinned:
            self._touch(id_, now)
        for id_, was_known in zip(ids, known, strict=True):
            if was_known or id_ in self.held:
                continue
            if len(self.held) == self.max_rows:
                self._make_room(now, pinned)
            if len(self.held) < self.max_rows:
                used = {row for row, _, _ in self.held.values()}
                row = next(r for r in range(1, self.max_rows + 1) if r not in used)
                self.held[id_] = [row, self.floor + 1, now]
                pinned.add(id_)
        return [self.held[id_][0] if id_ in self.held else 0 for id_ in ids]


ids_strategy = st.lists(st.integers(-12, 12) | st.integers(LOW, HIGH) | st.sampled_from([LOW, HIGH, 0]), max_size=30)
calls_strategy = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "admit", "erase", "evict", "reload"]), ids_strategy, st.integers(0, 9)
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(calls_strategy, st.integers(0, 40), st.sampled_from([None, 3, 20]))
def test_rows_are_a_dicts(calls: Any, max_rows: int, max_age: int | None) -> None:
    rows = DynamicRows(max_rows, 2, nn.Dynamic(max_age=max_age))
    model = Model(max_rows, max_age)
    now = 0
    for action, ids, later in calls:
        now += later - 2  # time may go back
        if action == "admit":
            assert rows.admit(longs(*ids), now)[0].tolist() == model.admit(ids, now)
        elif action == "erase":
            gone = [id_ for id_ in dict.fromkeys(ids) if id_ in model.held]
            assert rows.erase(longs(*ids)) == len(gone)
            for id_ in gone:
                model._drop(id_)
        elif action == "evict":
            gone = [id_ for id_ in model.held if model._old(id_, now)]
            assert rows.evict(now) == len(gone)
            for id_ in gone:
                model._drop(id_)
        else:
            rows = copy.deepcopy(rows)
        assert len(rows) == len(model.held) <= max_rows
        found = rows.entries()
        expected = sorted((row, id_, seen, score) for id_, (row, score, seen) in model.held.items())
        keys = ("places", "ids", "last_seen", "scores")
        assert list(zip(*(found[key].tolist() for key in keys), strict=True)) == expected
        probe = [*ids, *range(-3, 3)]
        assert rows.find(longs(*probe)).tolist() == [model.held[i][0] if i in model.held else 0 for i in probe]


@settings(max_examples=60, deadline=None)
@given(st.lists(ids_strategy, max_size=12), st.integers(2, 5))
def test_an_id_is_admitted_at_its_nth_sighting(calls: list[list[int]], admit_after: int) -> None:
    rows = DynamicRows(400, 2, nn.Dynamic(admit_after=admit_after))  # 8 * 400 sightings: nothing is halved
    seen: dict[int, int] = {}
    for ids in calls:
        found = rows.admit(longs(*ids), 0)[0].tolist()
        for id_, row in zip(ids, found, strict=True):
            seen[id_] = seen.get(id_, 0) + 1
            assert row or seen[id_] < admit_after  # never late; early only where four counters are shared
        assert found == rows.find(longs(*ids)).tolist()  # in all its places of the batch
    late = [id_ for id_, count in seen.items() if count < admit_after]
    early = int((rows.find(longs(*late)) != 0).sum())
    assert early <= len(seen) // 20


def test_sightings_fade() -> None:
    rows = DynamicRows(8, 2, nn.Dynamic(admit_after=100))
    for _ in range(99):
        rows.admit(longs(7), 0)  # 8 * 8 sightings halve the counters
    assert rows.admit(longs(7), 0)[0].tolist() == [0]


def test_counters_are_shared_rarely() -> None:
    rows = DynamicRows(5000, 2, nn.Dynamic(admit_after=3))
    ids = torch.arange(4000) * 7919
    rows.admit(ids, 0)
    rows.admit(ids, 0)
    assert len(rows) < 0.02 * 4000  # early: all four counters shared
    assert bool((rows.admit(ids, 0)[0] > 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.kind)
def test_a_dynamic_table_trains_as_a_fixed_one_with_the_same_rows(optimizer: Any, dtype: str) -> None:
    module = module_of(40, 7, optimizer, dtype)
    fixed = nn.EmbeddingBags([nn.Table("user", 41, 7, dtype=dtype)], optimizer, seed=3)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        ids = torch.randint(LOW, HIGH, (30,), generator=generator) >> 58  # 64 ids
        ids = ids * 1_000_003_000_007
        offsets = torch.tensor([0, 0, 7, 30])
        module.eval()
        before = module(ids, offsets)
        assert torch.equal(before, module(ids, offsets))
        module.train()
        dynamic = module.dynamic["user"]
        twin = copy.deepcopy(dynamic)
        rows, fresh, new = twin.admit(ids, twin.clock + 1)
        with torch.no_grad():
            fixed._start_rows(fixed.tables[0], fresh, twin.draw(new))
            if step == 0:
                fixed._start_rows(fixed.tables[0], longs(0), torch.zeros(1, 7))
        target = torch.randn(3, 7, generator=generator)
        found, expected = module(ids, offsets), fixed(rows, offsets)
        assert torch.equal(found, expected)
        for y in (found, expected):
            (y - target).square().sum().backward()
        live = dynamic.entries()["places"]
        for kind in ("rows", "state", "scale"):
            mine, theirs = module.state_dict().get(f"{kind}.user"), fixed.state_dict().get(f"{kind}.user")
            assert (mine is None) == (theirs is None)
            if mine is not None and theirs is not None:
                places = torch.cat([longs(0), live])
                a, b = (t.view(torch.uint8) if t.element_size() == 1 else t for t in (mine, theirs))
                assert torch.equal(a[places], b[places]), kind
    assert 38 <= len(dynamic) <= 40
    assert dynamic.map.removed > 0


def test_new_rows_depend_on_seed_and_id_alone() -> None:
    module, other = module_of(), module_of()
    module(bags_of(5, LOW, 9))
    other(bags_of(9))
    other(bags_of(LOW, 5))
    module.eval(), other.eval()
    y = module(bags_of(5, LOW, 9))
    assert torch.equal(y, other(bags_of(5, LOW, 9)))
    assert len(set(y.flatten().tolist())) == 15
    assert 0.1 < float(y.abs().max()) <= 0.25
    other.reset_parameters(0.25, torch.Generator().manual_seed(6))
    assert len(other.dynamic["user"]) == 0
    other.train()(bags_of(5))
    assert not torch.equal(other.eval()(bags_of(5)), y[:1])


def test_nothing_is_admitted_unless_it_trains() -> None:
    module = module_of()
    with torch.no_grad():
        assert module(bags_of(1, 2)).count_nonzero() == 0
    assert module.eval()(bags_of(1, 2)).count_nonzero() == 0
    frozen = nn.EmbeddingBags(module.tables)
    assert frozen(bags_of(1, 2)).count_nonzero() == 0
    assert len(module.dynamic["user"]) == len(frozen.dynamic["user"]) == 0


def test_ids_without_a_row_share_row_0_which_trains() -> None:
    module = module_of(admit_after=3)
    module(bags_of(1, 2)).sum().backward()
    shared = torch.full((5,), -1.0)  # 0 - 0.5 * 2
    assert torch.equal(module.state_dict()["rows.user"][0], shared)
    assert torch.equal(module.eval()(bags_of(1, 77))[1], shared)
    module.train()(bags_of(1, 1)).sum().backward()  # the third sighting
    assert module.dynamic["user"].find(longs(1, 2)).tolist() == [1, 0]
    assert torch.equal(module.eval()(bags_of(88))[0], shared)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_recycled_row_keeps_nothing_of_the_id_before(dtype: str) -> None:
    module = module_of(1, 9, nn.Adam(0.1), dtype)
    for _ in range(5):
        module(bags_of(1)).square().sum().backward()
    module.dynamic["user"].erase(longs(1))
    assert module.eval()(bags_of(1)).count_nonzero() == 0
    y = module.train()(bags_of(2))
    clean = module_of(1, 9, nn.Adam(0.1), dtype)
    clean.reset_parameters(0.25, torch.Generator().manual_seed(5))
    assert torch.equal(y, clean(bags_of(2)))
    state = module.state_dict()
    assert state["state.user"][1].count_nonzero() == 0
    assert module.dynamic["user"].find(longs(2)).tolist() == [1]


def test_a_gradient_never_reaches_the_next_id_of_a_row() -> None:
    module = module_of(1)
    first = module(bags_of(1))
    second = module(bags_of(2))  # 1 lost its row
    fresh = second.detach().clone()
    first.sum().backward()  # goes to the row that ids without one share
    module.eval()
    assert torch.equal(module(bags_of(2)), fresh)
    assert torch.equal(module(bags_of(1)), torch.full((1, 5), -0.5))
    second.sum().backward()
    assert torch.equal(module(bags_of(2)), fresh - 0.5)


def test_fixed_and_dynamic_tables_in_one_module() -> None:
    tables = [nn.Table("a", 4, 3), nn.Table("b", 10, 2, dynamic=nn.Dynamic()), nn.Table("c", 4, 1, pooling="mean")]
    module = nn.EmbeddingBags(tables, nn.SGD(1.0))
    values, offsets = longs(0, 3, 10**15, -4, -4, 2, 1), longs(0, 1, 2, 5, 5, 5, 7)
    y = module(values, offsets)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items() if name.startswith("rows")}
    b = state["rows.b"]
    expected = torch.cat([state["rows.a"][[0, 3]], torch.stack([b[1] + b[2] + b[2], torch.zeros(2)])], 1)
    assert torch.allclose(y[:, :5], expected)
    assert torch.allclose(y[1, 5], state["rows.c"][[2, 1]].mean())
    y.sum().backward()
    assert torch.allclose(module.state_dict()["rows.b"][:3], b[:3] - longs(0, 1, 2)[:, None])
    with pytest.raises(IndexError, match="'a'"):
        module(longs(4), longs(0, 1, 1, 1))
    with pytest.raises(ValueError, match="offsets"):
        module(longs(4, 2), longs(0, 2, 1, 2))
    assert len(module.dynamic["b"]) == 2


def test_an_empty_batch_and_no_rows_at_all() -> None:
    module = module_of(0)
    assert module(bags_of(1, 2)).count_nonzero() == 0
    assert module(Jagged(longs(), longs(0))).shape == (0, 5)
    assert module(Jagged(longs(), longs(0, 0))).shape == (1, 5)


def test_a_collection_reads_the_same_rows() -> None:
    tables = [nn.Table("a", 6, 3, dynamic=nn.Dynamic()), nn.Table("b", 6, 3)]
    module = nn.EmbeddingCollection(tables, nn.SGD(1.0))
    values, offsets = longs(HIGH, LOW, HIGH, 5, 5), longs(0, 3, 5)
    before = {name: rows.detach().clone() for name, rows in module(values, offsets).items()}
    assert torch.equal(before["a"][0], before["a"][2])
    out = module(values, offsets)
    (out["a"].sum() + out["b"].sum()).backward()
    after = module.eval()(values, offsets)
    assert torch.allclose(after["a"], before["a"] - torch.tensor([[2.0], [1.0], [2.0]]))
    assert torch.allclose(after["b"], before["b"] - 2)


def test_a_collections_gradient_of_an_id_that_lost_its_row() -> None:
    module = nn.EmbeddingCollection([nn.Table("a", 1, 3, dynamic=nn.Dynamic())], nn.SGD(1.0))
    first = module(bags_of(1))["a"]
    fresh = module(bags_of(2))["a"].detach().clone()
    first.sum().backward()
    assert torch.equal(module.eval()(bags_of(2, 1))["a"], torch.cat([fresh, torch.full((1, 3), -1.0)]))


def test_state_dict_copies_and_files_restore_it() -> None:
    module = module_of(6, admit_after=2)
    for step in range(4):
        module(bags_of(*range(step, step + 5))).sum().backward()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    twin = module_of(6, admit_after=2)
    twin.load_state_dict(torch.load(file, weights_only=True))
    copies = [twin, copy.deepcopy(module)]
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies.append(torch.load(file, weights_only=False))
    for other in copies:
        original = copy.deepcopy(module)
        for step in range(3, 9):  # the same from here on, admissions and evictions included
            ys = [m(bags_of(*range(step, step + 5))) for m in (original, other)]
            assert torch.equal(*ys)
            for y in ys:
                y.square().sum().backward()
        assert torch.equal(original.state_dict()["rows.user"], other.state_dict()["rows.user"])
        assert original.dynamic["user"].map.removed > 0
    with pytest.raises((ValueError, RuntimeError), match="dynamic tables"):
        nn.EmbeddingBags([nn.Table("other", 6, 5, dynamic=nn.Dynamic())]).ids.set_extra_state(
            module.ids.get_extra_state()
        )


def test_a_narrower_copy_knows_the_ids() -> None:
    module = module_of(6, 16)
    module(bags_of(5, -7)).sum().backward()
    y = module.eval()(bags_of(5, -7, 1))
    coded = module.to_dtype("int8")
    assert torch.allclose(coded(bags_of(5, -7, 1)), y, atol=2e-3)
    module.dynamic["user"].erase(longs(5))
    assert torch.allclose(coded(bags_of(5)), y[:1], atol=2e-3)


def test_touched_rows_are_marked() -> None:
    tables = [nn.Table("a", 4, 3), nn.Table("b", 9, 2, dynamic=nn.Dynamic(admit_after=2))]
    module = nn.EmbeddingBags(tables, nn.SGD(1.0))
    touched = module.track_touched()
    module.eval()(longs(1, 7), longs(0, 1, 2))
    assert not any(flags.any() for flags in touched.values())
    module.train()(longs(3, 7, 7, 8), longs(0, 1, 4)).sum().backward()
    assert touched["a"].tolist() == [0, 0, 0, 1]
    assert touched["b"].tolist() == [1, 1] + [0] * 8


def test_time_is_the_callers_or_counts_forwards() -> None:
    module = module_of(4, max_age=10)
    module.now = 1_000
    module(bags_of(1))
    module.now = 1_011
    module(bags_of(2))
    assert module.dynamic["user"].evict(1_011) == 1
    counting = module_of(4, max_age=2)
    for id_ in (1, 2, 3, 4):
        counting(bags_of(id_))
    assert counting.dynamic["user"].entries()["last_seen"].tolist() == [1, 2, 3, 4]
    assert counting.dynamic["user"].evict(counting.dynamic["user"].clock) == 1


def test_threads_change_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    streams = [torch.randint(0, 9000, (6000,), generator=generator) ** 3 for _ in range(8)]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rows = DynamicRows(4000, 4, nn.Dynamic(admit_after=2))
            found.append([rows.admit(ids, now)[0] for now, ids in enumerate(streams)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="admit_after: expected 1..255 sightings, found 0"):
        nn.Dynamic(admit_after=0)
    with pytest.raises(ValueError, match="max_age: expected 1 or more, or None, found 0"):
        nn.Dynamic(max_age=0)
    with pytest.raises(ValueError, match="max_rows"):
        _core.IdMap(2**31)
    with pytest.raises(TypeError, match="ids: expected int64"):
        module_of().dynamic["user"].find(torch.zeros(2))


TOGETHER = """
import sys, torch
import torch.distributed as dist
from octavo import nn
from octavo.training.distributed import Group

rank, world = int(sys.argv[1]), int(sys.argv[2])
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world)
group = Group(rank, world)
tables = [nn.Table("a", 9, 4, dynamic=nn.Dynamic(admit_after=2)), nn.Table("b", 30, 3)]
kinds = {"bags": nn.EmbeddingBags, "collection": nn.EmbeddingCollection}
for name, kind in kinds.items():
    module = kind(tables, nn.Adagrad(0.1))
    module.reset_parameters(0.2, torch.Generator().manual_seed(1))
    group.attach(module)
    flags = module.track_touched()
    for step in range(12):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 8, (6, 2), generator=generator) + step
        others = torch.randint(0, 30, (6, 1), generator=generator)
        goal = torch.randn(6, 18, generator=generator)
        cuts = [6 * r // world for r in range(world + 1)]
        own = slice(cuts[rank], cuts[rank + 1])
        count = cuts[rank + 1] - cuts[rank]
        module.now = 1000 * step + count * rank  # of a process's own events
        values = torch.cat([ids[own].flatten(), others[own].flatten()])
        offsets = torch.cat([torch.arange(count + 1) * 2, 2 * count + 1 + torch.arange(count)])
        out = module(values, offsets)
        if name == "bags":
            loss = (out * goal[own, :7]).sum()
        else:
            loss = (out["a"].view(count, 2, 4).flatten(1) * goal[own, :8]).sum() + (out["b"] * goal[own, 8:11]).sum()
        loss.backward()
    state = {key: value for key, value in module.state_dict().items() if key[:4] in ("rows", "stat")}
    entries = module.dynamic["a"].entries()
    state |= {key: entries[key] for key in ("places", "ids", "scores")}
    state |= {f"touched.{key}": value for key, value in flags.items()}
    torch.save(state, f"{sys.argv[3]}.{name}.{world}.{rank}")
if world > 1:
    dist.barrier()
    dist.destroy_process_group()  # gloo's threads must not outlive the interpreter
"""


def test_processes_that_train_together_give_ids_the_same_rows(tmp_path: Path) -> None:
    for world in (1, 2):
        store = tmp_path / f"store-{world}"
        command = [sys.executable, "-c", TOGETHER]
        each = [subprocess.Popen([*command, str(rank), str(world), str(store)]) for rank in range(world)]
        assert [process.wait(timeout=120) for process in each] == [0] * world
    for name in ("bags", "collection"):
        alone = torch.load(tmp_path / f"store-1.{name}.1.0")
        both = [torch.load(tmp_path / f"store-2.{name}.2.{rank}") for rank in (0, 1)]
        assert len(alone["ids"]) > 5
        for key, value in alone.items():
            assert torch.equal(both[0][key], both[1][key]), key
            if value.is_floating_point():
                live = torch.cat([longs(0), alone["places"]]) if key.endswith(".a") else torch.arange(len(value))
                assert torch.allclose(both[0][key][live], value[live], atol=1e-6), key
            else:
                assert torch.equal(both[0][key], value), key
