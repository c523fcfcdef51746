"""Named barriers: of some warps of a block, which wait or only arrive.

ISA, "barrier". A barrier is over when so many threads have come, whoever they are, and begins anew; its number is 0 to 15. Here those who
wait do so at the same instruction, and a warp does not come twice before the barrier is over. Both is stricter than the ISA.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .memory import FaultError
from .operands import Array, Execute, Mask, Operands, Ready, condition, instruction
from .shared import Shared

if TYPE_CHECKING:
    from .machine import Machine


@dataclass
class Arrivals:
    """Of threads that have come and gone on."""

    known: Array
    """What they knew."""
    threads: list[int] = field(default_factory=list)


class NamedBarriers:
    """Of some blocks."""

    def __init__(self, shared: Shared, threads: int) -> None:
        """threads: of a block."""
        self._shared, self._threads = shared, threads
        self._arrivals: dict[tuple[int, int], Arrivals] = {}
        """By block and number; where nobody has come there are none."""

    def arrive(self, threads: Array, numbers: Array, count: int) -> None:
        self._shared.meet_warp(threads)
        for block, number, come in self._each(threads, numbers):
            arrivals = self._add(block, number, come)
            if len(arrivals.threads) >= count:
                raise FaultError(come[0], f"all {count} threads have come to barrier {number} and nobody waits")

    def all_have_come(self, threads: Array, numbers: Array, count: int) -> Array:
        """For each thread that has come to wait."""
        over = np.zeros(len(threads), bool)
        for block, number, come in self._each(threads, numbers):
            there = len(come) + len(self._arrivals[block, number].threads if (block, number) in self._arrivals else ())
            if there > count:
                raise FaultError(come[0], f"{there} threads have come to barrier {number} of {count}")
            over |= np.isin(threads, come) & (there == count)
        return over

    def wait(self, threads: Array, numbers: Array) -> None:
        """Passes a barrier to which all have come."""
        self._shared.meet_warp(threads)
        for block, number, come in self._each(threads, numbers):
            self._shared.learn(come, self._add(block, number, come).known)
            del self._arrivals[block, number]

    def check_none(self) -> None:
        """Called when all threads have ended."""
        for (_, number), arrivals in self._arrivals.items():
            raise FaultError(arrivals.threads[0], f"threads have come to barrier {number} and nobody waits: all threads end")

    def _each(self, threads: Array, numbers: Array) -> list[tuple[int, int, Array]]:
        """Block, number, and the threads that have come to it."""
        if (numbers > 15).any():
            raise FaultError(threads[numbers > 15][0], f"there is no barrier {numbers.max()}")
        places = threads // self._threads * 16 + numbers.astype(np.int64)
        return [(int(place) // 16, int(place) % 16, threads[places == place]) for place in np.unique(places)]

    def _add(self, block: int, number: int, come: Array) -> Arrivals:
        nothing = np.zeros_like(self._shared.knowledge(int(come[0])))
        arrivals = self._arrivals.setdefault((block, number), Arrivals(nothing))
        if not set(come.tolist()).isdisjoint(arrivals.threads):
            raise FaultError(come[0], f"a thread comes to barrier {number} again before all others")
        arrivals.threads += come.tolist()
        for thread in come:
            arrivals.known = np.maximum(arrivals.known, self._shared.knowledge(int(thread)))
        return arrivals


_SYNC, _ARRIVE = (rf"barrier\.cta\.{what}\.aligned" for what in ("sync", "arrive"))


def _count(x: Operands) -> int:
    if len(x) != 2 or not x[1].isdecimal() or int(x[1]) % 32 != 0:
        raise x.error("unknown barrier")
    return int(x[1])


@condition(_SYNC)
def all_come(x: Operands) -> Ready:
    number, count = x.read(x[0], "u32"), _count(x)
    return lambda m, threads: m.named.all_have_come(threads, m.spread(number(m))[threads], count)


@instruction(_SYNC)
def wait(x: Operands) -> Execute:
    number = x.read(x[0], "u32")

    def execute(m: Machine, mask: Mask) -> None:
        m.named.wait(m.active(mask), m.spread(number(m))[m.active(mask)])

    return execute


@instruction(_ARRIVE)
def arrive(x: Operands) -> Execute:
    number, count = x.read(x[0], "u32"), _count(x)

    def execute(m: Machine, mask: Mask) -> None:
        m.named.arrive(m.active(mask), m.spread(number(m))[m.active(mask)], count)

    return execute
