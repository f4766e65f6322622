"""benchmarks/cpp has rows for every kernel of the registry."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octavo import _core

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench-cpp"


@pytest.fixture(scope="module")
def rows() -> list[str]:
    """What the binary lists, built from this checkout (seconds when nothing changed)."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        pytest.skip("CMake is not installed: the C++ benchmarks were not built")
    env = {**os.environ, "PATH": path}
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=path) else []
    options = ["-DOCTAVO_BENCHMARKS=ON", "-DOCTAVO_CUDA=OFF"]
    configure = [cmake, "-S", ROOT, "-B", BUILD, *([] if (BUILD / "CMakeCache.txt").exists() else generator), *options]
    done = subprocess.run(configure, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0 and "benchmark" in done.stderr and "find_package" in done.stderr:
        pytest.skip("Google Benchmark is not installed (libbenchmark-dev): the C++ benchmarks were not built")
    assert done.returncode == 0, done.stderr
    build = subprocess.run([cmake, "--build", BUILD, "-j", "2"], capture_output=True, text=True, check=False, env=env)
    assert build.returncode == 0, build.stdout + build.stderr
    binary = BUILD / "benchmarks" / "cpp" / "octavo_benchmarks"
    listed = subprocess.run([binary, "--benchmark_list_tests"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def test_every_kernel_has_a_row(rows: list[str]) -> None:
    kernels = {k.name for k in _core.kernels() if k.library == "octavo" and k.device == _core.Device.cpu}
    assert {row.split("/")[0] for row in rows} == kernels
    assert len(set(rows)) == len(rows)


def test_a_row_runs_and_states_its_share_of_the_roof(rows: list[str]) -> None:
    import json

    binary = BUILD / "benchmarks" / "cpp" / "octavo_benchmarks"
    name = next(row for row in rows if row.startswith("cpu.generic.quantize/"))
    command = [binary, f"--benchmark_filter=^{name}$", "--benchmark_min_time=0.01", "--benchmark_format=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    (row,) = result["benchmarks"]
    assert row["name"] == name
    assert row["real_time"] > 0
    assert row["bytes_per_second"] > 0
    assert row["roof_share"] > 0
    assert result["context"]["isa"] in ("baseline", "avx2", "avx512", "amx")
