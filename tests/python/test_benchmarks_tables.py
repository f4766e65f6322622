"""The README and docs/ show what the results files say."""

import subprocess
import sys
from pathlib import Path

from octavo import _core

ROOT = Path(__file__).parents[2]


def printed(script: str) -> str:
    path = ROOT / "benchmarks" / "python" / script
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True).stdout


def test_readme_tables_are_made_from_the_results() -> None:
    made = printed("tables.py")
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- results: begin -->\n", "<!-- results: end -->\n"
    assert shown.split(begin)[1].split(end)[0] == made
    assert made.count("| --- |") == 12


def test_every_kernel_has_its_share_of_roof_on_record() -> None:
    made = printed("kernel_shares.py")
    assert (ROOT / "docs" / "kernel-shares.md").read_text(encoding="utf-8") == made
    kernels = {k.name for k in _core.kernels() if k.library == "octavo" and k.device == _core.Device.cpu}
    assert {line.split("`")[1] for line in made.splitlines() if line.startswith("| `")} == kernels
