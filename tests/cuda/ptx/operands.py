"""What the operands of an instruction stand for, and the table of instructions.

A register is an array of one value a thread, bits without a type; nobody changes such an array, a new value is a new array.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .memory import PARAMETERS_AT
from .parse import Instruction, Kernel, PtxError
from .shared import SHARED_AT

if TYPE_CHECKING:
    from .machine import Machine

Array = np.ndarray
Mask = np.ndarray | None
"""Of the threads that execute an instruction; None: all."""
Execute = Callable[["Machine", Mask], None]
Read = Callable[["Machine"], Array]
Write = Callable[["Machine", Array, Mask], None]
Ready = Callable[["Machine", Array], Array]
"""Which of some threads need wait no longer."""

_LETTERS = {"u": "u", "b": "u", "s": "i"}
TYPES: dict[str, np.dtype] = {
    **{f"{letter}{bits}": np.dtype(f"{_LETTERS[letter]}{bits // 8}") for letter in _LETTERS for bits in (8, 16, 32, 64)},
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "pred": np.dtype(np.bool_),
}

SPECIAL = ("%tid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z")


def bits_type(kind: np.dtype) -> np.dtype:
    """The type of a register that holds such values."""
    return kind if kind.kind == "b" else np.dtype(f"u{kind.itemsize}")


class Operands:
    """Of one instruction of one kernel."""

    def __init__(self, kernel: Kernel, numbers: dict[str, int], instruction: Instruction) -> None:
        self._kernel = kernel
        self._numbers = numbers
        self._instruction = instruction
        self.reads: set[int] = set()
        self.writes: set[int] = set()
        """Numbers of the registers that have been asked for."""

    def __getitem__(self, index: int) -> str:
        return self._instruction.operands[index]

    def __len__(self) -> int:
        return len(self._instruction.operands)

    def read(self, text: str, kind: str) -> Read:
        """The values of a register or a constant as that type; of a wider register its low bits."""
        dtype = TYPES[kind]
        if text in self._numbers:
            number = self._numbers[text]
            self.reads.add(number)
            width = TYPES[self._kernel.registers[text]].itemsize
            if width < dtype.itemsize:
                raise self.error(f"{text} is narrower than .{kind}")
            if width > dtype.itemsize:
                return lambda m: m.registers[number].astype(bits_type(dtype)).view(dtype)
            return lambda m: m.registers[number].view(dtype)
        if text in SPECIAL:
            if dtype.itemsize != 4:
                raise self.error(f"{text} is not of .{kind}")
            return lambda m: m.special[text].view(dtype)
        constant = self._constant(text, dtype)
        return lambda m: constant

    def write(self, text: str, kind: str) -> Write:
        """Gives a register values of that type; a wider register extends them."""
        if text == "_":
            return lambda m, value, mask: None
        number, dtype, register = self.number(text), TYPES[kind], TYPES[self._kernel.registers[text]]
        self.writes.add(number)
        register = bits_type(register)
        extended = np.dtype(f"{dtype.kind}{register.itemsize}") if dtype.kind in "iu" else dtype
        if extended.itemsize != register.itemsize:
            raise self.error(f"{text} does not hold .{kind}")

        def store(m: Machine, value: Array, mask: Mask) -> None:
            bits = value.astype(extended, copy=False).view(register)
            m.registers[number] = m.spread(bits) if mask is None else np.where(mask, bits, m.registers[number])

        return store

    def number(self, text: str) -> int:
        """Of a register."""
        if text not in self._numbers:
            raise self.error(f"{text} is not a register")
        return self._numbers[text]

    def address(self, text: str) -> Read:
        """Of "[%rd1+16]" or "[name+16]"; int64, or shared memory's own addresses where the register has 32 bits."""
        match = re.fullmatch(r"\[([%\w$@.]+)(?:\+(-?\d+))?\]", text)
        if match is None:
            raise self.error(f"{text} is not an address")
        base, offset = match[1], int(match[2] or 0)
        wide = TYPES[self._kernel.registers.get(base, "b64")].itemsize == 8
        read = self.read(base, "s64" if wide else "u32")
        return lambda m: m.spread(read(m).astype(np.int64) + offset)

    def error(self, text: str) -> PtxError:
        return PtxError(f"{text}: {self._instruction.text}")

    def _constant(self, text: str, dtype: np.dtype) -> Array:
        if text in self._kernel.parameters:
            value = PARAMETERS_AT + self._kernel.parameters[text]
        elif text in self._kernel.shared_arrays:
            value = SHARED_AT
        elif match := re.fullmatch(r"0[fFdD]([0-9a-fA-F]+)", text):
            value = int(match[1], 16)
        elif re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            value = int(text.rstrip("U"), 0)
        else:
            raise self.error(f"unknown operand {text}")
        if dtype.kind == "b":
            return np.array(value != 0)
        return np.array(value & ((1 << 8 * dtype.itemsize) - 1), bits_type(dtype)).view(dtype)


Build = Callable[..., Execute]
_TABLE: list[tuple[re.Pattern[str], Build]] = []
_CONDITIONS: list[tuple[re.Pattern[str], Callable[..., Ready]]] = []


def instruction(pattern: str) -> Callable[[Build], Build]:
    """Makes `build(operands, *groups)` that of the opcodes that the pattern matches as a whole, modifiers included."""

    def register(build: Build) -> Build:
        _TABLE.append((re.compile(pattern), build))
        return build

    return register


def condition(pattern: str) -> Callable[[Callable[..., Ready]], Callable[..., Ready]]:
    """The same for what threads wait for before such an instruction."""

    def register(build: Callable[..., Ready]) -> Callable[..., Ready]:
        _CONDITIONS.append((re.compile(pattern), build))
        return build

    return register


def waits(opcode: str) -> bool:
    return any(pattern.fullmatch(opcode) for pattern, _ in _CONDITIONS)


def build_condition(operands: Operands, opcode: str) -> Ready | None:
    return next((builder(operands, *match.groups()) for pattern, builder in _CONDITIONS if (match := pattern.fullmatch(opcode))), None)


def build(operands: Operands, opcode: str) -> Execute:
    for pattern, builder in _TABLE:
        if match := pattern.fullmatch(opcode):
            return builder(operands, *match.groups())
    raise operands.error(f"unknown instruction {opcode}")


def elementwise(operands: Operands, function: Callable[..., Array], kind: str, *kinds: str) -> Execute:
    """operands[0] of type kind = function of the others, of those types."""
    if len(operands) != 1 + len(kinds):
        raise operands.error(f"expected {1 + len(kinds)} operands")
    store = operands.write(operands[0], kind)
    reads = [operands.read(operands[1 + i], each) for i, each in enumerate(kinds)]

    def execute(m: Machine, mask: Mask) -> None:
        store(m, function(*(read(m) for read in reads)), mask)

    return execute
