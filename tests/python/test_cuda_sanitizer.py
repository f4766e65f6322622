"""compute-sanitizer finds nothing in any CUDA kernel: accesses outside memory, races in shared memory, reads of what
nobody wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("cuda_every_kernel.py")


def sanitizer() -> str | None:
    """compute-sanitizer on PATH, or of a CUDA toolkit in its usual places."""
    homes = [Path(home) for home in (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", "/opt/cuda") if home]
    places = [str(home / part) for home in homes for part in ("bin", "compute-sanitizer", "extras/compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def own_kernels(program: str) -> list[str]:
    """Options that leave other libraries' kernels alone, as this version of the tool spells them; none if it cannot."""
    options = subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
    return next(([name, "kns=octavo"] for name in ("--kernel-name", "--filter") if name in options), [])


def command(tool: str, program: str) -> list[str]:
    """Every CUDA kernel of octavo's under one tool; 9 if it found anything."""
    limits = ["--error-exitcode", "9", "--print-limit", "20"]
    return [program, "--tool", tool, *own_kernels(program), *limits, sys.executable, str(SCRIPT)]


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_nothing_is_found(tool: str) -> None:
    program = sanitizer()
    if program is None:
        pytest.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit (PATH, CUDA_HOME)")
    # torch's allocator hands out parts of large blocks, whose borders no tool would see.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command(tool, program), env=environment, capture_output=True, text=True, timeout=540)
    if "Device not supported" in done.stdout + done.stderr:
        pytest.skip("compute-sanitizer does not support this device or its virtual machine")
    assert done.returncode == 0, f"{tool} exited with {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


def test_where_the_tool_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    program = tmp_path / "cuda" / "extras" / "compute-sanitizer" / "compute-sanitizer"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho '  --kernel-name arg (=)'\n")
    program.chmod(0o755)
    assert sanitizer() == str(program)
    words = command("memcheck", str(program))
    assert words[-1] == str(SCRIPT)
    assert words[3:5] == ["--kernel-name", "kns=octavo"]
    program.write_text("#!/bin/sh\n")
    assert "kns=octavo" not in command("memcheck", str(program))
    assert SCRIPT.exists()
