"""Teacher records: what they hold, how they are kept, and which version speaks when."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import ops
from octavo.store import Lineage, LineageError, RecordLog, Records, StoreError, codec


def some(n: int, first: int = 0, dim: int | None = 5, tasks: tuple[str, ...] = ("click", "sale")) -> Records:
    g = torch.Generator().manual_seed(first + n)
    return Records(
        key=torch.arange(first, first + n),
        logits={task: torch.randn(n, generator=g) for task in tasks},
        version=torch.randint(1, 4, (n,), generator=g),
        written=torch.randint(0, 10**12, (n,), generator=g),
        lag=torch.randint(0, 10**6, (n,), generator=g),
        embedding=None if dim is None else torch.randn(n, dim, generator=g),
    )


def assert_same(found: Records, wanted: Records) -> None:
    for name in ("key", "version", "written", "lag"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert set(found.tasks) == set(wanted.tasks)
    for task in wanted.tasks:
        assert torch.equal(found.logits[task].view(torch.int32), wanted.logits[task].view(torch.int32)), task
    assert (found.embedding is None) == (wanted.embedding is None)
    if wanted.embedding is not None:
        assert torch.equal(found.embedding.view(torch.int32), wanted.embedding.view(torch.int32))


def test_rows_join_and_are_cut():
    whole = Records.joined([some(3), some(4, 3)])
    assert whole.key.tolist() == list(range(7))
    assert_same(whole.rows(slice(3, 7)), some(4, 3))
    assert whole.rows(torch.tensor([6, 0])).key.tolist() == [6, 0]
    assert torch.equal(whole.probabilities("sale"), torch.sigmoid(whole.logits["sale"]))


def test_unknown_records_have_no_version_and_no_numbers():
    nothing = Records.unknown(torch.tensor([4, 9]), ["click"], dim=2)
    assert nothing.version.tolist() == [0, 0]
    assert nothing.logits["click"].isnan().all()
    assert nothing.embedding.isnan().all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"key": torch.arange(3, dtype=torch.int32)}, TypeError, "key: expected int64"),
        ({"lag": torch.arange(2)}, ValueError, r"lag: expected \[3\]"),
        ({"logits": {"click": torch.zeros(3, dtype=torch.float64)}}, TypeError, r"logits\['click'\]: expected float32"),
        ({"embedding": torch.zeros(2, 5)}, ValueError, r"embedding: expected \[3, D\]"),
        ({"embedding": torch.zeros(3, 5).half()}, TypeError, "embedding: expected float32"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change, error, words):
    fields = {name: getattr(some(3), name) for name in ("key", "logits", "version", "written", "lag", "embedding")}
    with pytest.raises(error, match=words):
        Records(**(fields | change))


def test_joining_other_tasks_or_nothing_is_refused():
    with pytest.raises(ValueError, match="parts: one has tasks"):
        Records.joined([some(2), some(2, tasks=("click",))])
    with pytest.raises(ValueError, match="parts: found none"):
        Records.joined([])


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "e4m3"])
@given(rows=st.integers(0, 7), dim=st.integers(1, 33), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_codecs_give_what_their_format_holds(name, rows, dim, seed):
    values = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)) * 3
    kind = codec(name)
    codes = kind.encode(values)
    assert codes.dtype == torch.uint8
    assert codes.shape == (rows, kind.width(dim))
    if name in ("int8", "e4m3"):
        wanted = ops.quantize(values, name, "row").dequantize()
    else:
        wanted = values if name == "fp32" else values.bfloat16().float()
    assert torch.equal(kind.decode(codes, dim), wanted)


def test_an_unknown_codec_is_named():
    with pytest.raises(ValueError, match="codec: found 'zip'; expected one of fp32"):
        codec("zip")


@pytest.mark.parametrize("dim", [None, 5])
def test_a_log_gives_back_its_parts_by_number(tmp_path, dim):
    log = RecordLog.create(tmp_path / "log", ("click", "sale"), dim)
    assert log.write(1, some(4, 10, dim))
    assert log.write(0, some(3, 0, dim))
    again = RecordLog(tmp_path / "log")
    assert again.parts() == [0, 1]
    assert again.has(1)
    assert not again.has(2)
    for found, wanted in zip(again.scan(), [some(3, 0, dim), some(4, 10, dim)], strict=True):
        assert_same(found, wanted)


def test_nan_is_not_lost_and_an_empty_part_is_one(tmp_path):
    log = RecordLog.create(tmp_path / "log", ("click",), 3)
    nothing = Records.unknown(torch.tensor([7, 8]), ["click"], 3)
    log.write(0, nothing)
    log.write(1, nothing.rows(slice(0, 0)))
    assert log.read(0).logits["click"].isnan().all()
    assert log.read(0).embedding.isnan().all()
    assert len(log.read(1)) == 0


def test_eight_bit_embeddings_take_a_quarter(tmp_path):
    sizes = {}
    for name in ("fp32", "int8"):
        log = RecordLog.create(tmp_path / name, ("click",), 64, name)
        log.write(0, some(2000, dim=64, tasks=("click",)))
        sizes[name] = (tmp_path / name / "part-00000000.parquet").stat().st_size
        found = log.read(0).embedding
    assert sizes["int8"] < 0.4 * sizes["fp32"]
    assert torch.equal(found, ops.quantize(some(2000, dim=64, tasks=("click",)).embedding, "int8", "row").dequantize())


def test_a_part_is_written_once(tmp_path):
    log = RecordLog.create(tmp_path / "log", ("click", "sale"), 5)
    assert log.write(0, some(3))
    assert not log.write(0, some(3, 50))
    assert_same(log.read(0), some(3))
    assert sorted(os.listdir(tmp_path / "log")) == ["part-00000000.parquet", "records.json"]


def test_other_records_are_refused(tmp_path):
    log = RecordLog.create(tmp_path / "log", ("click", "sale"), 5)
    with pytest.raises(ValueError, match="records: have tasks"):
        log.write(0, some(3, dim=None))
    with pytest.raises(StoreError, match="not .*click.*take another path"):
        RecordLog.create(tmp_path / "log", ("click",), 5)
    with pytest.raises(ValueError, match="part: expected 0 or more"):
        log.write(-1, some(3))


def test_damage_is_found_and_named(tmp_path):
    log = RecordLog.create(tmp_path / "log", ("click", "sale"), 5)
    log.write(0, some(300))
    file = tmp_path / "log" / "part-00000000.parquet"
    content = bytearray(file.read_bytes())
    content[200] ^= 255
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"part-00000000.parquet: damaged .*write it again"):
        log.read(0)
    with pytest.raises(StoreError, match="missing"):
        log.read(1)
    with pytest.raises(StoreError, match=r"is no record log; RecordLog.create"):
        RecordLog(tmp_path / "other")
    index = tmp_path / "log" / "records.json"
    index.write_text(index.read_text().replace('"dim": 5', '"dim": 6'))
    with pytest.raises(StoreError, match="was changed"):
        RecordLog(tmp_path / "log")


def _write_parts(path, first):
    log = RecordLog(path)
    for part in range(first, 400):
        log.write(part, some(50, part * 50))


def test_a_kill_leaves_parts_whole_or_absent(tmp_path):
    log = RecordLog.create(tmp_path / "log", ("click", "sale"), 5)
    context = multiprocessing.get_context("fork")
    for number in range(3):
        child = context.Process(target=_write_parts, args=(log.path, 0))
        child.start()
        deadline = time.monotonic() + 60
        while len(log.parts()) < 5 * (number + 1) and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        for part in log.parts():
            assert_same(log.read(part), some(50, part * 50))
    assert len(log.parts()) >= 15


def version(number, until, available, **change):
    return {
        "path": f"snapshots/{number}", "sha256": f"{number:064x}", "trained_until": until, "available_from": available,
        "schema": "abc", "tasks": ("click",), "dim": 4, **change,
    }  # fmt: skip


def test_the_newest_version_that_is_available_speaks(tmp_path):
    lineage = Lineage(tmp_path / "lineage.json")
    assert lineage.spoken_by(torch.tensor([5]))[0].tolist() == [0]
    lineage.publish(**version(1, 100, 150))
    lineage.publish(**version(2, 200, 260))
    number, age = Lineage(tmp_path / "lineage.json").spoken_by(torch.tensor([0, 150, 151, 260, 261, 1000]))
    assert number.tolist() == [0, 0, 1, 1, 2, 2]
    assert age.tolist() == [0, 0, 51, 160, 61, 800]
    assert lineage[2].trained_until == 200


def test_publishing_again_changes_nothing(tmp_path):
    lineage = Lineage(tmp_path / "lineage.json")
    first = lineage.publish(**version(1, 100, 150))
    assert lineage.publish(**version(1, 100, 150)) == first
    assert len(lineage) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"available_from": 190}, "available_from: 190 ms is before the snapshot's last event"),
        ({"trained_until": 50, "available_from": 300}, "did another publisher overtake"),
        ({"schema": "def"}, "schema: version 1 has 'abc'"),
        ({"tasks": ("sale",)}, "tasks: version 1 has"),
        ({"dim": None}, "dim: version 1 has 4"),
    ],
)
def test_a_version_that_does_not_follow_is_refused(tmp_path, change, words):
    lineage = Lineage(tmp_path / "lineage.json")
    lineage.publish(**version(1, 100, 150))
    with pytest.raises(LineageError, match=words):
        lineage.publish(**version(2, 200, 260, **change))
    assert len(Lineage(lineage.path)) == 1


def test_a_lineage_that_was_changed_or_cut_is_refused(tmp_path):
    lineage = Lineage(tmp_path / "lineage.json")
    lineage.publish(**version(1, 100, 150))
    text = lineage.path.read_text()
    lineage.path.write_text(text.replace('"trained_until": 100', '"trained_until": 90'))
    with pytest.raises(LineageError, match="changed by hand"):
        Lineage(lineage.path)
    lineage.path.write_text(text[:40])
    with pytest.raises(LineageError, match="not JSON"):
        Lineage(lineage.path)
    lineage.path.write_text(json.dumps({"format": 9}))
    with pytest.raises(LineageError, match="of another format than 1"):
        Lineage(lineage.path)
    with pytest.raises(LineageError, match="has no version 7; it holds 1"):
        lineage[7]


def _publish(path, barrier, numbers):
    lineage = Lineage(path)
    barrier.wait()
    for number in numbers:
        lineage.publish(**version(number, 100, 150))


def test_two_publishers_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    children = [
        context.Process(target=_publish, args=(tmp_path / "lineage.json", barrier, range(first, 40, 2)))
        for first in (0, 1)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    versions = Lineage(tmp_path / "lineage.json").versions
    assert [v.number for v in versions] == list(range(1, 41))
    assert {v.sha256 for v in versions} == {f"{number:064x}" for number in range(40)}


@given(gaps=st.lists(st.integers(0, 50), min_size=0, max_size=6), times=st.lists(st.integers(0, 400), max_size=20))
@settings(max_examples=40, deadline=None)
def test_no_event_hears_of_a_later_one(tmp_path_factory, gaps, times):
    lineage = Lineage(tmp_path_factory.mktemp("l") / "lineage.json")
    until = np.cumsum([0, *gaps])
    for number, moment in enumerate(until.tolist()):
        lineage.publish(**version(number, moment, moment + 7))
    number, age = lineage.spoken_by(torch.tensor(times, dtype=torch.int64))
    for at, n, old in zip(times, number.tolist(), age.tolist(), strict=True):
        if n == 0:
            assert at <= 7
        else:
            assert lineage[n].available_from < at
            assert old == at - lineage[n].trained_until > 7
            assert n == len(lineage) or lineage[n + 1].available_from >= at
