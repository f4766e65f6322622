"""Qualification: verdicts on this machine, kept between processes, anew for another instruction set."""

import json
import os
import stat
import subprocess
import sys

import pytest
import torch

import octavo
from octavo import _core, _qualification_cache, ops
from octavo.ops import kernels


def test_every_kernel_of_this_machine_qualifies(isa) -> None:
    states = ops.dispatch.qualify()
    assert set(states) == {k.name for k in _core.kernels()}
    for kernel in _core.kernels():
        if kernel.library in ("octavo", "torch"):
            expected = {"qualified", "trusted"} if kernel.supported else {"unsupported"}
            assert states[kernel.name] in expected, kernel.name


def test_generic_kernels_serve_every_level(isa) -> None:
    ops.dispatch.qualify()
    levels = ("avx512", "amx")
    above = levels if isa in ("baseline", "avx2") else levels[1:] if isa == "avx512" else ()
    hand_written = {k.name for k in _core.kernels() if k.name.split(".")[1] in above}
    unsupported = {name for name, state in octavo.info()["kernels"].items() if state == "unsupported"}
    assert hand_written <= unsupported
    decision = ops.dispatch.choose(ops.dispatch.Problem("linear", 64, 64, 64, numerics="e4m3_row"))
    assert decision.kernel.split(".")[1] not in above


def test_what_was_chosen_before_kernels_were_checked_is_not_kept(monkeypatch) -> None:
    """Inside a CUDA graph's capture none can be: what follows the capture must not be held to what it fell back to."""
    op = _core.Op.linear_grad_input
    ops.dispatch.qualify()
    kernels.new_generation()
    for kernel in _core.kernels():
        if kernel.op == op and kernel.supported and kernel.library == "octavo":
            kernel.forget()
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_available", lambda: True)
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.warns(UserWarning, match=r"linear_grad_input cannot be checked while a CUDA graph is captured"):
            assert not kernels.has_own(op, "cpu", "bf16")
    assert kernels.has_own(op, "cpu", "bf16")


def _run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


QUALIFY = "from octavo import ops; ops.dispatch.qualify()"
STATES = "import json, octavo; print(json.dumps(octavo.info()['kernels']))"


def test_verdicts_outlive_the_process_and_need_no_torch(tmp_path) -> None:
    def states() -> dict[str, str]:
        found: dict[str, str] = json.loads(_run(STATES, XDG_CACHE_HOME=str(tmp_path)))
        return found

    assert set(states().values()) <= {"unknown", "unsupported"}
    _run(QUALIFY, XDG_CACHE_HOME=str(tmp_path))
    assert "unknown" not in states().values()
    files = list((tmp_path / "octavo").iterdir())
    assert len(files) == 1
    files[0].write_text("{ not json")
    assert set(states().values()) <= {"unknown", "unsupported"}
    _run(QUALIFY, XDG_CACHE_HOME=str(tmp_path))
    assert "unknown" not in states().values()


def test_another_level_is_another_machine(tmp_path) -> None:
    _run(QUALIFY, XDG_CACHE_HOME=str(tmp_path))
    _run(QUALIFY, XDG_CACHE_HOME=str(tmp_path), OCTAVO_ISA="baseline")
    assert len(list((tmp_path / "octavo").iterdir())) == (1 if _core.isa() == "baseline" else 2)


def test_a_quarantined_kernel_stays_so(tmp_path) -> None:
    _run(QUALIFY, XDG_CACHE_HOME=str(tmp_path))
    file = next((tmp_path / "octavo").iterdir())
    verdicts = json.loads(file.read_text())
    verdicts["cpu.generic.linear.bf16"] = "linear m=1: expected 0, found 1"
    file.write_text(json.dumps(verdicts))
    code = f"import warnings; warnings.simplefilter('ignore'); {QUALIFY}; {STATES}"
    assert json.loads(_run(code, XDG_CACHE_HOME=str(tmp_path)))["cpu.generic.linear.bf16"] == "quarantined"
    again = f"{QUALIFY}; ops.dispatch.qualify(fresh=True); {STATES}"
    code = f"import warnings; warnings.simplefilter('ignore'); {again}"
    assert json.loads(_run(code, XDG_CACHE_HOME=str(tmp_path)))["cpu.generic.linear.bf16"] == "qualified"


def test_a_read_only_cache_is_no_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("in the way")
    _qualification_cache.write({"x": ""})
    assert _qualification_cache.read() == {}


def test_the_cache_file_is_whole_or_absent(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _qualification_cache.write({"a": ""})
    _qualification_cache.write({"b": "why"})
    assert _qualification_cache.read() == {"a": "", "b": "why"}
    assert [p.name for p in (tmp_path / "octavo").iterdir()] == [_qualification_cache.path().name]
    assert _qualification_cache.path().stat().st_mode & stat.S_IRUSR


def test_qualification_leaves_the_callers_random_numbers_alone(tmp_path) -> None:
    code = (
        "import torch; from octavo import ops; torch.manual_seed(5); a = torch.randn(3); torch.manual_seed(5);"
        "ops.dispatch.qualify(); print(torch.equal(torch.randn(3), a))"
    )
    assert _run(code, XDG_CACHE_HOME=str(tmp_path)) == "True"


def test_all_cpu_kernels_qualify_within_two_seconds(tmp_path) -> None:
    code = (
        "import time; from octavo import ops; ops.dispatch.qualify(); t = time.perf_counter();"
        "ops.dispatch.qualify(fresh=True); print(time.perf_counter() - t)"
    )
    assert min(float(_run(code, XDG_CACHE_HOME=str(tmp_path))) for _ in range(3)) < 2.0
