"""A fit on disk: the same bits after a round trip, whole or absent, damage noticed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from windows_support import DAY, LAWS, drawn

pytest.importorskip("pyarrow")

from octavo.windows import PersonalizedInterpolator, WindowsError


def fit(windows: tuple[str, ...] = ("1d", "7d"), shrink: float | str = "auto") -> PersonalizedInterpolator:
    data = drawn(list(LAWS.values()), [900, 50, 400, 20, 30], 40, seed=6, until=50, others=0.5)
    data["name"] = np.array([f"ä{g}" for g in data["advertiser"]])
    return PersonalizedInterpolator(windows, ["advertiser"], ["name"], shrink=shrink).fit(data, 50 * DAY)


@pytest.mark.parametrize("windows", [("1d", "7d"), ("6h", "1d", "7d")])
def test_a_round_trip_has_the_same_bits_and_goes_on(tmp_path: Path, windows: tuple[str, ...]) -> None:
    pi = fit(windows, np.inf if len(windows) == 3 else "auto")
    again = PersonalizedInterpolator.load(pi.save(tmp_path / "fit"))
    rng = np.random.default_rng(0)
    p = np.sort(rng.random((len(windows), 50)), axis=0)
    keys = {"advertiser": rng.integers(0, 6, 50), "name": [f"ä{g}" for g in rng.integers(0, 6, 50)]}
    shown = ["2d", "3d", "7d"]
    assert np.array_equal(again.predict(*p, keys, window=shown), pi.predict(*p, keys, window=shown))
    assert again.settings == pi.settings
    assert again.diagnose().equals(pi.diagnose())
    more = {"advertiser": [9, 9], "name": ["new", "new"], "anchor": [0, 0], "converted": [2 * DAY, 5 * DAY]}
    for one in (pi, again):
        one.partial_fit(more, 51 * DAY)
    assert np.array_equal(again.predict(*p, keys, window=shown), pi.predict(*p, keys, window=shown))
    assert again.save(tmp_path / "fit", overwrite=True) == tmp_path / "fit"
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit"]


def test_the_calibration_goes_with_it(tmp_path: Path) -> None:
    pi = fit()
    rng = np.random.default_rng(1)
    anchor = rng.integers(0, 40 * DAY, 500)
    rows = {"advertiser": [0] * 500, "name": ["ä0"] * 500, "anchor": anchor}
    rows["converted"] = np.where(rng.random(500) < 0.3, anchor + DAY, np.nan)
    short, long = rng.random(500) / 2, np.full(500, 0.9)
    pi.calibrate(short, long, conversions=rows, windows=["3d"], observed_until=50 * DAY)
    again = PersonalizedInterpolator.load(pi.save(tmp_path / "fit"))
    for one in (pi, again):
        assert one.predict(short, long, rows, window="3d").mean() == pytest.approx(0.3, abs=0.06)
    assert np.array_equal(again.predict(short, long, rows, window="3d"), pi.predict(short, long, rows, window="3d"))


def test_an_existing_path_is_kept_unless_asked(tmp_path: Path) -> None:
    pi = fit()
    pi.save(tmp_path / "fit")
    with pytest.raises(FileExistsError, match="exists; give another path or overwrite=True"):
        pi.save(tmp_path / "fit")


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = fit().save(tmp_path / "fit")
    meta, (tensors,) = path / "windows.json", path.glob("windows-*.safetensors")
    whole, text = tensors.read_bytes(), meta.read_text()
    tensors.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(WindowsError, match=r"windows-.*\.safetensors: is damaged or of another fit"):
        PersonalizedInterpolator.load(path)
    tensors.write_bytes(whole)
    meta.write_text(text.replace('"14d"', '"15d"'))
    with pytest.raises(WindowsError, match=r"is damaged \(windows\.json was changed"):
        PersonalizedInterpolator.load(path)
    meta.write_text(json.dumps({**json.loads(text), "version": 99}))
    with pytest.raises(WindowsError, match="version 99; this octavo reads 2"):
        PersonalizedInterpolator.load(path)
    meta.write_text("{")
    with pytest.raises(WindowsError, match="is damaged; save the fit again"):
        PersonalizedInterpolator.load(path)
    meta.write_text(text)
    tensors.unlink()
    with pytest.raises(WindowsError, match=r"windows-.*\.safetensors is missing"):
        PersonalizedInterpolator.load(path)
    meta.unlink()
    with pytest.raises(WindowsError, match="cannot be read"):
        PersonalizedInterpolator.load(path)


KILLED = """
import json, os, pathlib, sys
from octavo.windows import PersonalizedInterpolator

def killing(function, count):
    def call(*given, **named):
        nonlocal count
        count -= 1
        if count == 0:
            os._exit(9)
        return function(*given, **named)
    return call

path = sys.argv[1]
old, new = PersonalizedInterpolator.load(path), PersonalizedInterpolator.load(path)
new.partial_fit({"advertiser": [9], "name": ["new"], "anchor": [0], "converted": [2 * 86_400_000]}, 50 * 86_400_000)
for owner, step in ((os, "fsync"), (pathlib.Path, "replace"), (pathlib.Path, "unlink")):
    for count in range(1, 9):
        old.save(path, overwrite=True)
        child = os.fork()
        if child == 0:
            setattr(owner, step, killing(getattr(owner, step), count))
            new.save(path, overwrite=True)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = PersonalizedInterpolator.load(path)._outcomes.count.sum()
        print(json.dumps([step, code, int(found - old._outcomes.count.sum())]))
        if code == 0:
            break
"""


def test_a_writer_that_is_killed_leaves_the_old_fit_or_the_new(tmp_path: Path) -> None:
    """Before the first, the second, ... flush, rename and removal, until it comes through."""
    old = fit()
    path = old.save(tmp_path / "fit")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=True, capture_output=True, text=True)
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    for step in ("fsync", "replace", "unlink"):
        codes = [(code, more) for name, code, more in seen if name == step]
        assert codes[-1] == (0, 1)
        assert all(code == 9 for code, _ in codes[:-1])
        assert {more for _, more in codes[:-1]} <= {0, 1}
    assert ["fsync", 9, 0] in seen
    assert ["replace", 9, 0] in seen
    assert ["unlink", 9, 1] in seen  # the old is removed when the new is there
    old.save(path, overwrite=True)  # and what was left is removed
    assert sorted(entry.name.split("-")[0] for entry in path.iterdir()) == ["save.lock", "windows", "windows.json"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit"]


def test_who_reads_while_it_is_replaced_finds_one_of_them(tmp_path: Path) -> None:
    one, other = fit(), fit(shrink=3.0)
    path = one.save(tmp_path / "fit")
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for each in (other, one):
                each.save(path, overwrite=True)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        shrunk = {PersonalizedInterpolator.load(path).settings["shrink"] for _ in range(60)}
    finally:
        stop.set()
        writer.join()
    assert shrunk <= {"auto", 3.0}
