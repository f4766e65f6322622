"""docs/kernels.md out of the registry: prints it, or with ``--write`` writes it. A test compares the two.

Everything is read from the rows and from what qualification checks, so a new row or op needs no change here. CPU rows
and the GEMM kernels' table only: they are the same in every build on x86-64; docs/gpu.md has the other CUDA kernels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import gemm_table

from octavo import _core, ops
from octavo.ops import checks, qualification
from octavo.ops._types import NUMERICS

PATH = Path(__file__).resolve().parents[1] / "docs" / "kernels.md"
LIBRARIES = ("octavo", "torch")
FEATURES = {"avx2": "AVX2 + FMA + F16C", "avx512": "AVX-512 F/BW/VL/DQ", "avx512_bf16": "AVX512-BF16",
            "avx512_vnni": "AVX512-VNNI", "avx512_vbmi": "AVX512-VBMI",
            "amx": "AMX-BF16 + AMX-INT8"}  # fmt: skip
_LARGE = 1 << 40  # a size that no limit of a kernel reaches


def instructions(kernel: _core.Kernel) -> str:
    """What the CPU must have."""
    if kernel.library != "octavo":
        return f"{kernel.library} decides"
    if not kernel.needs:
        return "any; compiled for baseline, AVX2, AVX-512"
    extensions = [name for name in kernel.needs if name not in ("avx2", "avx512")]
    return " + ".join(FEATURES.get(name, name) for name in (extensions or kernel.needs))


def largest(takes: Callable[[int], bool]) -> int | None:
    """The largest size that is taken, None when there is no limit (or even 64 is refused)."""
    if takes(_LARGE) or not takes(64):
        return None
    low, high = 64, _LARGE
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    return low


def shapes(kernel: _core.Kernel) -> str:
    """Which M, N, K the row takes, found by asking it."""
    found = []
    for name, at in (("M", 0), ("N", 1), ("K", 2)):

        def takes(size: int, at: int = at) -> bool:
            sizes = [64, 64, 64]
            sizes[at] = size
            return kernel.accepts(*sizes)

        step = next((s for s in (1, 2, 4, 8, 16, 32, 64) if takes(64 + s) and takes(64 + 3 * s)), 0)
        if step > 1:
            found.append(f"{name} a multiple of {step}")
        limit = largest(takes) if step == 1 else None
        if limit is not None:
            found.append(f"{name} <= {limit:,}")
    return ", ".join(found) or "every"


def what(kernel: _core.Kernel) -> str:
    """The class, or the formats read and written."""
    if kernel.op.name == "linear":
        return f"{kernel.numerics.name}, product in {kernel.product.name}"
    return kernel.formats or kernel.numerics.name


def section(op: _core.Op, kernels: list[_core.Kernel]) -> str:
    """One op: what its kernels are held to, then a row for each."""
    check = qualification.check_of(op)
    lines = [f"## {op.name}", "", f"Held to: {(check.__doc__ or '').strip().splitlines()[0]}", "",
             "| kernel | class or formats | CPU | shapes | deterministic | accuracy |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for kernel in kernels:
        trust = "trusted, not checked" if kernel.state == "trusted" else "qualified before its first use"
        cells = (f"`{kernel.name}`", what(kernel).replace("|", " / "), instructions(kernel), shapes(kernel),
                 "yes" if kernel.deterministic else "no", trust)  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def text() -> str:
    """The whole page."""
    rows = [k for k in _core.kernels() if k.device == _core.Device.cpu and k.library in LIBRARIES]
    head = f"""# Kernels

Made from the registry by `tools/kernel_table.py --write`; do not edit. `octavo doctor` says what this machine runs,
`octavo.ops.dispatch.explain` why. CUDA kernels: [gpu.md](gpu.md).

A kernel may be chosen only after it agreed on this machine with an FP64 reference on the operands as its class rounds
them. Unless a section says otherwise the largest error may be {checks.FP32_TOLERANCE:.0e} of the largest element with
FP32 outputs, 2^-8 with BF16 ones (twice that where the product is BF16, or what an RMS norm sees, as it may be on
Hopper). What the classes themselves lose is measured per layer (`octavo.ops.dispatch.plan`); on Gaussian data:
{nominal()}.
"""
    sections = [section(op, own) for op in _core.Op if (own := [k for k in rows if k.op == op])]
    return "\n".join([head, *sections, gemm_table.section()])


def nominal() -> str:
    """SQNR of each class on Gaussian data."""
    classes = [_core.Numerics[name] for name in NUMERICS if name != "fp32"]
    return ", ".join(f"{n.name} {_core.nominal_error(n).sqnr_db:.1f} dB" for n in classes)


def main() -> int:
    """Print, or write the file."""
    assert ops  # its import registers the rows of other libraries
    if "--write" in sys.argv:
        PATH.write_text(text(), encoding="utf-8")
    else:
        print(text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
