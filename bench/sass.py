"""The machine code (SASS) of the CUDA kernels, as nvcc left it in the built library: instructions, loops, and the way through a loop.

cuobjdump and nvdisasm read it; NVIDIA publishes both on PyPI (nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm), and no GPU is needed.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lolrt

LIBRARY = Path(lolrt.__file__).parent / "lib" / "liblolrt_cuda.so"

_ARCHITECTURE = re.compile(r"^arch = (\w+)")
_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_TARGET = re.compile(r"\b0x([0-9a-f]+)\s*$")


@dataclass(frozen=True)
class Instruction:
    address: int
    guard: str
    """The predicate of the instruction, "" if it always executes; it takes an issue slot either way."""
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers: HMMA for HMMA.16816.F32.BF16."""
        return self.opcode.split(".")[0]

    @cached_property
    def target(self) -> int | None:
        """The target address of a branch."""
        match = _TARGET.search(self.operands) if self.name == "BRA" else None
        return int(match[1], 16) if match else None

    @property
    def ends_path(self) -> bool:
        """Whether the next instruction is never reached from this one; BRA.U and `UP0, 0x..` also branch on what their operands say."""
        if self.guard or self.name not in ("BRA", "EXIT", "RET"):
            return False
        return self.name != "BRA" or re.fullmatch(r"`?\(?[\w.]*\)?", self.operands.strip()) is not None


@dataclass(frozen=True)
class Function:
    architecture: str
    name: str
    """The mangled name."""
    body: tuple[Instruction, ...]


@dataclass(frozen=True)
class Loop:
    """The instructions that the backward branches to one instruction span."""

    function: Function
    start: int
    ends: tuple[int, ...]
    """Addresses of these branches."""

    @cached_property
    def body(self) -> tuple[Instruction, ...]:
        return tuple(i for i in self.function.body if self.start <= i.address <= self.ends[-1])

    def contains(self, other: Loop) -> bool:
        return self.start <= other.start and other.ends[-1] <= self.ends[-1] and self != other


def tool(name: str) -> Path | None:
    """The path of cuobjdump or nvdisasm: from PATH, or from its package, which installs it among its own files."""
    if found := shutil.which(name):
        return Path(found)
    try:
        distribution = importlib.metadata.distribution(f"nvidia-cuda-{name}")
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in distribution.files or () if file.name == name), None)


def disassemble(library: Path = LIBRARY, architecture: str | None = None) -> str:
    """What cuobjdump prints about the library, for one architecture if it is given. Raises RuntimeError if there is no tool."""
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    if cuobjdump is None or nvdisasm is None:
        raise RuntimeError("cuobjdump and nvdisasm are needed: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    chosen = ["--gpu-architecture", architecture] if architecture else []
    command = [str(cuobjdump), *chosen, "--dump-sass", str(library)]
    environment = os.environ | {"NVDISASM_PATH": str(nvdisasm.parent)}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def functions(disassembly: str) -> Iterator[Function]:
    architecture = name = ""
    body: list[Instruction] = []
    for line in disassembly.splitlines():
        if match := _INSTRUCTION.match(line):
            body.append(Instruction(int(match[1], 16), match[2] or "", match[3], match[4].strip()))
        elif (found := _ARCHITECTURE.match(line)) or (found := _FUNCTION.match(line)):
            if body:
                yield Function(architecture, name, tuple(body))
            body = []
            if found.re is _ARCHITECTURE:
                architecture = found[1]
            else:
                name = found[1]
    if body:
        yield Function(architecture, name, tuple(body))


def loops(function: Function) -> list[Loop]:
    """In the order of their first instructions. A loop is entered only at its first instruction. So a branch back into the middle of
    other code, where a thread continues that has waited at the function's end, makes no loop."""
    after = successors(function)
    ends: dict[int, list[int]] = {}
    for i in function.body:
        # A branch to itself only fills the end of a function.
        if i.target is not None and i.target < i.address and not _reaches(after, i.address, without=i.target):
            ends.setdefault(i.target, []).append(i.address)
    return [Loop(function, start, tuple(sorted(addresses))) for start, addresses in sorted(ends.items())]


def successors(function: Function) -> dict[int, list[int]]:
    """Addresses of the possible successors of each instruction; those of the first instruction come first."""
    following = [i.address for i in function.body[1:]]
    return {
        i.address: ([] if i.ends_path else [after]) + ([] if i.target is None else [i.target])
        for i, after in zip(function.body, [*following, -1], strict=True)
    }


def _reaches(after: Mapping[int, list[int]], goal: int, without: int) -> bool:
    """Whether there is a path from the first instruction to another that avoids a third."""
    ways, seen = [next(iter(after))], {without}
    while ways:
        address = ways.pop()
        if address == goal:
            return True
        if address in seen or address not in after:
            continue
        seen.add(address)
        ways += after[address]
    return False


def innermost_loop(function: Function, name: str) -> Loop:
    """The loop with the most instructions of that name and no inner loop with any; ValueError if there is none."""
    having = {loop: sum(i.name == name for i in loop.body) for loop in loops(function)}
    having = {loop: count for loop, count in having.items() if count}
    innermost = [loop for loop in having if not any(loop.contains(other) for other in having)]
    if not innermost:
        raise ValueError(f"{function.name} for {function.architecture}: no loop has {name}")
    return max(innermost, key=lambda loop: having[loop])


def shortest_way(loop: Loop, at_least: Mapping[str, int]) -> list[Instruction]:
    """The shortest path once round the loop with at least these numbers of instructions of each name: the cost of a turn that does that
    work.

    Inner loops are passed through once or not at all. Raises ValueError if there is no such path.
    """
    names = tuple(at_least)
    goal = tuple(at_least.values())
    by_address = {i.address: i for i in loop.body}
    following = {a.address: b.address for a, b in zip(loop.body, loop.body[1:], strict=False)}
    # For each instruction and each amount of work done before it: the least number of instructions, and the predecessor on that path.
    reached: dict[int, dict[tuple[int, ...], tuple[int, int, tuple[int, ...]]]] = {loop.start: {(0,) * len(goal): (0, -1, ())}}
    finished: list[tuple[int, int, tuple[int, ...]]] = []
    for address in sorted(by_address):
        i = by_address[address]
        after = [] if i.ends_path else [following.get(address, -1)]
        if i.target is not None and i.target > address:
            after.append(i.target)
        for done, (length, _, _) in reached.get(address, {}).items():
            now = tuple(min(count + (i.name == name), most) for count, name, most in zip(done, names, goal, strict=True))
            if address in loop.ends and now == goal:
                finished.append((length + 1, address, done))
            for other in after:
                ways = reached.setdefault(other, {})
                if other in by_address and (now not in ways or ways[now][0] > length + 1):
                    ways[now] = (length + 1, address, done)
    if not finished:
        raise ValueError(f"{loop.function.name} for {loop.function.architecture}: no way round the loop at {loop.start:#x} does {at_least}")
    _, address, done = min(finished)
    way = []
    while address >= 0:
        way.append(by_address[address])
        _, address, done = reached[address][done]
    return way[::-1]


def counts(instructions: Iterable[Instruction]) -> Counter[str]:
    """The number of instructions of each name. Instructions that never execute (@!PT) only fill time, and count as NOP."""
    return Counter("NOP" if i.guard == "!PT" else i.name for i in instructions)
