"""docs/kernels.md shows the registry as it is."""

import subprocess
import sys
from pathlib import Path

from octavo import _core

ROOT = Path(__file__).parents[2]


def test_the_page_is_made_from_the_registry() -> None:
    script = ROOT / "tools" / "kernel_table.py"
    made = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert page == made, "docs/kernels.md is not what the registry says; run tools/kernel_table.py --write"
    ours = [k for k in _core.kernels() if k.library == "octavo" and k.device == _core.Device.cpu]
    for kernel in ours:
        assert page.count(f"`{kernel.name}`") == 1, kernel.name


def test_what_a_kernel_needs_does_not_depend_on_the_level(isa) -> None:
    assert _core.kernel("cpu.generic.linear.bf16").needs == []
    assert _core.kernel("cpu.avx512.linear.int8_dynamic").needs == ["avx512_vnni"]
    assert _core.kernel("cpu.avx512.bag_forward").needs == ["avx512"]
    for kernel in _core.kernels():
        assert set(kernel.needs) <= set(_core.cpu_features()), kernel.name


def test_accepted_shapes_are_asked_of_the_row() -> None:
    deepest = 2**31 // 127**2
    assert _core.kernel("cpu.avx512.linear.int8_dynamic").accepts(1, 1, deepest)
    assert not _core.kernel("cpu.avx512.linear.int8_dynamic").accepts(1, 1, deepest + 1)
    assert _core.kernel("cpu.generic.linear.bf16").accepts(0, 3, 10**9)
