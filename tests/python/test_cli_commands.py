"""The commands as a user runs them: output, files, exit status, one line per mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from training_support import small_config

from octavo.config import save_config
from octavo.data import DataError, EventLog, Label, Schema, data_root

ROOT = Path(__file__).parents[2]


def octavo(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from octavo.cli import main; main()", *arguments],
        cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200", **environment},
    )  # fmt: skip


@pytest.fixture
def config(tmp_path) -> Path:
    save_config(small_config(data__events=2000), tmp_path / "run.yaml")
    return tmp_path / "run.yaml"


def test_train_leaves_a_report_and_finishes_at_once_the_second_time(config, tmp_path) -> None:
    done = octavo("train", str(config), "--run-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    for text in (
        "Predicted before trained on, task click",
        "planned",
        "int8_dynamic",
        "torch BF16",
        "the generator itself",
    ):
        assert text in done.stdout
    for name in ("report.html", "results.json", "plan.json", "config.yaml"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["data"]["events"] == 2000
    assert octavo("train", str(config), "--run-dir", "out", cwd=tmp_path).returncode == 0
    refused = octavo("train", str(config), "training.batch_size=32", "--run-dir", "out", cwd=tmp_path)
    assert refused.returncode == 2
    assert "training.batch_size was 64, is 32" in refused.stderr
    assert (
        octavo("train", str(config), "training.batch_size=32", "--run-dir", "out", "--fresh", cwd=tmp_path).returncode
        == 0
    )


def test_demo_with_fewer_events(tmp_path) -> None:
    done = octavo("demo", "data.events=1500", "model.top=[16]", "plan.rounds=3", "plan.batch_sizes=[64]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'demo-run' / 'report.html'}"


def test_doctor_and_version(tmp_path) -> None:
    done = octavo("doctor", "--qualify", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for text in ("instruction set", "cpu.generic.linear.bf16", "qualified", "torch", "CUDA"):
        assert text in done.stdout
    assert "unknown" not in done.stdout
    assert "octavo doctor --calibrate fits them" in done.stdout
    calibrated = octavo("doctor", "--calibrate", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert calibrated.returncode == 0, calibrated.stdout
    for text in ("Fitted costs", "torch.cpu.linear.fp32", "calibrated for"):
        assert text in calibrated.stdout
    assert "calibrated for" in octavo("doctor", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path)).stdout
    assert octavo("--version", cwd=tmp_path).stdout.strip() == "0.1.0"
    assert "train" in octavo(cwd=tmp_path).stdout


def _log_with(damage: str, tmp_path: Path, config: Path) -> Path:
    assert octavo("train", str(config), "--run-dir", "first", cwd=tmp_path).returncode == 0
    log = tmp_path / "first" / "log-2000-0"
    victim = next(log.glob("*.parquet"))
    content = victim.read_bytes()
    victim.write_bytes(content[:-100] if damage == "truncated" else b"PAR1" + bytes(len(content) - 4))
    values = yaml.safe_load(config.read_text())
    values["data"] = {"source": "log", "path": str(log)}
    config.write_text(yaml.safe_dump(values))
    return config


MISTAKES = {
    "no such file": (["train", "nosuch.yaml"], "nosuch.yaml: cannot read the configuration"),
    "unknown key": (["train", "run.yaml", "training.bach_size=1"], "did you mean training.batch_size?"),
    "bad value": (["train", "run.yaml", "training.batch_size=0"], "training.batch_size"),
    "no data": (["train", str(ROOT / "examples" / "movielens.yaml")], "ml100k_ratings.parquet"),
    "no log": (["train", "run.yaml", "data={source: log, path: nowhere}"], "nowhere"),
    "no option": (["train", "run.yaml", "--frsh"], "--frsh"),
    "no command": (["trian"], "trian"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_status_2(name, config, tmp_path) -> None:
    arguments, words = MISTAKES[name]
    (tmp_path / "empty").mkdir()
    done = octavo(*arguments, cwd=tmp_path, OCTAVO_DATA=str(tmp_path / "empty"))
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_line_and_status_2(config, tmp_path) -> None:
    octavo("data", "simulate", "delay", "log", "--events", "100", cwd=tmp_path)
    program = (
        "import resource, signal, sys\n"
        "from octavo.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "main()\n"
    )
    command = ["train", "run.yaml", "data={source: log, path: log}", "--run-dir", "out"]
    done = subprocess.run([sys.executable, "-c", program, *command], cwd=tmp_path, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "octavo: out/config.yaml: cannot be written (File too large); make room and try again\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_logs_are_read_from_uris_and_written_to_paths(config, tmp_path) -> None:
    assert octavo("data", "simulate", "delay", "log", "--events", "100", cwd=tmp_path).returncode == 0
    uri = (tmp_path / "log").as_uri()
    seen = octavo("data", "inspect", uri, cwd=tmp_path)
    assert (seen.returncode, seen.stderr) == (0, "")
    assert seen.stdout.startswith(f"EventLog('{uri}': 100 events")
    left = sorted(tmp_path.iterdir())
    for arguments, words in (
        (("data", "inspect", f"{uri}s"), f"{uri}s/log.json: not found"),
        (("data", "simulate", "delay", "file:///log", "--events", "9"), "file:///log: a URI, but logs are written on"),
        (
            ("train", "run.yaml", "--run-dir", "file:///run"),
            "expected a path on this machine, found the URI file:///run",
        ),
        (("evaluate", "run", "--against", "s3://run"), "expected a path on this machine, found the URI s3://run"),
    ):
        done = octavo(*arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == left


@pytest.mark.parametrize("damage", ["truncated", "corrupt"])
def test_damaged_logs_are_named(damage, config, tmp_path) -> None:
    done = octavo("train", str(_log_with(damage, tmp_path, config)), "--run-dir", "second", cwd=tmp_path)
    assert done.returncode == 2
    assert ".parquet: " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_movielens_example(tmp_path) -> None:
    try:
        root = data_root()
    except DataError as error:
        pytest.skip(str(error))
    if not (root / "movielens" / "ml100k_ratings.parquet").exists():
        pytest.skip(f"no movielens below {root}")
    arguments = ["data.limit=20000", "plan.rounds=3", "plan.batch_sizes=[64]", "--run-dir", "out"]
    done = octavo("train", str(ROOT / "examples" / "movielens.yaml"), *arguments, cwd=tmp_path, OCTAVO_DATA=str(root))
    assert done.returncode == 0, done.stderr
    assert "task like" in done.stdout
    assert "logistic regression" in done.stdout


def test_a_simulated_log_is_inspected(tmp_path) -> None:
    made = octavo("data", "simulate", "delay", "log", "--events", "3000", "--seed", "2", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.startswith("EventLog('log': 3000 events")
    again = octavo("data", "simulate", "delay", "twin", "--events", "3000", "--seed", "2", cwd=tmp_path)
    assert again.returncode == 0
    for name in ("log.json", "events-00000.parquet"):
        assert (tmp_path / "log" / name).read_bytes() == (tmp_path / "twin" / name).read_bytes()
    seen = octavo("data", "inspect", "log", cwd=tmp_path)
    assert (seen.returncode, seen.stderr) == (0, "")
    clicks = EventLog(tmp_path / "log").columns(["click"])["click"].to_numpy()
    row = next(line.replace(" ", "").split("│") for line in seen.stdout.splitlines() if "│ click " in line)
    assert row[1:5] == ["click", "3,000", f"{int(clicks.sum()):,}", f"{clicks.mean():.4f}"]
    assert "history" in seen.stdout


def test_outcomes_that_are_nan_are_not_counted(tmp_path) -> None:
    columns = {"time": [1, 2, 3, 4], "id": [1, 2, 3, 4], "y": [1.0, 0.0, None, float("nan")], "d": [5.0, *[None] * 3]}
    EventLog.write(tmp_path / "log", Schema(labels=(Label("y", "d"),)), [pa.table(columns)])
    seen = octavo("data", "inspect", "log", cwd=tmp_path)
    row = next(line.replace(" ", "").split("│") for line in seen.stdout.splitlines() if "│ y " in line)
    assert row[1:8] == ["y", "2", "1", "0.5000", "5", "5", "5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("simulate", "nope", "log", "--events", "3"),
            "preset 'nope': there is none of this name (there are reference",
        ),
        (("simulate", "drift", "log"), "give one of --events and --days"),
        (("simulate", "drift", "log", "--events", "3", "--days", "1"), "give one of --events and --days"),
        (("simulate", "drift", "log", "--events", "0"), "'--events': Input should be greater than or equal to 1"),
        (("inspect", "nowhere"), "nowhere/log.json: not found"),
    ],
)
def test_mistakes_about_logs_are_one_line(tmp_path, arguments, message) -> None:
    done = octavo("data", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_instruction_set_is_refused(tmp_path) -> None:
    done = octavo("doctor", cwd=tmp_path, OCTAVO_ISA="avx9")
    assert done.returncode != 0
    assert "OCTAVO_ISA: found 'avx9'; expected baseline, avx2, avx512 or amx" in done.stderr
