"""MovieLens-100K as a log: what it holds, and that no feature knows its own answer or anything later."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq

from octavo.data import DataError, EventLog, data_root, movielens
from octavo.data.sets.movielens import build


@pytest.fixture(scope="module")
def source() -> Path:
    try:
        path = data_root() / "movielens"
    except DataError as error:
        pytest.skip(str(error))
    if not path.is_dir():
        pytest.skip(f"{path}: MovieLens is not here")
    return path


@pytest.fixture(scope="module")
def log(source: Path, tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    return movielens(source.parent, cache=tmp_path_factory.mktemp("cache"))


def tables(source: Path) -> list[pa.Table]:
    return [pq.read_table(source / f"ml100k_{name}.parquet") for name in ("ratings", "users", "items")]


def test_holds_the_whole_set_in_event_time(log: EventLog, source: Path) -> None:
    ratings = tables(source)[0]
    batch = log.read()
    assert len(log) == 100_000
    assert log.schema.tasks == ["like"]
    assert batch.labels["like"].mean().item() == pytest.approx(0.55375, abs=1e-6)
    assert bool((batch.time.diff() >= 0).all())
    wanted = sorted(zip(*(ratings.column(name).to_pylist() for name in ("timestamp", "user_id", "item_id", "rating"))))
    found = zip(*(values.tolist() for values in (batch.time // 1000, batch.user, batch.item, batch.labels["like"])))
    assert sorted(found) == [(t, u, i, float(r >= 4)) for t, u, i, r in wanted]


def test_features_by_hand_of_one_event(log: EventLog, source: Path) -> None:
    ratings, users, items = (table.to_pylist() for table in tables(source))
    row = 61_234
    event = log.columns([*log.schema.columns()], row, row + 1).to_pylist()[0]
    time, user, item = event["time"] // 1000, event["user"], event["item"]
    film = next(entry for entry in items if entry["item_id"] == item)
    person = next(entry for entry in users if entry["user_id"] == user)
    assert (event["age"], event["gender"], event["occupation"]) == (
        person["age"],
        person["gender"],
        person["occupation"],
    )
    assert event["zip_region"] == person["zip_code"][0]
    assert event["genres"] == film["genres"].split()
    assert event["film_age_years"] == pytest.approx(1970 + time / (365.25 * 86400) - film["release_year"])
    earlier = [rating for rating in ratings if rating["timestamp"] < time]
    mine = [rating for rating in earlier if rating["user_id"] == user]
    theirs = [rating for rating in earlier if rating["item_id"] == item]
    assert len(theirs) > 10
    assert event["user_events"] == len(mine)
    assert event["item_events"] == len(theirs)
    assert event["user_like_rate"] == pytest.approx(rate(mine))
    assert event["item_like_rate"] == pytest.approx(rate(theirs))
    kind = {entry["item_id"]: (entry["genres"] or "").split() for entry in items}
    per_genre = [rate([r for r in mine if genre in kind[r["item_id"]]]) for genre in event["genres"]]
    assert event["genre_like_rate"] == pytest.approx(np.mean(per_genre))
    first = min(rating["timestamp"] for rating in ratings if rating["user_id"] == user)
    assert event["user_hours"] == pytest.approx((time - first) / 3600)


def rate(events: list[dict[str, int]]) -> float:
    return (sum(event["rating"] >= 4 for event in events) + 5 * 0.55) / (len(events) + 5)


def features(table: pa.Table) -> list[list[object]]:
    return [table.column(name).to_pylist() for name in table.column_names if name != "like"]


def test_no_event_sees_its_own_moment_or_the_future(source: Path) -> None:
    """Flip every label from a moment on: no feature of that moment or before may change."""
    ratings, users, items = tables(source)
    ratings = ratings.slice(0, 30_000)
    time = np.array(ratings.column("timestamp"))
    moments, sizes = np.unique(time, return_counts=True)
    moment = moments[10_000 + int(sizes[10_000:10_400].argmax())]
    assert (time == moment).sum() > 1
    flipped = np.where(time >= moment, 6 - np.array(ratings.column("rating")), np.array(ratings.column("rating")))
    place = ratings.column_names.index("rating")
    other = ratings.set_column(place, "rating", pa.array(flipped, ratings.schema.field("rating").type))
    kept = int((time <= moment).sum())
    before, after = build(ratings, users, items), build(other, users, items)
    assert features(before.slice(0, kept)) == features(after.slice(0, kept))
    assert features(before) != features(after)
    cut = build(ratings.slice(0, kept), users, items)
    assert features(cut) == features(before.slice(0, kept))


def test_order_within_a_moment_does_not_matter(source: Path) -> None:
    ratings, users, items = tables(source)
    ratings = ratings.slice(0, 5_000)
    names = ["time", "user", "item"]
    wanted = build(ratings, users, items).drop_columns("id").sort_by([(name, "ascending") for name in names])
    shuffled = ratings.take(np.random.default_rng(0).permutation(len(ratings)))
    found = build(shuffled, users, items).drop_columns("id").sort_by([(name, "ascending") for name in names])
    assert found.column("user_events").to_pylist() == wanted.column("user_events").to_pylist()
    for name in ("user_like_rate", "item_like_rate", "genre_like_rate"):
        np.testing.assert_allclose(np.array(found.column(name)), np.array(wanted.column(name)), rtol=1e-12)


def test_cache_is_used_and_healed(log: EventLog, source: Path) -> None:
    cache = log.path.parent
    wanted, inode = log.fingerprint, log.path.stat().st_ino
    assert movielens(source.parent, cache=cache).path.stat().st_ino == inode
    (log.path / "events-00000.parquet").write_bytes(b"PAR1")
    healed = movielens(source.parent, cache=cache)
    assert healed.fingerprint == wanted
    assert [entry.name for entry in cache.iterdir()] == [log.path.name]


def test_default_places(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_DATA", str(source.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_root() == source.parent
    assert movielens().path.parent == tmp_path / "octavo"


def test_data_root_says_where_to_get_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(
        DataError, match=r"OCTAVO_DATA: .*nowhere is not a directory; set OCTAVO_DATA .*GroupLens.*RecBole"
    ):
        data_root()
    monkeypatch.setenv("OCTAVO_DATA", "")
    monkeypatch.setattr("octavo.data.roots.__file__", str(tmp_path / "a/b/c/d/roots.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"shared/data: no data here; set OCTAVO_DATA .*GroupLens"):
        data_root()
    (tmp_path / "checkout").mkdir()
    (tmp_path / "shared" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "checkout")
    assert data_root() == tmp_path / "shared" / "data"


def test_absent_and_damaged_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"movielens/ml100k_ratings\.parquet: cannot be read .*GroupLens.*RecBole"):
        movielens(tmp_path, cache=tmp_path / "cache")
    (tmp_path / "movielens").mkdir()
    for name in ("ratings", "users", "items"):
        (tmp_path / "movielens" / f"ml100k_{name}.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"ml100k_ratings\.parquet: not a readable parquet file .*; fetch it again"):
        movielens(tmp_path, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_rating_of_an_unknown_film_is_named() -> None:
    ratings = pa.table({"user_id": [1], "item_id": [7], "rating": [5], "timestamp": [0]})
    users = pa.table({"user_id": [1], "age": [3], "gender": ["F"], "occupation": ["none"], "zip_code": ["1"]})
    items = pa.table({"item_id": [2], "title": ["x"], "release_year": [1990], "genres": ["Drama"]})
    with pytest.raises(DataError, match="movielens: item_id 7 was rated but is not in its table"):
        build(ratings, users, items)


def test_columns_that_are_not_there_are_named(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "movielens")
    path = tmp_path / "movielens" / "ml100k_users.parquet"
    path.chmod(0o644)
    path.parent.chmod(0o755)
    pq.write_table(pq.read_table(path).drop_columns("gender"), path)
    with pytest.raises(DataError, match=r"ml100k_users\.parquet: column 'gender' is missing"):
        movielens(tmp_path, cache=tmp_path / "cache")
