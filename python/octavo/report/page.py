"""The HTML page: one self-contained file."""

from __future__ import annotations

import importlib.resources
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import yaml

from octavo._files import write_atomically
from octavo.report import plots
from octavo.report.results import Results


def render(results: Results) -> str:
    """The report as HTML text without external resources."""
    template = template_of("report.html.j2")
    points = [point for point in results.progressive if point.task == results.task and point.domain is None]
    end_ms = int(results.data.get("end_ms", points[-1].time_ms if points else 0))
    figures = {
        "progressive": plots.progressive(points, results.heldout, end_ms, results.floor_ne) if points else None,
        "by_domain": plots.by_domain(results.progressive) if _is_split(results) else None,
        "calibration": plots.calibration(results.calibration) if results.calibration else None,
        "differences": _differences(results),
        "speed": plots.speed(results.speed) if results.speed else None,
    }
    data = {name: value for name, value in results.data.items() if name != "end_ms"}
    config = yaml.safe_dump(dict(results.config), sort_keys=False)
    return template.render(r=results, data=data, figures=figures, config_text=config, colours=plots.COLOURS)


def template_of(name: str) -> jinja2.Template:
    """A page's template from this room, which finds the common style and the filters in its place."""
    files = importlib.resources.files("octavo.report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    environment.filters |= {"number": number, "signed": signed, "microseconds": microseconds}
    environment.globals["style"] = files.joinpath("style.css").read_text(encoding="utf-8")
    return environment.from_string(files.joinpath(name).read_text(encoding="utf-8"))


def write_report(results: Results, path: str | Path) -> Path:
    """Write the page to ``path``, atomically. Returns the path."""
    path = Path(path)
    write_atomically(path, render(results))
    return path


def number(value: float | None, digits: int = 4) -> str:
    """A figure with fixed digits; a dash where it is not defined."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float, scale: float = 1e4, digits: int = 2) -> str:
    """A difference in units of 1 / scale with its sign; a value that rounds to 0 has none."""
    text = f"{value * scale:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def microseconds(value: float) -> str:
    """A time with three significant digits in us or ms."""
    if value < 999.5:
        return f"{value:.3g} µs"
    return f"{value / 1e3:.3g} ms" if value < 999_500 else f"{value / 1e3:,.0f} ms"


def now() -> str:
    """The current UTC time to the minute, for people."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _is_split(results: Results) -> bool:
    """Whether there is more than one task or domain to tell apart over time."""
    kinds = {(point.task, point.domain) for point in results.progressive}
    domains = {domain for _, domain in kinds if domain is not None}
    return len(domains) > 1 or len({task for task, _ in kinds}) > 1


def _differences(results: Results) -> str | None:
    rows = [row for row in results.numerics if row.task == results.task]
    return plots.ne_differences(rows) if any(row.ne_difference for row in rows) else None
