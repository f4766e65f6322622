"""Run a build command with what the CUDA kernels need: nvcc 13 and CUTLASS's headers, brought where they are missing.

``cuda_toolchain.py --if-wanted ON|OFF|AUTO --run COMMAND...`` runs COMMAND with ``SKBUILD_CMAKE_DEFINE`` set. ON uses
the nvcc on PATH when it is of CUDA 13, else installs the compiler from pinned PyPI wheels into ``.cuda-toolchain``.
AUTO builds CUDA kernels only where both nvcc and a GPU are found.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / ".cuda-toolchain"
# Left alone, pip pairs nvcc 13.0 with newer siblings whose PTX its ptxas refuses: pin all of them.
COMPILER = ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl")
CUTLASS = "nvidia-cutlass==4.2.0.0"


def main() -> int:
    """Decide, prepare, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--if-wanted", choices=("ON", "OFF", "AUTO"), required=True)
    parser.add_argument("--run", nargs=argparse.REMAINDER, required=True)
    arguments = parser.parse_args()
    wanted = arguments.if_wanted
    if wanted == "AUTO":
        wanted = "ON" if system_nvcc() and shutil.which("nvidia-smi") else "OFF"
    defines = [f"OCTAVO_CUDA={wanted}"]
    environment = dict(os.environ)
    if wanted == "ON":
        defines += compiler_defines(environment)
        defines.append(f"OCTAVO_CUTLASS_DIR={cutlass()}")
    environment["SKBUILD_CMAKE_DEFINE"] = ";".join(defines)
    return subprocess.run(arguments.run, env=environment, check=False).returncode


def system_nvcc() -> str | None:
    """The nvcc of CUDA 13 on PATH or below CUDA_HOME, if there is one."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    for candidate in (shutil.which("nvcc"), f"{home}/bin/nvcc"):
        if candidate and Path(candidate).exists():
            told = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
            if re.search(r"release 13\.", told):
                return candidate
    return None


def compiler_defines(environment: dict[str, str]) -> list[str]:
    """CMake defines for nvcc; the PyPI one also needs its libraries on the linker's path."""
    nvcc = system_nvcc()
    if nvcc is not None:
        return [f"CMAKE_CUDA_COMPILER={nvcc}"]
    home = pypi_compiler()
    environment["CUDA_HOME"] = str(home)
    environment["PATH"] = f"{home / 'bin'}{os.pathsep}{environment['PATH']}"
    return [f"CMAKE_CUDA_COMPILER={home / 'bin' / 'nvcc'}", f"CUDAToolkit_ROOT={home}"]


def pypi_compiler() -> Path:
    """nvcc from PyPI wheels, installed once; returns its home (bin, include, lib)."""
    home = ROOT / "nvidia" / "cu13"
    if not (home / ".complete").exists():
        shutil.rmtree(ROOT / "nvidia", ignore_errors=True)
        install([f"{name}==13.0.*" for name in COMPILER])
        # nvcc's profile says lib64, CMake asks for an unversioned libcudart.so; the wheels have neither.
        if not (home / "lib64").exists():
            (home / "lib64").symlink_to("lib")
        versioned = sorted((home / "lib").glob("libcudart.so.*"))
        if versioned and not (home / "lib" / "libcudart.so").exists():
            (home / "lib" / "libcudart.so").symlink_to(versioned[0].name)
        (home / ".complete").touch()
    return home


def cutlass() -> Path:
    """The directory that holds CUTLASS's include/: OCTAVO_CUTLASS_DIR, an installed wheel, or one installed now."""
    given = os.environ.get("OCTAVO_CUTLASS_DIR")
    if given:
        return Path(given)
    spec = importlib.util.find_spec("cutlass_library")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / "source"
    source = ROOT / "cutlass_library" / "source"
    if not (source / "include" / "cutlass" / "cutlass.h").exists():
        install([CUTLASS])
    return source


def install(requirements: list[str]) -> None:
    """Unpack wheels into the toolchain's directory, without dependencies."""
    print(f"cuda_toolchain: installing {', '.join(requirements)} into {ROOT.name}", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(ROOT)]
    subprocess.run([*command, *requirements], check=True)


if __name__ == "__main__":
    sys.exit(main())
