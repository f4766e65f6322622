"""What the compiler did to the innermost loops of the hand-written kernels, read from the disassembly of object files.

Innermost among loops on zmm registers or of dot products: loops inside them that are neither (prefetches) do not
count. A loop of dot products may touch no stack and copy no vector register: sums that move or spill cost up to two
thirds of the peak. Any other may not spill a vector. Blocks that the compiler moved out of line, beyond the last jump
back, are cold and not looked at.

``inner_loops.py OBJECT...`` lists the findings and fails when there are any. Needs objdump (binutils).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DOT_PRODUCTS = frozenset({"vdpbf16ps", "vpdpbusd", "vpdpbusds", "vpdpwssd", "vpdpwssds", "vpmaddwd"})

_FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t(.*)$")
_PREFIXES = ("bnd", "notrack", "rep", "repz", "repnz", "lock", "data16", "cs")
_TARGET = re.compile(r"^([0-9a-f]+) <")
_STACK = re.compile(r"\(%rsp[,)]")
_STACK_OR_FRAME = re.compile(r"\(%r[sb]p[,)]")
_COPY = re.compile(r"^v?mov\w+ %[xyz]mm\d+,%[xyz]mm\d+$")
_VECTOR = re.compile(r"%[yz]mm\d+")


@dataclass(frozen=True)
class Instruction:
    """One line of the disassembly; ``text`` has the mnemonic and operands in AT&T syntax."""

    address: int
    text: str

    @property
    def mnemonic(self) -> str:
        return self.text.split(" ", 1)[0]

    @property
    def target(self) -> int | None:
        """Where a jump inside the object goes, None for everything else."""
        if not self.mnemonic.startswith("j"):
            return None
        found = _TARGET.match(self.text.split(" ", 1)[1])
        return int(found[1], 16) if found else None

    @property
    def falls_through(self) -> bool:
        return not self.mnemonic.startswith(("jmp", "ret", "ud2", "hlt"))


@dataclass(frozen=True)
class Loop:
    """From a loop's header to its last jump back, out-of-line blocks left out."""

    function: str
    body: tuple[Instruction, ...]
    has_frame: bool  # %rbp points into the stack

    @property
    def dot_products(self) -> int:
        return sum(i.mnemonic in DOT_PRODUCTS for i in self.body)

    def findings(self) -> list[str]:
        """Instructions that do not belong in this loop, with the reason."""
        stack = _STACK_OR_FRAME if self.has_frame else _STACK
        on_stack = [i for i in self.body if stack.search(i.text) and not i.mnemonic.startswith("lea")]
        copies = [i for i in self.body if _COPY.match(i.text)]
        vectors = [i for i in on_stack if i.mnemonic.startswith("v") and _VECTOR.search(i.text)]
        kinds = {"on the stack": on_stack, "register copies": copies} if self.dot_products else {"spills": vectors}
        return [f"{len(found)} {kind}, as {found[0].text}" for kind, found in kinds.items() if found]


def disassemble(path: Path) -> dict[str, list[Instruction]]:
    """Functions of an object file, by demangled name. Raises CalledProcessError when objdump cannot read it."""
    command = ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", "--wide", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if name := _FUNCTION.match(line):
            current = functions.setdefault(name[1], [])  # a cold part has a name of its own
        elif found := _INSTRUCTION.match(line):
            words = found[2].split("#")[0].split()
            while words and words[0] in _PREFIXES:
                words.pop(0)
            if words:
                current.append(Instruction(int(found[1], 16), " ".join(words)))
    return functions


def _blocks(code: Sequence[Instruction]) -> list[tuple[int, int]]:
    """Basic blocks as index ranges [begin, end)."""
    index = {i.address: at for at, i in enumerate(code)}
    starts = {0}
    for at, i in enumerate(code):
        if i.target is not None or not i.falls_through:
            starts.add(at + 1)
            if i.target in index:
                starts.add(index[i.target])
    ordered = sorted(starts - {len(code)})
    return list(zip(ordered, [*ordered[1:], len(code)]))


def _dominators(successors: Sequence[Sequence[int]]) -> list[set[int]]:
    """For each block the blocks on every way to it from block 0; empty for one that cannot be reached."""
    order, seen, stack = [], {0}, [(0, iter(successors[0]))]
    while stack:
        block, following = stack[-1]
        step = next((s for s in following if s not in seen), None)
        if step is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(step)
            stack.append((step, iter(successors[step])))
    predecessors: list[list[int]] = [[] for _ in successors]
    for block in seen:
        for s in successors[block]:
            predecessors[s].append(block)
    dominators = [set(seen) if block in seen else set() for block in range(len(successors))]
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in reversed(order):
            if block == 0:
                continue
            new = set.intersection(*(dominators[p] for p in predecessors[block])) | {block}
            changed |= new != dominators[block]
            dominators[block] = new
    return dominators


def innermost_loops(function: str, code: Sequence[Instruction]) -> list[Loop]:
    """The natural loops of a function on zmm registers or of dot products that contain no other such loop."""
    if not code:
        return []
    blocks = _blocks(code)
    at_address = {code[begin].address: number for number, (begin, _) in enumerate(blocks)}
    successors: list[list[int]] = []
    for number, (_, end) in enumerate(blocks):
        last = code[end - 1]
        following = [at_address[last.target]] if last.target in at_address else []
        if last.falls_through and number + 1 < len(blocks):
            following.append(number + 1)
        successors.append(following)
    dominators = _dominators(successors)
    predecessors: list[list[int]] = [[] for _ in blocks]
    for number, following in enumerate(successors):
        for s in following:
            predecessors[s].append(number)
    bodies: dict[int, set[int]] = {}  # header -> blocks
    latches: dict[int, int] = {}  # header -> its last jump back
    for number, following in enumerate(successors):
        for header in following:
            if header not in dominators[number]:
                continue
            body, todo = bodies.setdefault(header, {header}), [number]
            latches[header] = max(latches.get(header, 0), number)
            while todo:
                block = todo.pop()
                if block not in body:
                    body.add(block)
                    todo += predecessors[block]
    lines = {
        header: tuple(i for b in sorted(body) if header <= b <= latches[header] for i in code[slice(*blocks[b])])
        for header, body in bodies.items()
    }
    wide = {
        header for header, body in lines.items() if any("%zmm" in i.text or i.mnemonic in DOT_PRODUCTS for i in body)
    }
    has_frame = any(i.text == "mov %rsp,%rbp" for i in code)
    return [
        Loop(function, lines[header], has_frame)
        for header in sorted(wide)
        if not any(other in bodies[header] for other in wide - {header})
    ]


def loops_of(path: Path) -> list[Loop]:
    """The innermost loops of all functions of an object file."""
    return [loop for name, code in disassemble(path).items() for loop in innermost_loops(name, code)]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found; 1 when anything was, or when no object has a loop of dot products."""
    parser = argparse.ArgumentParser(prog="inner_loops.py", description=__doc__.splitlines()[0])
    parser.add_argument("objects", nargs="+", type=Path)
    paths: list[Path] = parser.parse_args(argv).objects
    findings, hot = [], 0
    for path in paths:
        loops = loops_of(path)
        hot += sum(loop.dot_products > 0 for loop in loops)
        for loop in loops:
            findings += [f"{path.name}: {loop.function}: {finding}" for finding in loop.findings()]
        print(f"{path.name}: {len(loops)} loops, {sum(loop.dot_products > 0 for loop in loops)} of dot products")
    print(*findings, sep="\n", end="\n" if findings else "")
    if hot == 0:
        print("no loop of dot products: are these the objects of cpp/src/cpu/avx*/linear_*.cpp?")
    return int(bool(findings) or hot == 0)


if __name__ == "__main__":
    sys.exit(main())
