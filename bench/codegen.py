"""Instruction counts of the kernels' inner loops, read from the disassembly of the built library: `python -m bench.codegen [LIBRARY]`.

A clock on a busy machine does not show that a compiler has begun to spill registers; the instructions do. Loops are found by their content:
in every function of a policy, the innermost loops with the most multiply-adds. One step of a block of `a` accumulators, r rows by c vectors
with r c = a, takes a multiply-adds and at least r + c operand loads, broadcasts included. A loop is compared with this floor. The library
may be one for x86-64 or for 64-bit ARM (`make aarch64`).

A tile product takes 16 cycles, in which a core executes 60 other instructions, so in loops on tiles only the tile instructions count.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lolrt
from lolrt.bench.table import aligned

LIBRARY = lolrt.library()
# A loop is hot if it has at least this share of the multiply-adds of the largest loop of the same policy, kernel and kind of multiply-add.
HOT = 0.7
SMALLEST_BLOCK = 6  # accumulators

_FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+(?:(?:lock|rep|repz|notrack|bnd|\{evex\}|\{vex\})\s+)*(\S+)\s*(.*)$")
_TARGET = re.compile(r"(?:^|\s)([0-9a-f]+)$")


@dataclass(frozen=True)
class Instruction(ABC):
    """`operands`: as objdump prints them, without what it says about addresses."""

    address: int
    mnemonic: str
    operands: str

    @property
    @abstractmethod
    def kind(self) -> str:
        """multiply_add, load, broadcast, shuffle, spill (a vector register stored to the stack), reload (read back), or other."""

    @property
    @abstractmethod
    def destination(self) -> str:
        """The register that is written, or memory."""

    @property
    @abstractmethod
    def is_jump(self) -> bool: ...

    @property
    def target(self) -> int | None:
        """Where a jump goes to inside the library."""
        match = _TARGET.search(self.operands) if self.is_jump else None
        return int(match[1], 16) if match else None


class X86(Instruction):
    """In AT&T order: the destination is last."""

    _MULTIPLY_ADD = re.compile(r"vfn?m(add|sub)\d*ps|vdpbf16ps|vpdpbusd|tdp\w+")
    _LOAD = re.compile(r"vmov(up|ap|dq)\w*|tileload\w+|vld\w+")
    _BROADCAST = re.compile(r"vp?broadcast\w+")
    _SHUFFLE = re.compile(r"v(p?shuf|perm|p?unpck|pack|pblend|blend|extract|insert|palign|valign|movshdup|movsldup)\w*")
    _VECTOR = re.compile(r"%([xyz]mm|tmm)\d+")
    _STACK = re.compile(r"-?(?:0x[0-9a-f]+)?\(%r[sb]p\b")

    @property
    def is_jump(self) -> bool:
        return self.mnemonic.startswith("j")

    @property
    def destination(self) -> str:
        """The last operand; commas inside parentheses do not separate operands."""
        return re.split(r",(?![^()]*\))", self.operands)[-1].strip()

    @property
    def kind(self) -> str:
        to_memory = "(" in self.destination
        if self._MULTIPLY_ADD.fullmatch(self.mnemonic):
            return "multiply_add"
        if self._VECTOR.search(self.operands) and self._STACK.search(self.operands):
            return "spill" if to_memory else "reload"
        if self._BROADCAST.fullmatch(self.mnemonic):
            return "broadcast"
        if self._LOAD.fullmatch(self.mnemonic) and "(" in self.operands and not to_memory:
            return "load"
        return "shuffle" if self._SHUFFLE.fullmatch(self.mnemonic) else "other"


class Aarch64(Instruction):
    """The destination is first. A product takes a number of a register as well as a vector, so that to load one number is to broadcast."""

    _MULTIPLY_ADD = re.compile(r"fml[as]|bfmmla|bfdot")
    _SHUFFLE = re.compile(r"zip[12]|uzp[12]|trn[12]|ext|rev\d+|ins|dup|tbl")
    _VECTOR = re.compile(r"\{?[bhsdqv]\d+\b")
    _STACK = re.compile(r"\[(sp|x29)\b")

    @property
    def is_jump(self) -> bool:
        return self.mnemonic in ("b", "cbz", "cbnz", "tbz", "tbnz") or self.mnemonic.startswith("b.")

    @property
    def destination(self) -> str:
        first = self.operands.partition(",")[0]
        return re.sub(r"^\{?[bhsdqv](\d+)\b.*", r"v\1", first)

    @property
    def kind(self) -> str:
        if self._MULTIPLY_ADD.fullmatch(self.mnemonic):
            return "multiply_add"
        if self._VECTOR.match(self.operands) and "[" in self.operands:
            stores = self.mnemonic.startswith("st")
            if self._STACK.search(self.operands):
                return "spill" if stores else "reload"
            if stores:
                return "other"
            return "broadcast" if self.mnemonic == "ld1r" or self.operands[0] in "bhsd" else "load"
        return "shuffle" if self._SHUFFLE.fullmatch(self.mnemonic) else "other"


@dataclass(frozen=True)
class Loop:
    """An innermost loop. `policy`: the instruction set that its function was compiled for; `element`: the type that it multiplies;
    `kernel`: the class that its function belongs to, or the function itself."""

    kernel: str
    policy: str
    element: str
    start: int
    instructions: int
    counts: Counter[str]
    accumulators: int
    """Number of different registers that multiply-adds add to."""

    @property
    def floor(self) -> int:
        """The least multiply-adds and operand loads that the work of the loop takes."""
        operands = min(rows + self.accumulators // rows for rows in range(1, self.accumulators + 1) if self.accumulators % rows == 0)
        multiply_adds = self.counts["multiply_add"]
        return multiply_adds + operands * multiply_adds // self.accumulators

    @property
    def share(self) -> float:
        """The instructions that multiply and add."""
        return self.counts["multiply_add"] / self.instructions

    @property
    def operand_loads(self) -> int:
        return self.counts["load"] + self.counts["broadcast"]


def is_aarch64(library: Path) -> bool:
    return library.read_bytes()[18:20] == b"\xb7\0"  # e_machine of ELF


def objdump_for(library: Path) -> str:
    """The program that reads the library: the machine's own one, or that of the compiler for 64-bit ARM."""
    return "aarch64-linux-gnu-objdump" if is_aarch64(library) and platform.machine() != "aarch64" else "objdump"


def disassemble(library: Path) -> str:
    """What objdump (binutils) prints of the library; raises RuntimeError when there is no objdump for it."""
    objdump = objdump_for(library)
    if shutil.which(objdump) is None:
        raise RuntimeError(f"{objdump} not found: install binutils{'' if objdump == 'objdump' else '-aarch64-linux-gnu'}")
    command = [objdump, "--disassemble", "--no-show-raw-insn", "--demangle", "--wide", str(library)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def functions(disassembly: str) -> Iterator[tuple[str, list[Instruction]]]:
    machine, comment = (Aarch64, "//") if "file format elf64-littleaarch64" in disassembly else (X86, "#")
    name = ""
    body: list[Instruction] = []
    for line in disassembly.splitlines():
        if header := _FUNCTION.match(line):
            if body:
                yield name, body
            name, body = header[1], []
        elif match := _INSTRUCTION.match(line):
            body.append(machine(int(match[1], 16), match[2], match[3].split(comment)[0].split("<")[0].strip()))
    if body:
        yield name, body


def innermost_loops(body: list[Instruction]) -> Iterator[list[Instruction]]:
    """The instructions of each innermost loop; a loop is what a backward jump spans."""
    first = body[0].address
    spans = {(i.target, i.address) for i in body if i.target is not None and first <= i.target <= i.address}
    for start, end in sorted(spans):
        if not any((start <= a and b <= end) and (a, b) != (start, end) for a, b in spans):
            yield [i for i in body if start <= i.address <= end]


def hot_loops(disassembly: str) -> list[Loop]:
    """The hot loops of every policy, most multiply-adds first."""
    groups = defaultdict(list)
    for function, body in functions(disassembly):
        isa = re.search(r"(\w+)Isa\b", function)
        if not isa:
            continue
        for loop in innermost_loops(body):
            found = summarise(function, isa[1], loop)
            if found is not None:
                groups[found.policy, found.element, found.kernel].append(found)
    return [
        loop
        for _, loops in sorted(groups.items())
        for loop in sorted(loops, key=lambda loop: -loop.counts["multiply_add"])
        if loop.counts["multiply_add"] >= HOT * max(other.counts["multiply_add"] for other in loops)
    ]


def summarise(function: str, policy: str, loop: list[Instruction]) -> Loop | None:
    """Counts of a loop; None if it is no matrix product, in which most multiply-adds add to a register that an earlier one has added to."""
    counts = Counter(i.kind for i in loop)
    products = [i for i in loop if i.kind == "multiply_add"]
    if not products or all("%xmm" in i.operands for i in products):
        return None
    accumulators = {i.destination for i in products}
    # Tiles are only used for matrix products. Vectors are also used for sums, with few accumulators, and for polynomials, which overwrite
    # theirs.
    kinds = {"vd": "bfloat16", "bf": "bfloat16", "vp": "bytes", "td": "bfloat16 tiles"}
    element = kinds.get(products[0].mnemonic[:2], "float32")
    overwritten = {i.destination for i in loop if i.kind not in ("multiply_add", "reload")}
    is_block = len(accumulators) >= SMALLEST_BLOCK and sum(i.destination in overwritten for i in products) <= len(products) / 2
    if element != "bfloat16 tiles" and not is_block:
        return None
    kernel = re.search(r"(\w+)Kernel\b", function) or re.search(r"(\w+)<", function)
    return Loop(
        kernel[1] if kernel else function, policy, element, loop[0].address, len(loop), counts, len({i.destination for i in products})
    )


def table(loops: list[Loop]) -> list[list[str]]:
    """Header and rows, as text."""
    kinds = ("multiply_add", "load", "broadcast", "shuffle", "spill", "reload", "other")
    header = ["policy", "operands", "kernel", "loop at", *(kind.replace("_", "-") for kind in kinds), "all", "floor", "all / floor"]
    rows = [
        [
            *(loop.policy, loop.element, loop.kernel, f"{loop.start:x}"),
            *(str(loop.counts[kind]) for kind in kinds),
            *(str(loop.instructions), str(loop.floor), f"{loop.instructions / loop.floor:.2f}"),
        ]
        for loop in loops
    ]
    return [header, *rows]


def counted(library: Path = LIBRARY) -> list[list[str]]:
    """`table` of a library's hot loops; empty where there is no objdump."""
    return table(hot_loops(disassemble(library))) if shutil.which(objdump_for(library)) else []


if __name__ == "__main__":
    print(aligned(table(hot_loops(disassemble(Path(sys.argv[1]) if sys.argv[1:] else LIBRARY))), left=(0, 1, 2)))
