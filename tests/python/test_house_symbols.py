"""Copies of one source compiled for different instruction sets must not share symbols that the linker merges."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LIBRARIES = {"octavo_generic_baseline": "baseline", "octavo_generic_avx2": "avx2", "octavo_generic_avx512": "avx512",
              "octavo_generic_avx512_bf16": "avx512_bf16",
              "octavo_avx2": "avx2_kernels", "octavo_avx512": "avx512_kernels",
              "octavo_amx": "amx_kernels"}  # fmt: skip


def _objects(library: str) -> list[Path]:
    found = [p for p in ROOT.glob(f"build/*/CMakeFiles/{library}*.dir/**/*.o") if "sanitize" not in str(p)]
    return [p for p in found if "tests" not in p.relative_to(ROOT / "build").parts[0]]


@pytest.mark.parametrize(("library", "namespace"), _LIBRARIES.items())
def test_weak_symbols_stay_in_their_namespace(library, namespace) -> None:
    objects = _objects(library)
    if not objects:
        pytest.skip("no object files below build/: run make install or make dev in this checkout")
    for path in objects:
        lines = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        weak = [line.split(maxsplit=2)[2] for line in lines.splitlines() if line.split()[1] in ("W", "V", "u")]
        foreign = [name for name in weak if f"octavo::{namespace}::" not in name and not name.startswith("DW.ref")]
        assert not foreign, f"{path.name}: {foreign[:5]}"
