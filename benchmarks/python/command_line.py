"""The command line that every benchmark shares, on a CPU and on a GPU."""

from __future__ import annotations

import argparse
from pathlib import Path


def command_line(name: str) -> argparse.ArgumentParser:
    """What every benchmark takes."""
    parser = argparse.ArgumentParser(prog=f"{name}.py")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="fewer shapes, under 5 minutes on 2 cores")
    effort.add_argument("--smoke", action="store_true", help="seconds; for tests, figures mean nothing")
    parser.add_argument("--json", action="store_true", help="JSON lines on stdout instead of tables")
    parser.add_argument("--out", type=Path, help="write the JSON lines to this file, atomically, at the end")
    return parser


def level_of(arguments: argparse.Namespace) -> str:
    """The effort's name."""
    return "quick" if arguments.quick else "smoke" if arguments.smoke else "full"
