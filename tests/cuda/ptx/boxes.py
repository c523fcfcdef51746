"""cp.async.bulk.tensor (TMA): copies of boxes of a tensor, which arrive as late as possible: when no thread can continue without one.

The tensor map is what the launcher of the emulated build writes (csrc/cuda/tensor_box.h), not the driver's, whose bits are secret. A box is
rows of 128 bytes; their chunks of 16 are permuted within 1024, bits 4 to 6 of an address by bits 7 to 9 (ISA, "Swizzling modes"). What lies
beyond the tensor is zero, and is counted.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .memory import FaultError, Memory
from .operands import Array, Execute, Mask, Operands, Read, instruction
from .parse import parts, split

if TYPE_CHECKING:
    from .machine import Machine

DIMENSIONS, ELEMENT_BYTES, ROW_BYTES = 4, 2, 128
MAP_BYTES, MAP_ALIGNMENT = 128, 64


class _Map(ctypes.Structure):
    """csrc/cuda/tensor_box.h."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("sizes", ctypes.c_uint64 * DIMENSIONS),
        ("strides", ctypes.c_uint64 * (DIMENSIONS - 1)),
        ("box", ctypes.c_uint32 * DIMENSIONS),
    )


@dataclass
class Box:
    """On its way."""

    thread: int
    target: int
    barrier: int
    """Places in shared memory."""
    rows: Array
    """Address of each row's first byte in global memory, [rows]; 0 where it lies beyond the tensor."""
    first: int
    count: int
    """Which bytes of a row there are."""


class Boxes:
    """The copies in flight."""

    def __init__(self) -> None:
        self._boxes: list[Box] = []

    def begin(self, m: Machine, thread: int, target: int, barrier: int, tensor: _Map, at: list[int]) -> None:
        if tensor.box[0] * ELEMENT_BYTES != ROW_BYTES:
            raise FaultError(thread, f"a box whose rows are {tensor.box[0] * ELEMENT_BYTES} bytes, not {ROW_BYTES}, is not known")
        if not m.barriers.used(thread, barrier).published:
            raise FaultError(thread, "a bulk copy counts for a barrier that no fence has published to it")
        box = _box(thread, target, barrier, tensor, at)
        inside = box.rows[box.rows != 0]
        if box.count > 0 and len(inside):
            m.memory.check(np.full(len(inside), thread), inside + box.first, box.count)
        m.shared.begin_box(thread, target, len(box.rows) * ROW_BYTES)
        self._boxes.append(box)

    def deliver(self, m: Machine) -> bool:
        """Completes the youngest copy, because they may arrive in any order; returns whether there was one."""
        if not self._boxes:
            return False
        box = self._boxes.pop()
        m.barriers.count(box.barrier, _contents(box, m.memory), box.target)
        return True

    def check_none(self) -> None:
        """Called when all threads have ended."""
        if self._boxes:
            raise FaultError(self._boxes[0].thread, "bulk copies that nobody waits for: all threads end")


def _box(thread: int, target: int, barrier: int, tensor: _Map, at: list[int]) -> Box:
    # Of each row, the second dimension's coordinate the fastest.
    ranges = [np.arange(first, first + size) for first, size in zip(at, tensor.box, strict=True)]
    coordinates = [grid.ravel() for grid in np.meshgrid(*ranges[:0:-1], indexing="ij")][::-1]
    inside = np.logical_and.reduce([(c >= 0) & (c < size) for c, size in zip(coordinates, tensor.sizes[1:], strict=True)])
    rows = tensor.data + sum(c * stride for c, stride in zip(coordinates, tensor.strides, strict=True))
    first, end = max(at[0], 0), min(at[0] + tensor.box[0], tensor.sizes[0])
    count = max(end - first, 0) * ELEMENT_BYTES
    return Box(thread, target, barrier, np.where(inside, rows + at[0] * ELEMENT_BYTES, 0), (first - at[0]) * ELEMENT_BYTES, count)


def _contents(box: Box, memory: Memory) -> Array:
    """The box's bytes as they lie in shared memory."""
    rows = np.zeros((len(box.rows), ROW_BYTES), np.uint8)
    there = np.flatnonzero(box.rows)
    if box.count > 0 and len(there):
        threads = np.full(len(there) * box.count, box.thread)
        addresses = (box.rows[there, None] + box.first + np.arange(box.count)).ravel()
        rows[there, box.first : box.first + box.count] = memory.load(threads, addresses, np.dtype(np.uint8), 1).reshape(-1, box.count)
    places = box.target + np.arange(rows.size // 16) * 16
    contents = np.empty((len(places), 16), np.uint8)
    contents[((places ^ (places >> 7 & 7) << 4) - box.target) // 16] = rows.reshape(-1, 16)
    return contents.ravel()


@instruction(r"cp\.async\.bulk\.tensor\.4d\.shared::(?:cluster|cta)\.global(?:\.tile)?\.mbarrier::complete_tx::bytes")
def copy_box(x: Operands) -> Execute:
    tensor, at = split(x[1].strip("[]"))
    target, barrier, map_at = x.address(x[0]), x.address(x[2]), x.address(f"[{tensor}]")
    reads: list[Read] = [x.read(each, "s32") for each in parts(at)]
    if len(reads) != DIMENSIONS:
        raise x.error("another number of coordinates")

    def execute(m: Machine, mask: Mask) -> None:
        active = m.active(mask)
        targets = m.shared.places(active, target(m)[active], ROW_BYTES)
        barriers = m.shared.places(active, barrier(m)[active], 8)
        maps = m.parameters.bytes(active, map_at(m)[active], MAP_BYTES, MAP_ALIGNMENT)
        where = np.stack([m.spread(read(m))[active] for read in reads], 1)
        for i, thread in enumerate(active.tolist()):
            m.boxes.begin(m, thread, int(targets[i]), int(barriers[i]), _Map.from_buffer_copy(maps[i].tobytes()), where[i].tolist())
        m.counts["boxes"] += len(active)

    return execute
