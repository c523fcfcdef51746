"""The registers of warpgroup products (HGMMA) in machine code: from a product until its group has been waited for, no instruction may
access its result or write its operands."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench import sass

Registers = frozenset[int]

_REGISTER = re.compile(r"\bR(\d+)\b")
_SHAPE = re.compile(r"HGMMA\.64x(\d+)x16")
_WAIT = re.compile(r"gsb0, 0x(\d+)")
_STORES = ("ST", "BRA", "RED", "SYNCS", "UTMA", "EXIT", "WARP", "BAR", "R2UR", "BPT")
"""Prefixes of instructions without a result register, or whose first operand is not one."""


@dataclass(frozen=True)
class Product:
    result: Registers
    factor: Registers


def _span(first: int, count: int) -> Registers:
    return frozenset(range(first, first + count))


def _product(i: sass.Instruction) -> Product:
    shape = _SHAPE.match(i.opcode)
    result, factor = (int(register) for register in _REGISTER.findall(i.operands)[:2])
    assert shape is not None
    return Product(_span(result, int(shape[1]) // 2), _span(factor, 4))


def _touched(i: sass.Instruction) -> tuple[Registers, Registers]:
    """Registers that are read or written, and those that are written. An operand of several registers is named by its first one, and the
    opcode says how many there are."""
    width = 4 if ".128" in i.opcode else 2 if ".64" in i.opcode or "WIDE" in i.opcode else 1
    operands = i.operands.split(",")
    touched: set[int] = set()
    for operand in operands:
        wide = 1 if "[" in operand else width
        for register in _REGISTER.findall(operand):
            touched |= _span(int(register), wide)
    first = _REGISTER.match(operands[0].strip())
    writes = _span(int(first[1]), width) if first and not i.name.startswith(_STORES) else frozenset()
    return frozenset(touched), writes


def violations(function: sass.Function) -> list[str]:
    """On every path through the function. In flight are the committed groups, the oldest first, and the products of the next."""
    successors = sass.successors(function)
    by_address = {i.address: i for i in function.body}
    found: set[str] = set()
    State = tuple[tuple[Product, ...], ...]
    ways: list[tuple[int, State, tuple[Product, ...]]] = [(function.body[0].address, (), ())]
    seen = set(ways)
    while ways:
        address, groups, begun = ways.pop()
        i = by_address[address]
        under_way = [product for group in (*groups, begun) for product in group]
        if i.name == "HGMMA":
            product = _product(i)
            if any(
                (product.result & other.result and product.result != other.result) or product.factor & other.result for other in under_way
            ):
                found.add(f"{address:#x}: another product's registers: {i.opcode} {i.operands}")
            begun += (product,)
            if "gsb0" in i.operands:
                groups, begun = (*groups, begun), ()
        elif i.name == "WARPGROUP" and (wait := _WAIT.search(i.operands)):
            groups = groups[len(groups) - min(int(wait[1]), len(groups)) :]
        else:
            touched, written = _touched(i)
            if any(touched & product.result or written & product.factor for product in under_way):
                found.add(f"{address:#x}: {i.opcode} {i.operands}")
            if i.name == "EXIT" and not i.guard and under_way:
                found.add(f"{address:#x}: products that nobody waits for")
        for after in successors[address]:
            way = (after, groups, begun)
            if after in by_address and way not in seen:
                seen.add(way)
                ways.append(way)
    return sorted(found)
