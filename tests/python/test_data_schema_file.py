"""Schemas as YAML: shipped, inferred, read back, and refused by file and key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from octavo.cli.main import app
from octavo.data import (
    Clip,
    DataError,
    Dense,
    EventLog,
    Label,
    Log1p,
    Made,
    Schema,
    Source,
    Sparse,
    convert,
    data_root,
    dump_schema,
    infer_schema,
    load_schema,
    save_schema,
    shipped_schemas,
)

SCHEMA = Schema(
    dense=(Dense("x", (Clip(0, 9), Log1p()), 0.0), Dense("z")),
    sparse=(Sparse("a", 8), Sparse("w", encoding="vocabulary", vocabulary=("no", "on")), Sparse("b", 8, table="a")),
    sequences=(Sparse("h", 8, multi=True, table="a"),),
    labels=(Label("y", "d"), Label("v")),
    user="u",
)
SOURCE = Source("\t", ("a", "b"), ("", "-"), {"a": "int64"}, {"time": Made("s", "t"), "id": Made("row")})


def sample(name: str) -> Path:
    path = data_root() / "ctr_schema_samples" / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def test_read_back(tmp_path: Path) -> None:
    save_schema(SCHEMA, tmp_path / "s.yaml", SOURCE)
    assert load_schema(tmp_path / "s.yaml") == (SCHEMA, SOURCE)
    SCHEMA.to_yaml(tmp_path / "t.yaml")
    assert Schema.from_yaml(tmp_path / "t.yaml") == SCHEMA
    noted = dump_schema(SCHEMA, SOURCE, {"x": "why", "other": "left out"})
    assert "# why\n" in noted
    assert noted.endswith("# other: left out\n")
    (tmp_path / "n.yaml").write_text(noted)
    assert load_schema(tmp_path / "n.yaml") == (SCHEMA, SOURCE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dens: []", "bad.yaml: unknown key 'dens'; expected one of dense, sparse"),
        ("user: 3", "bad.yaml: user: expected a column's name, found 3"),
        ("dense: {x: 1}", "bad.yaml: dense: expected a list, found dict"),
        ("dense: [x]", r"bad.yaml: dense\[0\]: expected keys and values, name among them, found 'x'"),
        ("sparse: [{name: a, rows: 4}, {name: b, rows: many}]", r"bad.yaml: sparse\[1\] \(b\): not a schema"),
        ("sparse: [{name: a, row: 4}]", r"bad.yaml: sparse\[0\] \(a\): Sparse has no key 'row'"),
        ("dense: [{name: a, transforms: [{kind: exp}]}]", r"bad.yaml: dense\[0\] \(a\).*unknown transform 'exp'"),
        ("user: a\nuser: b", "bad.yaml: not valid YAML: .*'user' appears twice"),
        ("source: {sep: ';'}", "bad.yaml: source: unknown key 'sep'; expected one of delimiter"),
        ("source: {make: {time: {kind: h}}}", "bad.yaml: source: make: time.*unknown 'h'"),
        ("source: {types: {a: number}}", "bad.yaml: source: types: a: 'number' is not an Arrow type"),
        ("- a", "bad.yaml: expected keys and values, found list"),
    ],
)
def test_refuses_by_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(DataError, match=says):
        load_schema(tmp_path / "bad.yaml")


def test_a_name_that_is_no_file() -> None:
    with pytest.raises(DataError, match="nope: no such file, nor a shipped schema: amazon_reviews, avazu"):
        load_schema("nope")


@pytest.mark.parametrize("name", shipped_schemas())
def test_shipped(name: str) -> None:
    schema, source = load_schema(name)
    assert schema.labels
    assert set(source.make) - set(schema.columns()) == set()
    if source.names:  # the file has no header: every column read is one of its own, or made from one
        assert set(schema.columns()) <= {*source.names, *source.make}
        assert {made.column for made in source.make.values() if made.column} <= set(source.names)


def test_criteo_display_sample(tmp_path: Path) -> None:
    raw = pq.read_table(sample("criteo_display_4k.parquet"))
    schema, source = load_schema("criteo_display")
    log, done = convert(schema, [sample("criteo_display_4k.parquet")], tmp_path / "log", source)
    assert (done.events, done.moved, done.dropped) == (3998, 0, 0)
    batch = log.read()
    clicked = raw.column("Label").to_numpy()
    np.testing.assert_array_equal(batch.labels["Label"].numpy(), clicked)
    counts = np.maximum(np.nan_to_num(raw.column("I5").to_numpy().astype(np.float64)), 0)
    np.testing.assert_array_equal(batch.dense[:, 4].numpy(), np.log1p(counts).astype(np.float32))
    assert len(batch.sparse.values) == sum(len(raw) - raw.column(f"C{n}").null_count for n in range(1, 27))
    # As the challenge's own file has it: tabs, no header, empty fields.
    names = list(source.names)
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    plain = raw.select(names).set_column(0, "Label", raw.column("Label"))
    for at, name in enumerate(names):
        if name.startswith("I"):
            plain = plain.set_column(at, name, plain.column(name).cast("int64"))
    csv.write_csv(plain, tmp_path / "train.txt", options)
    again = convert(schema, [tmp_path / "train.txt"], tmp_path / "text", source)[0].read()
    assert again.dense.equal(batch.dense)
    assert again.sparse.values.equal(batch.sparse.values)
    assert again.sparse.offsets.equal(batch.sparse.offsets)


def test_avazu_sample(tmp_path: Path) -> None:
    path = sample("avazu_100.parquet")
    log = convert(*_swap(load_schema("avazu"), path, tmp_path / "log"))[0]
    batch, raw = log.read(), pq.read_table(path)
    assert set(batch.time.tolist()) == {1413849600000}  # 2014-10-21 00:00 UTC
    assert batch.id.numpy().view(np.uint64).tolist() == raw.column("id").to_pylist()
    assert batch.labels["click"].tolist() == raw.column("click").to_pylist()


def test_kuaivideo_histories(tmp_path: Path) -> None:
    raw = tmp_path / "train.csv"
    raw.write_text("timestamp,user_id,item_id,is_click,is_like,is_follow,pos_items,neg_items\n5,1,2,1,0,0,7^2,\n")
    batch = convert(*_swap(load_schema("kuaivideo"), raw, tmp_path / "log"))[0].read()
    assert batch.sequences["pos_items"].lengths().tolist() == [2]
    assert batch.sequences["pos_items"].values[1] == batch.sparse.values[1]  # the item's own row
    assert batch.sequences["neg_items"].lengths().tolist() == [0]


def _swap(loaded: tuple[Schema, Source], path: Path, out: Path) -> tuple[Schema, list[Path], Path, Source]:
    return loaded[0], [path], out, loaded[1]


def test_inferred_from_a_table() -> None:
    rows = 200
    table = pa.table(
        {
            "timestamp": np.arange(rows) + 1_700_000_000,
            "id": np.arange(rows),
            "user_id": [f"u{n % 7}" for n in range(rows)],
            "video_id": np.arange(rows) % 50,
            "click": np.arange(rows) % 2,
            "price": np.arange(rows) * 10.0,
            "score": np.linspace(-1, 1, rows),
            "tags": [[n % 3] for n in range(rows)],
            "nothing": pa.nulls(rows),
            "raw": [b"x"] * rows,
        }
    )
    schema, source, notes = infer_schema(table)
    assert source.make["time"] == Made("s", "timestamp")
    assert (schema.time, schema.id, schema.user, schema.item) == ("time", "id", "user_id_key", "video_id")
    assert schema.tasks == ["click"]
    assert [feature.name for feature in schema.dense] == ["price", "score"]
    assert schema.dense[0].transforms[1] == Log1p()
    assert [(feature.name, feature.encoding) for feature in schema.sparse] == [
        ("user_id", "hash_text"),
        ("video_id", "hash"),
    ]
    assert [feature.name for feature in schema.sequences] == ["tags"]
    assert "DECIDE" in notes["time"]
    assert notes["nothing"] == "left out: nothing but nulls"
    assert notes["raw"].startswith("left out: binary")


def test_inspect_then_convert(tmp_path: Path) -> None:
    rows = 50
    raw = pa.table({"time": np.arange(rows) * 10**12, "like": np.arange(rows) % 2, "w": ["a", "b"] * 25})
    csv.write_csv(raw, tmp_path / "raw.csv")
    runner = CliRunner()
    seen = runner.invoke(app, ["data", "inspect", str(tmp_path / "raw.csv")])
    assert seen.exit_code == 0, seen.output
    (tmp_path / "s.yaml").write_text(seen.stdout)
    command = ["data", "convert", str(tmp_path / "s.yaml"), str(tmp_path / "raw.csv"), str(tmp_path / "log")]
    done = runner.invoke(app, [*command, "--max-lateness", "10m", "--duplicates", "drop"])
    assert done.exit_code == 0, done.output
    assert "50 events written, 0 moved into time order, 0 duplicates dropped" in done.stdout
    assert EventLog(tmp_path / "log").schema == load_schema(tmp_path / "s.yaml")[0]
    assert runner.invoke(app, [*command, "--max-lateness", "soon"]).exit_code == 2
