"""Compiler launcher for nvcc: keeps what ptxas reports beside the object file and fails when a kernel spills.

``OCTAVO_SPILLS=warn``: it only says so, for another patch of nvcc must not keep a GPU machine from building.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

_SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def main() -> int:
    """Run the command line; its object's ``.ptxas.txt`` gets the report."""
    command = sys.argv[1:]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    report = [line for line in done.stderr.splitlines() if "ptxas" in line or "spill" in line or "registers" in line]
    others = [line for line in done.stderr.splitlines() if line not in report]
    if others:
        print("\n".join(others), file=sys.stderr)
    if done.returncode != 0 or "-o" not in command:
        return done.returncode
    target = Path(command[command.index("-o") + 1])
    target.with_name(target.name + ".ptxas.txt").write_text("\n".join(report) + "\n", encoding="utf-8")
    spills = [line for line in report if (found := _SPILL.search(line)) and found.groups() != ("0", "0")]
    if spills:
        print(f"{target.name}: kernels spill registers; choose a smaller tile:", *spills, sep="\n", file=sys.stderr)
        return 0 if os.environ.get("OCTAVO_SPILLS") == "warn" else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
