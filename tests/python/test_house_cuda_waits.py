"""Every CUDA kernel waits for those before it, first of all: a launch may start early (cuda/device/launch.cuh)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIRST = "wait_for_previous_kernels();"


def kernels(source: str) -> Iterator[tuple[str, str]]:
    """Name and body, from behind its brace on, of every kernel that is defined in ``source``."""
    source = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.S)
    for found in re.finditer(r"\b__global__\b", source):
        depth, name = 0, ""
        for at in range(found.end(), len(source)):
            c = source[at]
            if depth == 0 and c in "{;":
                if c == "{":
                    yield name, source[at + 1 :].lstrip()
                break
            if depth == 0 and c == "(":
                name = re.findall(r"\w+", source[:at])[-1]
            depth += (c == "(") - (c == ")")


def test_the_first_statement_of_every_kernel_is_the_wait() -> None:
    names = []
    for path in sorted((ROOT / "cuda").rglob("*.cu*")):
        for name, body in kernels(path.read_text(encoding="utf-8")):
            names.append(name)
            assert body.startswith(FIRST), f"{path.relative_to(ROOT)}: {name} does not begin with {FIRST}"
    assert len(names) >= 20
    assert {"quantize_rows", "finish_rows", "add_slices", "update_rows", "multiply_pairs"} <= set(names)


def test_a_kernel_starts_through_launch_alone() -> None:
    """Which sets the attribute; a launch by other means would start behind the one before, which is right but late."""
    for path in sorted((ROOT / "cuda").rglob("*.cu*")):
        if path.name != "launch.cuh":
            assert not re.search(r"<<<|cudaLaunchKernel|cuLaunchKernel", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("__global__ void f(int* p) { wait_for_previous_kernels(); *p = 1; }", [("f", True)]),
        ("__global__ void __launch_bounds__(k, (2)) f() {\n // first\n wait_for_previous_kernels();", [("f", True)]),
        ("__global__ void f(int* p) { *p = 1; wait_for_previous_kernels(); }", [("f", False)]),
        ("__global__ void f(int* p);\n__global__ void g() { if (x) wait_for_previous_kernels(); }", [("g", False)]),
        ("__device__ void f() {} // __global__ void g() {}", []),
    ],
)  # fmt: skip
def test_what_counts(source: str, found: list[tuple[str, bool]]) -> None:
    assert [(name, body.startswith(FIRST)) for name, body in kernels(source)] == found
