"""The hot loops that were compiled: no sums on the stack, no copies between registers (tools/inner_loops.py)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from inner_loops import Loop, loops_of, main  # noqa: E402

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("objdump", "as", "readelf")), reason="needs binutils"
)


def _newest(source: Path) -> Path | None:
    """The object of the latest build below build/, sanitized ones aside."""
    isa = source.parent.name
    found = ROOT.glob(f"build/*/CMakeFiles/octavo_{isa}.dir/cpp/src/cpu/{isa}/{source.name}.o")
    ours = [p for p in found if "tests" not in p.relative_to(ROOT / "build").parts[0]]
    return max(ours, key=lambda p: p.stat().st_mtime, default=None)


SOURCES = sorted((ROOT / "cpp/src/cpu").glob("a[mv]x*/*.cpp"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_hot_loops_stay_in_registers(source) -> None:
    path = _newest(source)
    if path is None:
        pytest.skip("no object files below build/: run make install or make dev in this checkout")
    comment = subprocess.run(["readelf", "-p", ".comment", path], capture_output=True, text=True, check=True).stdout
    if "GCC: (" not in comment or ") 12." not in comment:
        pytest.skip("the compiler that CI uses is judged, GCC 12; another allocates registers differently")
    assert not [f"{loop.function}: {finding}" for loop in loops_of(path) for finding in loop.findings()]


@pytest.mark.parametrize(
    ("source", "dot_product", "count"),  # rows x vectors of the largest tile
    [
        ("avx512/linear_bf16", "vdpbf16ps", 6 * 4),
        ("avx512/linear_int8_dynamic", "vpdpbusd", 6 * 4),
        ("avx2/linear_int8_dynamic", "vpmaddwd", 6 * 2),
    ],
)
def test_the_tiles_are_seen(source, dot_product, count) -> None:
    path = _newest(ROOT / f"cpp/src/cpu/{source}.cpp")
    if path is None:
        pytest.skip("no object files below build/: run make install or make dev in this checkout")
    tiles = {loop.dot_products for loop in loops_of(path) if loop.dot_products}
    assert count in tiles
    text = subprocess.run(["objdump", "-d", path], capture_output=True, text=True, check=True).stdout
    assert dot_product in text


def _assembled(tmp_path: Path, body: str) -> Path:
    """An object of one function, `body`, in AT&T syntax."""
    lines = [".text", ".globl kernel", ".type kernel, @function", "kernel:", *body.split("\n"), "ret", ""]
    path = tmp_path / "kernel.o"
    subprocess.run(["as", "-o", path, "-"], input="\n".join(lines), text=True, check=True)
    return path


def _loops(tmp_path: Path, body: str) -> list[Loop]:
    return loops_of(_assembled(tmp_path, body))


_GOOD = """
vpxord %zmm0,%zmm0,%zmm0
0: vmovdqu64 (%rdi),%zmm1
vpbroadcastd (%rsi),%zmm2
{extra}
vdpbf16ps %zmm1,%zmm2,%zmm0
add $64,%rdi
dec %rcx
jne 0b
vmovups %zmm0,-64(%rsp)
"""


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ("nop", []),
        ("vmovaps %zmm0,%zmm3", ["1 register copies, as vmovaps %zmm0,%zmm3"]),
        ("vmovdqa64 %zmm0,%zmm3\nvmovups %ymm4,%ymm5", ["2 register copies, as vmovdqa64 %zmm0,%zmm3"]),
        ("vmovaps %zmm0,%zmm3{%k1}", []),  # a blend
        ("vmovups %zmm0,-64(%rsp)", ["1 on the stack, as vmovups %zmm0,-0x40(%rsp)"]),
        ("mov 8(%rsp,%rax,8),%rdx\nmov %rdx,(%rsp)", ["2 on the stack, as mov 0x8(%rsp,%rax,8),%rdx"]),
        ("lea 8(%rsp),%rdx", []),  # an address, not an access
        ("mov 8(%rbp),%rdx", []),  # no frame: a register like any other
    ],
)
def test_loops_of_dot_products(tmp_path, extra, found) -> None:
    (loop,) = _loops(tmp_path, _GOOD.format(extra=extra))
    assert loop.dot_products == 1
    assert loop.findings() == found


def test_a_frame_pointer_is_the_stack(tmp_path) -> None:
    (loop,) = _loops(tmp_path, "push %rbp\nmov %rsp,%rbp" + _GOOD.format(extra="mov -8(%rbp),%rdx") + "pop %rbp")
    assert loop.findings() == ["1 on the stack, as mov -0x8(%rbp),%rdx"]


def test_other_loops_may_use_the_stack_but_not_for_vectors(tmp_path) -> None:
    body = "0: mov 8(%rsp),%rdx\nvmovaps %zmm1,%zmm2\n{extra}\nvfmadd231ps (%rdx),%zmm2,%zmm1\ndec %rcx\njne 0b"
    (loop,) = _loops(tmp_path, body.format(extra="nop"))
    assert loop.findings() == []
    (loop,) = _loops(tmp_path, body.format(extra="vaddps 64(%rsp),%zmm1,%zmm1"))
    assert loop.findings() == ["1 spills, as vaddps 0x40(%rsp),%zmm1,%zmm1"]


def test_a_prefetch_loop_inside_does_not_hide_the_loop(tmp_path) -> None:
    body = """
    0: mov %r8,%rdx
    1: prefetcht1 (%rdx)
    add $64,%rdx
    cmp %rdx,%r9
    jne 1b
    vmovaps %zmm0,64(%rsp)
    vfmadd231ps (%rdi),%zmm1,%zmm0
    dec %rcx
    jne 0b"""
    (loop,) = _loops(tmp_path, body)
    assert loop.findings() == ["1 spills, as vmovaps %zmm0,0x40(%rsp)"]


def test_blocks_out_of_line_are_cold(tmp_path) -> None:
    body = """
    0: vdpbf16ps (%rdi),%zmm2,%zmm0
    test %eax,%eax
    jne 2f
    1: dec %rcx
    jne 0b
    ret
    2: vmovaps %zmm0,64(%rsp)
    jmp 1b"""
    (loop,) = _loops(tmp_path, body)
    assert loop.findings() == []


def test_only_the_innermost_loop_counts(tmp_path) -> None:
    (loop,) = _loops(tmp_path, "3: vmovaps %zmm0,64(%rsp)" + _GOOD.format(extra="nop") + "dec %r8\njne 3b")
    assert [i.mnemonic for i in loop.body].count("vmovaps") == 0
    assert loop.findings() == []


def test_the_command_fails_on_a_finding_and_where_nothing_is_hot(tmp_path, capsys) -> None:
    good = _assembled(tmp_path, _GOOD.format(extra="nop"))
    assert main([str(good)]) == 0
    assert capsys.readouterr().out == "kernel.o: 1 loops, 1 of dot products\n"
    bad = _assembled(tmp_path, _GOOD.format(extra="vmovaps %zmm0,%zmm3"))
    assert main([str(bad)]) == 1
    assert "kernel.o: kernel: 1 register copies, as vmovaps %zmm0,%zmm3" in capsys.readouterr().out
    cold = _assembled(tmp_path, "0: vaddps %zmm0,%zmm1,%zmm0\ndec %rcx\njne 0b")
    assert main([str(cold)]) == 1
    assert "no loop of dot products" in capsys.readouterr().out
