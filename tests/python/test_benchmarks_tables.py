"""The README shows what the results files say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_readme_tables_are_made_from_the_results() -> None:
    script = ROOT / "benchmarks" / "python" / "tables.py"
    made = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- results: begin -->\n", "<!-- results: end -->\n"
    assert shown.split(begin)[1].split(end)[0] == made
    assert made.count("| --- |") == 7
