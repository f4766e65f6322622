"""What a run measured, as JSON lines in a file and as tables on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as JSON lines, whole or not at all."""
    from octavo._files import write_atomically  # `harness.py --list` runs without octavo

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))


def print_tables(records: Sequence[Mapping[str, Any]]) -> None:
    """Rows, findings and bars for people, by rich."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 180)
    table = Table("op", "shape", "entry", "kernel", "p50 us", "p10-p90", "rate", "of roof", "best peer", "ratio")
    for row in records:
        if "p50_us" not in row:
            continue
        rate = next((f"{row[k]:g} {unit}" for k, unit in (("mitems", "M rows/s"), ("gflops", "GFLOP/s"),
                                                          ("gbps", "GB/s")) if k in row), "")  # fmt: skip
        share = f"{row['share_of_roof']:.0%}" if "share_of_roof" in row else ""
        peer = row["best_peer"] or row["best_peer_any"]
        name = peer["name"] if peer else ""
        ratio = f"{peer['ratio']:.2f} [{peer['low']:.2f}, {peer['high']:.2f}]" if peer else ""
        shape = " ".join(f"{k}={v}" for k, v in row["shape"].items())
        table.add_row(row["op"], shape, row["entry"], row["kernel"] or "", f"{row['p50_us']:g}",
                      f"{row['p10_us']:g}-{row['p90_us']:g}", rate, share, name, ratio)  # fmt: skip
    if table.row_count:
        console.print(table)
    for row in records:
        if "figure" in row:
            print(" ".join(f"{key}={value}" for key, value in row.items() if key not in ("commit", "device", "isa")))
    bars = Table("bar", "figure", "95% interval", "bar", "holds", "did not run")
    times = any("p50_us" in row for row in records)
    for bar in records[-1]["bars"]:
        figure = "" if bar["figure"] is None else f"{bar['figure']:.2f}x" if times else f"{bar['figure']:g}"
        digits = ".2f" if times else "g"
        interval = "" if bar["figure"] is None else f"{bar['low']:{digits}} - {bar['high']:{digits}}"
        holds = "finding" if bar["holds"] is None else str(bar["holds"])
        bars.add_row(bar["name"], figure, interval, str(bar["bar"] or ""), holds, ", ".join(bar.get("did_not_run", [])))
    console.print(bars)
