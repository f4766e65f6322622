"""The house: floors, what the compiled module links, what importing costs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import octavo
from octavo import _core

ROOT = Path(__file__).parents[2]


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rooms_import_only_from_lower_floors() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_every_room_stands_on_a_floor() -> None:
    import tomllib

    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    listed = {name.strip() for layer in contract["layers"] for name in re.split("[:|]", layer)}
    package = Path(octavo.__file__).parent
    rooms = {f"octavo.{p.name}" for p in package.iterdir() if (p / "__init__.py").exists()}
    modules = {f"octavo.{p.stem}" for p in package.glob("*.py") if p.stem != "__init__"}
    assert listed == rooms | modules


def test_the_core_links_neither_torch_nor_cuda() -> None:
    libraries = subprocess.run(["ldd", _core.__file__], capture_output=True, text=True, check=True).stdout
    for name in ("torch", "c10", "cudart", "cuda.so", "gomp", "python"):
        assert name not in libraries, libraries


def test_importing_is_light_and_info_needs_no_torch() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import octavo; i = octavo.info(); dt = time.perf_counter() - t;"
        "import json; print(json.dumps([dt, 'torch' in sys.modules, 'numpy' in sys.modules, sorted(i)]))"
    )
    best = min(json.loads(_run(code))[0] for _ in range(3))
    _, torch_loaded, numpy_loaded, keys = json.loads(_run(code))
    assert not torch_loaded
    assert not numpy_loaded
    assert best < 0.3
    assert {"version", "isa", "threads", "cuda", "libraries", "kernels"} <= set(keys)


def test_info_agrees_with_the_core() -> None:
    info = octavo.info()
    assert info["version"] == octavo.__version__
    assert info["isa"] == _core.isa()
    assert set(info["kernels"]) == {k.name for k in _core.kernels()}
    assert info["libraries"]["torch"].startswith("2.")
    assert set(info["kernels"].values()) <= {"unknown", "trusted", "qualified", "quarantined", "unsupported"}


def test_threads_are_torchs() -> None:
    import torch

    before = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            assert _core.borrows_openmp()
            assert _core.threads() == n
    finally:
        torch.set_num_threads(before)


def test_a_new_thread_takes_torchs_number_at_once() -> None:
    code = (
        "import torch\nfrom concurrent.futures import ThreadPoolExecutor\nfrom octavo import _core, ops\n"
        "torch.set_num_threads(1)\nwith ThreadPoolExecutor(1) as pool:\n    print(pool.submit(_core.threads).result())"
    )
    assert _run(code).strip() == "1"


def test_unknown_room_says_which_exist() -> None:
    code = "import octavo\ntry:\n    octavo.loca\nexcept AttributeError as e:\n    print(e)"
    assert "its rooms are ops, nn" in _run(code)


def test_the_package_is_typed_and_versions_agree() -> None:
    import importlib.metadata

    assert (Path(octavo.__file__).parent / "py.typed").exists()
    try:
        installed = importlib.metadata.version("octavo")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("octavo runs from the checkout (make dev) and is not installed")
    assert installed == octavo.__version__


def test_the_stub_names_what_the_core_has() -> None:
    import ast

    stub = Path(octavo.__file__).with_name("_core.pyi")
    tree = ast.parse(stub.read_text(encoding="utf-8"))
    named = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    named |= {
        node.target.id for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    if not _core.built_with_cuda:
        named -= {"refused_by_cutlass", "run_gemm_tile", "finish_linear"}
    assert named == {name for name in dir(_core) if not name.startswith("_")}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            members = {m.name for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")}
            assert members <= set(dir(getattr(_core, node.name))), node.name
