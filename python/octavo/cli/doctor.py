"""``octavo doctor``: the machine, the kernels, what is missing."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

import octavo
from octavo import data
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


def diagnose(console: Console, qualify: bool) -> None:
    """Print what there is; with ``qualify`` check every kernel first. Exits with 1 when a kernel is quarantined."""
    if qualify:
        from octavo.ops import dispatch

        dispatch.qualify(fresh=True)
    info = octavo.info()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("octavo", info["version"])
    facts.add_row("CPU", f"{info['cpu']}, {info['threads']} threads")
    facts.add_row("instruction set", f"{info['isa']} ({', '.join(info['features']) or 'none of the optional ones'})")
    facts.add_row("CUDA", _cuda(info["cuda"]))
    for name, version in info["libraries"].items():
        facts.add_row(name, version or "not installed", style=None if version else "dim")
    facts.add_row("data sets", _data_sets())
    console.print(facts)
    kernels = Table(title="Kernels", title_justify="left")
    kernels.add_column("name")
    kernels.add_column("state on this machine")
    for name, state in info["kernels"].items():
        kernels.add_row(name, f"[{_STYLE[state]}]{state}[/]")
    console.print(kernels)
    for advice in _advice(info):
        console.print(f"- {advice}", highlight=False, markup=False, soft_wrap=True)
    bad = [name for name, state in info["kernels"].items() if state == "quarantined"]
    if bad:
        console.print(f"quarantined: {', '.join(bad)}: other kernels run instead; please report it", style="bold red")
        raise SystemExit(1)


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


def _advice(info: dict[str, object]) -> list[str]:
    libraries, kernels = info["libraries"], info["kernels"]
    assert isinstance(libraries, dict)
    assert isinstance(kernels, dict)
    advice = [f"{name}: {text}" for name, text in _EXTRAS.items() if libraries.get(name) is None]
    if "unknown" in kernels.values():
        advice.append("unknown kernels are checked when they are first needed; octavo doctor --qualify checks them now")
    return advice
