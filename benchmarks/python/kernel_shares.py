"""docs/kernel-shares.md out of ``kernels.json``, ``kernels-avx512.json`` and ``kernels-avx2.json`` in
``benchmarks/results`` (what ``make bench-cpp`` wrote; the latter two on machines that have no more): each kernel's
share of its roof. Prints it, or with ``--write`` writes it; a test compares.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tables import RESULTS, ROOT, table

PAGE = ROOT / "docs" / "kernel-shares.md"
FILES = ("kernels.json", "kernels-avx512.json", "kernels-avx2.json")
INTRODUCTION = """# Kernels and their roofs

Made from `kernels.json`, `kernels-avx512.json` and `kernels-avx2.json` in `benchmarks/results` by
`benchmarks/python/kernel_shares.py --write`; do not edit.
`make bench-cpp` measures: each kernel alone, from C++, on octavo's own threads, against the roof that its work has on
this machine: the copy bandwidth of the working set, the multiply-add rate of its class, or gathers of rows from a
512 MB table. A share above 1 is work that the roof's own loop does worse: rows that caches still held, an array that
fits where the copy's two do not.
"""


def shares(content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows by kernel, in the file's order; those that did not run have no ``roof_share``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in content["benchmarks"]:
        found.setdefault(row["name"].split("/")[0], []).append(row)
    return found


def line(kernel: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Kernel, number of rows, smallest and largest share, where the largest is."""
    ran = [row for row in rows if "roof_share" in row]
    if not ran:
        return [f"`{kernel}`", "did not run here", "", ""]
    low, best = min(ran, key=lambda row: row["roof_share"]), max(ran, key=lambda row: row["roof_share"])
    shape = " ".join(best["name"].removesuffix("/real_time").split("/")[1:])
    span = f"{low['roof_share']:.2f} .. {best['roof_share']:.2f}" if len(ran) > 1 else f"{best['roof_share']:.2f}"
    return [f"`{kernel}`", span, f"{best['real_time']:.4g}", shape]


def text() -> str:
    """The page."""
    return "\n".join([INTRODUCTION, *(part(name) for name in FILES)])


def part(name: str) -> str:
    """The kernels of one file."""
    content = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    context = content["context"]
    made = (
        f"{context['date'][:10]}, {context['isa']}, {context['threads']} threads, load {context['load_avg'][0]:.1f}.\n"
    )
    titles = ["kernel", "share of its roof", "us at the best", "shape of the best"]
    return "\n".join([made, table(titles, [line(*pair) for pair in shares(content).items()])])


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(text(), encoding="utf-8")
    else:
        print(text(), end="")
