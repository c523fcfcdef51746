"""cp.async. Copies arrive as late as possible: when the thread that issued them waits for their group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .memory import FaultError, Memory, check_alignment
from .operands import Execute, Mask, Operands, instruction
from .shared import Shared

if TYPE_CHECKING:
    from .machine import Machine


@dataclass
class Copy:
    """Of one instruction, by several threads. Arrays of one entry a thread."""

    threads: np.ndarray
    to: np.ndarray
    sources: np.ndarray
    filled: np.ndarray
    """Bytes that are copied; the rest is filled with zeros."""
    groups: np.ndarray

    def where(self, chosen: np.ndarray) -> Copy:
        return Copy(self.threads[chosen], self.to[chosen], self.sources[chosen], self.filled[chosen], self.groups[chosen])


class Copies:
    """The copies in flight."""

    def __init__(self, threads: int) -> None:
        self._copies: list[tuple[int, Copy]] = []
        self._closed = np.zeros(threads, np.int64)

    def begin(self, memory: Memory, shared: Shared, threads: np.ndarray, to: np.ndarray, sources: np.ndarray, filled: np.ndarray,
              size: int) -> None:  # fmt: skip
        if not np.isin(filled, (0, size)).all():
            raise FaultError(threads[0], f"a copy of {filled.min()} to {filled.max()} of {size} bytes is not known")
        # The source of zeros is not read, but is an address inside some buffer all the same.
        memory.check(threads, sources, size)
        check_alignment(threads, sources, size)
        places = shared.places(threads, to, size)
        shared.begin_copy(threads, places, size)
        self._copies.append((size, Copy(threads, places, sources, filled, self._closed[threads])))

    def close_group(self, threads: np.ndarray) -> None:
        self._closed[threads] += 1

    def wait(self, memory: Memory, shared: Shared, threads: np.ndarray, pending: int) -> None:
        """Completes copies until no more than the `pending` youngest groups of each thread are in flight."""
        last = np.full(len(self._closed), -1)
        last[threads] = self._closed[threads] - pending - 1
        remaining = []
        for size, copy in self._copies:
            due = copy.groups <= last[copy.threads]
            arriving, later = copy.where(due), copy.where(~due)
            data = np.zeros((len(arriving.threads), size // 4), np.uint32)
            read = arriving.filled > 0
            data[read] = memory.load(arriving.threads[read], arriving.sources[read], np.dtype(np.uint32), size // 4)
            shared.end_copy(arriving.threads, arriving.to, data.view(np.uint8))
            if len(later.threads):
                remaining.append((size, later))
        self._copies = remaining

    def check_none(self, threads: np.ndarray) -> None:
        """Checks that these threads, which end, have waited for their copies."""
        for _, copy in self._copies:
            left = np.isin(copy.threads, threads)
            if left.any():
                raise FaultError(copy.threads[left][0], "copies that nobody waits for: the thread ends")


@instruction(r"cp\.async\.(ca|cg)\.shared\.global")
def copy(x: Operands, cache: str) -> Execute:
    size = int(x[2])
    if size not in ((16,) if cache == "cg" else (4, 8, 16)):
        raise x.error("not a size of cp.async")
    to, source = x.address(x[0]), x.address(x[1])
    filled = x.read(x[3] if len(x) == 4 else x[2], "u32")

    def execute(m: Machine, mask: Mask) -> None:
        active = m.active(mask)
        count = m.spread(filled(m))[active]
        m.copies.begin(m.memory, m.shared, active, to(m)[active], source(m)[active], count, size)
        m.counts["copies"] += len(active)

    return execute


@instruction(r"cp\.async\.commit_group")
def close_group(x: Operands) -> Execute:
    return lambda m, mask: m.copies.close_group(m.active(mask))


@instruction(r"cp\.async\.wait_group")
def wait_group(x: Operands) -> Execute:
    pending = int(x[0])
    return lambda m, mask: m.copies.wait(m.memory, m.shared, m.active(mask), pending)
