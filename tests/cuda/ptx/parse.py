"""PTX text to kernels: lists of instructions whose names are resolved, and nothing executed yet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field


class PtxError(Exception):
    """An error in a kernel, or in its execution."""


@dataclass(frozen=True)
class Instruction:
    opcode: str
    """With its modifiers: "add.s32"."""
    operands: tuple[str, ...]
    guard: str
    """The predicate's register, with "!" before it if it is negated; "" without one."""
    text: str


@dataclass
class Kernel:
    name: str
    parameters: dict[str, int] = field(default_factory=dict)
    """Offset of each in the bytes that a launch gives."""
    parameter_bytes: int = 0
    shared_arrays: tuple[str, ...] = ()
    """Names of the dynamic shared memory."""
    registers: dict[str, str] = field(default_factory=dict)
    """Type of each: "b32"."""
    labels: dict[str, int] = field(default_factory=dict)
    """Number of the instruction after each."""
    code: list[Instruction] = field(default_factory=list)


_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)[^{]*\{")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.[a-z](\d+)\s+([\w$]+)(?:\[(\d+)\])?")
_TOKEN = re.compile(r"\s*(?:(?P<open>\{)|(?P<close>\})|(?P<label>[\w$]+):|(?P<statement>[^;{}][^;]*);)")
_STATEMENT = re.compile(r"(?:@(!?[%\w$]+)\s+)?(\S+)\s*(.*)", re.DOTALL)
_REGISTERS = re.compile(r"(%?[\w$]+)(?:<(\d+)>)?")
_NAME = re.compile(r"(?<![\w.$%])%?[A-Za-z_$][\w$]*")


def kernels(text: str) -> dict[str, Kernel]:
    """Those of a module, by their mangled names."""
    text = re.sub(r"//[^\n]*", "", text)
    shared_arrays = tuple(re.findall(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[\]", text))
    found = {}
    for entry in _ENTRY.finditer(text):
        kernel = Kernel(entry[1], shared_arrays=shared_arrays)
        for alignment, bits, name, count in _PARAMETER.findall(entry[2]):
            size = int(bits) // 8
            align = int(alignment or size)
            kernel.parameters[name] = -(-kernel.parameter_bytes // align) * align
            kernel.parameter_bytes = kernel.parameters[name] + size * int(count or 1)
        _read_scope(kernel, _tokens(text, entry.end()), None)
        found[kernel.name] = kernel
    return found


def _tokens(text: str, position: int) -> Iterator[tuple[str, str]]:
    while True:
        token = _TOKEN.match(text, position)
        if token is None:
            raise PtxError(f"this is no statement: {text[position : position + 80]!r}")
        position = token.end()
        yield token.lastgroup or "", token[token.lastgroup or 0]


def _read_scope(kernel: Kernel, tokens: Iterator[tuple[str, str]], outer: dict[str, str] | None) -> None:
    """Parses up to the brace that closes the scope. Declarations in an inner scope get unique names; `outer` maps names to these, and is
    None for the kernel's body."""
    suffix = "" if outer is None else f"@{len(kernel.registers)}.{len(kernel.code)}"
    names, content = dict(outer or {}), list(_of_one_scope(tokens))
    depth = 0
    for kind, token in content:
        depth += {"open": 1, "close": -1}.get(kind, 0)
        if depth == 0 and kind == "label":
            names[token] = token + suffix
        elif depth == 0 and token.startswith(".reg"):
            _, width, declared = token.split(None, 2)
            for name, count in _REGISTERS.findall(declared):
                for register in [f"{name}{i}" for i in range(int(count))] if count else [name]:
                    names[register] = register + suffix
                    kernel.registers[register + suffix] = width.removeprefix(".")
    rest = iter(content)
    for kind, token in rest:
        if kind == "open":
            _read_scope(kernel, rest, names)
        elif kind == "label":
            kernel.labels[names[token]] = len(kernel.code)
        elif not token.startswith((".reg", ".pragma")):
            kernel.code.append(_instruction(token, names if suffix else {}))


def _of_one_scope(tokens: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    depth = 1
    for kind, token in tokens:
        depth += {"open": 1, "close": -1}.get(kind, 0)
        if depth == 0:
            return
        yield kind, token


def _instruction(text: str, names: dict[str, str]) -> Instruction:
    """`names` are those that stand for others."""
    match = _STATEMENT.fullmatch(text.strip())
    if match is None or match[2].startswith("."):
        raise PtxError(f"unknown statement: {text.strip()}")
    guard, opcode, operands = match.groups(default="")
    if names:
        guard, operands = (_NAME.sub(lambda name: names.get(name[0], name[0]), part) for part in (guard, operands))
    return Instruction(opcode, tuple(split(operands)), guard, " ".join(text.split()))


def split(operands: str) -> list[str]:
    """Splits at the commas outside braces and brackets."""
    depth, found = 0, [""]
    for character in operands:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [part.strip() for part in found if part.strip()]


def parts(vector: str) -> list[str]:
    """Of "{%r1, %r2}"; of "%r1" that alone."""
    return split(vector.strip("{}"))
