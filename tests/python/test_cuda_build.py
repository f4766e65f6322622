"""What a build with CUDA must be on a machine without a device, and a build without CUDA anywhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import octavo
from octavo import _core

ROOT = Path(__file__).parents[2]
LINEAR = {f"cuda.sm90.linear.{numerics}" for numerics in ("bf16", "e4m3_row", "e4m3_row_fast", "e4m3_block")}
with_cuda = pytest.mark.skipif(not _core.built_with_cuda, reason="octavo was built without CUDA (OCTAVO_CUDA=ON)")
without_device = pytest.mark.skipif(_core.cuda_info() is not None, reason="there is a CUDA device")


def _rows() -> dict[str, _core.Kernel]:
    return {k.name: k for k in _core.kernels() if k.device == _core.Device.cuda and k.library == "octavo"}


@with_cuda
def test_the_kernels_are_in_the_table() -> None:
    rows = _rows()
    assert set(rows) >= LINEAR
    for name in rows:
        assert name.split(".")[:2] in (["cuda", "sm80"], ["cuda", "sm90"])
    tolerances = [rows[f"cuda.sm90.linear.{c}"].tolerance for c in ("bf16", "e4m3_row", "e4m3_row_fast", "e4m3_block")]
    assert tolerances == [1e-5, 2**-10, 2**-7, 2**-10]


def test_the_list_of_what_never_ran_is_true() -> None:
    """Every CUDA kernel and every GEMM instantiation is one row of gpu-pending.md, and no row is of anything else."""
    page = (ROOT / "benchmarks" / "results" / "gpu-pending.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(listed) == len(set(listed))
    tiles = {tile["name"] for tile in _core.gemm_tiles()}
    assert tiles <= set(listed)
    if _core.built_with_cuda:
        assert set(listed) - tiles == set(_rows())


@with_cuda
@without_device
def test_without_a_device_they_are_unsupported_and_nothing_breaks() -> None:
    states = octavo.info()["kernels"]
    assert {states[name] for name in _rows()} == {"unsupported"}
    assert octavo.info()["cuda"] is None


@pytest.mark.skipif(_core.built_with_cuda, reason="octavo was built with CUDA")
def test_a_build_without_cuda_has_no_cuda_rows() -> None:
    assert not [k.name for k in _core.kernels() if k.device == _core.Device.cuda and k.library == "octavo"]
    assert _core.cuda_info() is None


@with_cuda
def test_no_kernel_spills_registers() -> None:
    reports = list(ROOT.glob("build/*/CMakeFiles/octavo_cuda_*.dir/**/*.ptxas.txt"))
    if not reports:
        pytest.skip("octavo was not built in this checkout")
    text = "\n".join(path.read_text() for path in reports)
    assert text.count("bytes spill stores") >= 3 + len(_core.gemm_tiles())
    hopper = [path for path in reports if "octavo_cuda_sm90" in str(path)]
    newest = {path.name: path for path in sorted(hopper, key=lambda path: path.stat().st_mtime)}
    assert sum(path.read_text().count("bytes spill stores") for path in newest.values()) == len(_core.gemm_tiles())
    assert all(
        line.strip().endswith("0 bytes spill stores, 0 bytes spill loads")
        for line in text.splitlines()
        if "spill" in line
    )


def test_a_spill_fails_the_build(tmp_path) -> None:
    report = "ptxas info    : Used 168 registers\\n    8 bytes stack frame, {} bytes spill stores, 0 bytes spill loads"
    for spilled, status, wanted in ((0, 0, ""), (16, 1, ""), (16, 0, "warn")):
        compiler = tmp_path / "nvcc.py"
        compiler.write_text(f"import sys; sys.stderr.write('{report.format(spilled)}\\n')")
        gate = [sys.executable, str(ROOT / "tools" / "ptxas_gate.py")]
        done = subprocess.run(
            [*gate, sys.executable, str(compiler), "-o", str(tmp_path / "x.o")],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OCTAVO_SPILLS": wanted},
        )
        assert done.returncode == status
        assert f"{spilled} bytes spill stores" in (tmp_path / "x.o.ptxas.txt").read_text()
        assert ("spill registers" in done.stderr) == bool(spilled)


def test_what_a_gpu_machine_lacks_is_named(tmp_path) -> None:
    """An interpreter without site-packages has none of it; a folder without wheels brings none."""
    tool = [sys.executable, "-S", str(ROOT / "tools" / "gpu_needs.py")]
    for extra in ([], ["--wheels", str(tmp_path)]):
        done = subprocess.run([*tool, *extra], capture_output=True, text=True, check=False, env={"PATH": ""})
        assert done.returncode == 1
        assert "lacks torch, numpy" in done.stderr
        assert "pip download torch" in done.stderr
    headers = tmp_path / "include" / "cutlass"
    headers.mkdir(parents=True)
    (headers / "cutlass.h").touch()
    given = {"PATH": "", "OCTAVO_CUTLASS_DIR": str(tmp_path)}
    done = subprocess.run(tool, capture_output=True, text=True, check=False, env=given)
    assert "nvidia-cutlass" not in done.stderr


@without_device
@pytest.mark.parametrize("name", ["gpu_check", "gpu_gemm"])
def test_measuring_says_why_it_cannot_run(name, tmp_path) -> None:
    script = ROOT / "benchmarks" / "python" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), "--out", str(tmp_path / "x.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{name}: octavo was built without" in done.stderr or f"{name}: no usable CUDA device" in done.stderr
    assert "see docs/gpu.md" in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_toolchain_wants_nothing_when_cuda_is_off() -> None:
    tool = [sys.executable, str(ROOT / "tools" / "cuda_toolchain.py"), "--if-wanted", "OFF", "--run"]
    code = "import os; print(os.environ['SKBUILD_CMAKE_DEFINE'])"
    done = subprocess.run([*tool, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "OCTAVO_CUDA=OFF\n"
