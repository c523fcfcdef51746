"""Instructions that move values: between registers, and between them and memory; and the one that does nothing but fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .memory import FaultError
from .operands import TYPES, Execute, Mask, Operands, elementwise, instruction
from .parse import parts

if TYPE_CHECKING:
    from .machine import Machine


@instruction(r"mov\.([usb](?:16|32|64)|f32|f64|pred)")
def move(x: Operands, kind: str) -> Execute:
    if x[0].startswith("{"):
        return _unpack(x, kind)
    if x[1].startswith("{"):
        return _pack(x, kind)
    return elementwise(x, lambda a: a, kind, kind)


def _unpack(x: Operands, kind: str) -> Execute:
    """The first register takes the lowest bits."""
    targets = parts(x[0])
    part = f"b{int(kind[1:]) // len(targets)}"
    read, stores = x.read(x[1], kind), [x.write(target, part) for target in targets]

    def execute(m: Machine, mask: Mask) -> None:
        values = m.spread(read(m))
        split = np.ascontiguousarray(values).view(TYPES[part]).reshape(m.threads, len(stores))
        for store, value in zip(stores, split.T, strict=True):
            store(m, np.ascontiguousarray(value), mask)

    return execute


def _pack(x: Operands, kind: str) -> Execute:
    sources = parts(x[1])
    part = f"b{int(kind[1:]) // len(sources)}"
    store, reads = x.write(x[0], kind), [x.read(source, part) for source in sources]

    def execute(m: Machine, mask: Mask) -> None:
        joined = np.stack([m.spread(read(m)) for read in reads], -1)
        store(m, np.ascontiguousarray(joined).view(TYPES[kind]).ravel(), mask)

    return execute


# Addresses of global memory and of parameters are generic ones.
@instruction(r"cvta\.(?:to\.global|param)\.u64")
def convert_address(x: Operands) -> Execute:
    return elementwise(x, lambda a: a, "u64", "u64")


@instruction(r"ld\.(global|shared|param)(?:\.v([24]))?\.([usb](?:8|16|32|64)|f32|f64)")
def load(x: Operands, space: str, count: str | None, kind: str) -> Execute:
    stores, address = [x.write(target, kind) for target in parts(x[0])], x.address(x[1])
    if len(stores) != int(count or 1):
        raise x.error("another number of registers")

    def execute(m: Machine, mask: Mask) -> None:
        active = m.active(mask)
        values = m.spaces[space].load(active, address(m)[active], TYPES[kind], len(stores))
        if mask is not None:
            everywhere = np.zeros((m.threads, len(stores)), values.dtype)
            everywhere[active] = values
            values = everywhere
        for store, value in zip(stores, np.ascontiguousarray(values.T), strict=True):
            store(m, value, mask)

    return execute


@instruction(r"st\.(global|shared)(?:\.v([24]))?\.([usb](?:8|16|32|64)|f32|f64)")
def store(x: Operands, space: str, count: str | None, kind: str) -> Execute:
    reads, address = [x.read(source, kind) for source in parts(x[1])], x.address(x[0])
    if len(reads) != int(count or 1):
        raise x.error("another number of registers")

    def execute(m: Machine, mask: Mask) -> None:
        active = m.active(mask)
        values = np.stack([m.spread(read(m))[active] for read in reads], -1)
        m.spaces[space].store(active, address(m)[active], values)

    return execute


@instruction(r"trap")
def trap(x: Operands) -> Execute:
    def execute(m: Machine, mask: Mask) -> None:
        raise FaultError(int(m.active(mask)[0]), "the kernel has no code for this architecture")

    return execute
