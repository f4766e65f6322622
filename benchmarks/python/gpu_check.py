"""Every CUDA kernel's verdict on this machine, checked afresh: one JSON object, written to ``--out``.

Each kernel is checked in a process of its own with a limit of time, and the file is written after each: a kernel that
hangs or leaves the device in error costs its own verdict alone. Verdicts are kept where octavo looks for them, so that
nothing runs afterwards what failed here. What kernels are worth is measured by the ``gpu_*`` benchmarks beside this
(``make gpu-bench``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from gpu_run import unusable
from machine import facts, gpu_facts

from octavo import _core, _qualification_cache
from octavo._files import write_atomically
from octavo.ops import kernels, qualification

PATIENCE_S = 90  # of a kernel, torch's import included


def verdict_apart(kernel: _core.Kernel, patience_s: float = PATIENCE_S) -> str:
    """Check the kernel in a new process. Empty: it qualified, else why not, kept for every process to come."""
    command = [sys.executable, __file__, "--kernel", kernel.name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, check=False)
    except subprocess.TimeoutExpired:
        found = f"its check did not end within {patience_s:g} s"
    else:
        lines = done.stdout.splitlines()
        found = json.loads(lines[-1]) if done.returncode == 0 and lines else _death(done)
    _qualification_cache.write({_qualification_cache.entry(kernel): found})
    return str(found)


def _death(done: subprocess.CompletedProcess[str]) -> str:
    return f"its check ended with status {done.returncode}: {done.stderr.strip()[-500:]}"


def main() -> int:
    """Check one kernel here, or each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--out", type=Path, help="check every CUDA kernel and write this file")
    wanted.add_argument("--kernel", help="check this one, and print its verdict: why it failed, or an empty string")
    arguments = parser.parse_args()
    if arguments.kernel:
        print(json.dumps(qualification.check_again(kernels.by_name(arguments.kernel))))
        return 0
    if why := unusable():
        print(f"gpu_check: {why}", file=sys.stderr)
        return 1
    found = {**facts(), **gpu_facts(), "kernels": {}}
    rows = [k for k in _core.kernels() if k.device == _core.Device.cuda and k.supported and k.state != "trusted"]
    for kernel in sorted(rows, key=lambda k: k.op != _core.Op.quantize):  # classes that quantize stand on it
        found["kernels"][kernel.name] = verdict_apart(kernel) or "qualified"
        print(f"{kernel.name}: {found['kernels'][kernel.name]}", flush=True)
        write_atomically(arguments.out, json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
