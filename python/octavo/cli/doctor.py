"""``octavo doctor``: the machine, the kernels, what is missing."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import octavo
from octavo import _calibration_cache, data
from octavo.data import DataError

_EXTRAS = {
    "fbgemm-gpu-cpu": "pip install 'octavo[bench]': the peers that benchmarks compare with",
    "torchao": "pip install 'octavo[bench]'",
    "pyarrow": "pip install 'octavo[train]': logs, training, reports",
}
_STYLE = {
    "qualified": "green",
    "trusted": "green",
    "quarantined": "bold red",
    "unsupported": "dim",
    "unknown": "yellow",
}


def diagnose(console: Console, qualify: bool, calibrate: bool) -> None:
    """Print what there is; with ``qualify`` check every kernel first, with ``calibrate`` fit their costs and print the
    fits. Exits with 1 when a kernel is quarantined."""
    if qualify:
        from octavo.ops import dispatch

        dispatch.qualify(fresh=True)
    if calibrate:
        _calibrate(console)
    info = octavo.info()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("octavo", info["version"])
    facts.add_row("CPU", f"{info['cpu']}, {info['threads']} threads")
    facts.add_row("instruction set", f"{info['isa']} ({', '.join(info['features']) or 'none of the optional ones'})")
    facts.add_row("CUDA", _cuda(info["cuda"]))
    for name, version in info["libraries"].items():
        facts.add_row(name, version or "not installed", style=None if version else "dim")
    fits = _calibration_cache.read()
    facts.add_row("costs", f"calibrated for {len(fits)} kernels" if fits else "priors", style=None if fits else "dim")
    facts.add_row("data sets", _data_sets())
    console.print(facts)
    kernels = Table(title="Kernels", title_justify="left")
    kernels.add_column("name")
    kernels.add_column("state on this machine")
    for name, state in info["kernels"].items():
        kernels.add_row(name, f"[{_STYLE[state]}]{state}[/]")
    console.print(kernels)
    for advice in _advice(info, bool(fits)):
        console.print(f"- {advice}", highlight=False, markup=False, soft_wrap=True)
    bad = [name for name, state in info["kernels"].items() if state == "quarantined"]
    if bad:
        console.print(f"quarantined: {', '.join(bad)}: other kernels run instead; please report it", style="bold red")
        raise SystemExit(1)


def _calibrate(console: Console) -> None:
    """Fit and show, per kernel and type at the boundary, what small calls cost and how well the fit holds."""
    from octavo.ops import dispatch

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("timing kernels", total=1.0)
        fits = dispatch.calibrate(progress=lambda done: bar.update(task, completed=done))
    table = Table(title="Fitted costs", title_justify="left")
    for column in ("kernel", "type", "us per call", "GMAC/s", "median error", "samples"):
        table.add_column(column, justify="left" if column in ("kernel", "type") else "right")
    for fit in sorted(fits, key=lambda fit: (fit.io, fit.kernel)):
        rate = f"{1 / fit.coefficients[2]:.0f}" if fit.coefficients[2] > 0 else "-"
        row = (fit.kernel, fit.io, f"{fit.coefficients[0]:.1f}", rate, f"{fit.error:.0%}", str(fit.samples))
        table.add_row(*row)
    console.print(table)


def _cuda(device: dict[str, object] | None) -> str:
    from octavo import _core

    if device is not None:
        return f"{device['name']}, compute capability {device['capability']}"
    return "no usable device" if _core.built_with_cuda else "not built in (OCTAVO_CUDA=ON at build time)"


def _data_sets() -> str:
    try:
        return str(data.data_root())
    except DataError:
        return "not found (set OCTAVO_DATA)"


def _advice(info: dict[str, object], is_calibrated: bool) -> list[str]:
    libraries, kernels = info["libraries"], info["kernels"]
    assert isinstance(libraries, dict)
    assert isinstance(kernels, dict)
    advice = [f"{name}: {text}" for name, text in _EXTRAS.items() if libraries.get(name) is None]
    if "unknown" in kernels.values():
        advice.append("unknown kernels are checked when they are first needed; octavo doctor --qualify checks them now")
    if not is_calibrated:
        advice.append(
            "costs are priors for other machines: octavo doctor --calibrate fits them to this one, in seconds"
        )
    return advice
