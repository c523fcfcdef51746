"""Kernels as basic blocks of functions."""

from __future__ import annotations

from dataclasses import dataclass, field

# Importing the families enters their instructions into the table.
from . import arithmetic, barriers, boxes, copies, matrices, moves, named, warpgroups, warps  # noqa: F401
from .operands import Execute, Operands, Read, Ready, build, build_condition, waits
from .parse import Instruction, Kernel, parts


@dataclass
class Step:
    execute: Execute
    guard: Read | None
    text: str
    reads: frozenset[int]
    writes: frozenset[int]
    """Of the registers that products of warpgroups use, those that another instruction does."""


@dataclass
class BasicBlock:
    """Threads that begin it do all its steps. Those that meet others do so in its first step."""

    steps: list[Step] = field(default_factory=list)
    meets: str | None = None
    """warps.WARP, WARPGROUP or BLOCK: the block begins when all of these are there."""
    ready: Ready | None = None
    """And when they need wait no longer for what its first step asks for."""
    target: int | None = None
    """Where a branch at its end goes, for those for whom `guard` holds; the others go to the next block."""
    guard: Read | None = None
    text: str = ""
    """Of the branch."""


class Program:
    """A kernel that can be run; `blocks` ends with the one after the last, where threads have ended."""

    def __init__(self, kernel: Kernel) -> None:
        self.name = kernel.name
        self.parameter_bytes = kernel.parameter_bytes
        self.registers = [kernel.registers[name] for name in kernel.registers]
        self._kernel = kernel
        self._numbers = {name: number for number, name in enumerate(kernel.registers)}
        self.of_products = self._of_products()
        self.blocks = self._split()

    def _of_products(self) -> frozenset[int]:
        """Registers of results and of a of products of warpgroups."""
        products = [instruction for instruction in self._kernel.code if instruction.opcode.startswith("wgmma.mma_async")]
        return frozenset(self._numbers[name] for each in products for vector in each.operands[:2] for name in parts(vector))

    def _split(self) -> list[BasicBlock]:
        code = self._kernel.code
        starts = {0, *self._kernel.labels.values()}
        for number, instruction in enumerate(code):
            if _ends(instruction):
                starts.add(number + 1)
            if warps.meeting(instruction.opcode) or waits(instruction.opcode):
                starts.add(number)
        ordered = sorted(start for start in starts if start < len(code))
        block_at = {start: number for number, start in enumerate(ordered)} | {len(code): len(ordered)}
        blocks = []
        for start, end in zip(ordered, [*ordered[1:], len(code)], strict=True):
            block = BasicBlock(meets=warps.meeting(code[start].opcode))
            for instruction in code[start:end]:
                operands = Operands(self._kernel, self._numbers, instruction)
                guard = self._guard(operands, instruction.guard)
                if not block.steps:
                    block.ready = build_condition(operands, instruction.opcode)
                if _ends(instruction):
                    block.text, block.guard = instruction.text, guard
                    branches = instruction.opcode.startswith("bra")
                    block.target = block_at[self._kernel.labels[operands[0]]] if branches else len(ordered)
                elif guard and warps.meeting(instruction.opcode):
                    raise operands.error("a condition on an instruction where threads meet is not known")
                else:
                    block.steps.append(self._step(operands, instruction, guard))
            blocks.append(block)
        return blocks

    def _step(self, operands: Operands, instruction: Instruction, guard: Read | None) -> Step:
        execute = build(operands, instruction.opcode)
        others = frozenset() if instruction.opcode.startswith("wgmma.mma_async") else self.of_products
        return Step(execute, guard, instruction.text, others & operands.reads, others & operands.writes)

    @staticmethod
    def _guard(operands: Operands, guard: str) -> Read | None:
        if not guard:
            return None
        read = operands.read(guard.removeprefix("!"), "pred")
        return (lambda m: ~read(m)) if guard.startswith("!") else read


def _ends(instruction: Instruction) -> bool:
    return instruction.opcode in ("bra", "bra.uni", "ret", "exit")
