"""Every CUDA kernel's verdict on this machine, checked afresh: one JSON object, written to ``--out``.

What the kernels are worth is measured by the ``gpu_*`` benchmarks beside this (``make gpu-bench``).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gpu_run import unusable
from machine import facts, gpu_facts

from octavo import _core
from octavo._files import write_atomically
from octavo.ops import dispatch


def qualification() -> dict[str, Any]:
    """The machine, and every CUDA kernel's state, with why where it failed."""
    dispatch.qualify(fresh=True)
    rows = [k for k in _core.kernels() if k.device == _core.Device.cuda]
    return {**facts(), **gpu_facts(), "kernels": {k.name: {"state": k.state, "note": k.note} for k in rows}}


def main() -> int:
    """Write the file that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if why := unusable():
        print(f"gpu_check: {why}", file=sys.stderr)
        return 1
    found = qualification()
    write_atomically(arguments.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["kernels"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
