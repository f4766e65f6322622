"""What octavo's build, tests and benchmarks need on a GPU machine: looked for, and installed from wheels carried there.

``gpu_needs.py [--wheels FOLDER]`` exits with 1 and names what is missing and how to bring it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from cuda_toolchain import CUTLASS

# Modules by the name that pip has for them.
PACKAGES = {
    "torch": "torch", "numpy": "numpy", "pybind11": "pybind11", "scikit-build-core": "scikit_build_core",
    "pytest": "pytest", "hypothesis": "hypothesis", "pyarrow": "pyarrow", "pyyaml": "yaml", "pydantic": "pydantic",
}  # fmt: skip


def missing() -> list[str]:
    """What ``pip download`` takes, of what this interpreter does not find."""
    names = [name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None]
    given = Path(os.environ.get("OCTAVO_CUTLASS_DIR", ""))
    has_cutlass = (given / "include" / "cutlass" / "cutlass.h").exists()
    if not has_cutlass and importlib.util.find_spec("cutlass_library") is None:
        names.append(CUTLASS)
    return names


def install(name: str, wheels: Path) -> None:
    """From the folder alone; what is not there stays missing. CUTLASS is wanted for its headers, not what it needs."""
    alone = ["--no-deps"] if name == CUTLASS else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(wheels), *alone]
    subprocess.run([*command, name], check=False)
    importlib.invalidate_caches()


def main() -> int:
    """Look, install, look again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="a folder of wheels")
    arguments = parser.parse_args()
    if arguments.wheels is not None:
        for name in missing():
            install(name, arguments.wheels)
    if names := missing():
        print(
            f"gpu_needs: {sys.executable} lacks {', '.join(names)}. Where there is a network: pip download "
            f"{' '.join(names)} (CUTLASS with --no-deps); carry the wheels and name their folder (GPU_WHEELS=FOLDER). "
            "CUTLASS's headers may also lie where OCTAVO_CUTLASS_DIR says, below include/.",
            file=sys.stderr,
        )
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
