"""mbarrier: barriers in shared memory that count arrivals of threads and bytes of bulk copies, in phases.

ISA, "Phase of the mbarrier object" and "Tracking asynchronous operations by the mbarrier object". A phase ends when all arrivals and all
announced bytes have come. `try_wait.parity` asks whether the current phase, or the one before it, is over. The first call of a thread
before that returns false; the next waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .memory import FaultError
from .operands import Array, Execute, Mask, Operands, Read, Ready, condition, instruction
from .shared import MOST_BARRIERS, Shared

if TYPE_CHECKING:
    from .machine import Machine

_SPACE = r"\.shared(?:::cta)?"
_RELEASE = r"(?:\.release)?(?:\.cta)?"
_MOST_BYTES = (1 << 20) - 1


@dataclass
class Barrier:
    number: int
    """In its block."""
    maker: int
    arrivals: int
    """Of a phase."""
    missing: int
    """Of the phase under way."""
    known: Array
    """What those who have come in this phase knew."""
    over: Array
    """What those who wait for the phase before get to know."""
    bytes: int = 0
    """Announced and not yet come; below zero when they came first."""
    phase: int = 0
    published: bool = False
    """To bulk copies."""


class Barriers:
    """Of some blocks, by their places in shared memory."""

    def __init__(self, shared: Shared, threads: int) -> None:
        """threads: of a block."""
        self._shared, self._threads = shared, threads
        self._at: dict[int, Barrier] = {}

    def make(self, thread: int, place: int, arrivals: int) -> None:
        number = sum(barrier.maker // self._threads == thread // self._threads for barrier in self._at.values())
        if number == MOST_BARRIERS:
            raise FaultError(thread, f"more than {MOST_BARRIERS} barriers in a block are not known")
        if not 0 < arrivals < 1 << 20:
            raise FaultError(thread, f"a barrier for {arrivals} arrivals")
        self._shared.make_barrier(thread, place)
        nothing = np.zeros_like(self._shared.knowledge(thread))
        self._at[place] = Barrier(number, thread, arrivals, arrivals, nothing, nothing)

    def publish(self, threads: Array) -> None:
        for barrier in self._at.values():
            barrier.published |= barrier.maker in threads

    def used(self, thread: int, place: int) -> Barrier:
        self._shared.use_barrier(np.array([thread]), np.array([place]))
        return self._existing(thread, place)

    def announce(self, thread: int, place: int, count: int) -> None:
        barrier = self.used(thread, place)
        barrier.bytes += count
        if barrier.bytes > _MOST_BYTES:
            raise FaultError(thread, f"a barrier counts {_MOST_BYTES} bytes at most, not {barrier.bytes}")

    def arrive(self, thread: int, place: int) -> None:
        barrier = self.used(thread, place)
        if barrier.missing == 0:
            raise FaultError(thread, f"more than the {barrier.arrivals} arrivals of a phase")
        barrier.missing -= 1
        barrier.known = np.maximum(barrier.known, self._shared.knowledge(thread))
        self._end_phase_if_over(barrier)

    def count(self, place: int, data: Array, target: int) -> None:
        """The bytes of a bulk copy come to `target` in shared memory."""
        barrier = self._at[place]
        self._shared.end_box(target, barrier.number, data)
        barrier.known = np.maximum(barrier.known, self._shared.meet_copies(target, barrier.number))
        barrier.bytes -= len(data)
        self._end_phase_if_over(barrier)

    def are_over(self, threads: Array, places: Array, parities: Array) -> Array:
        """For each thread whether the phase that it asks for is over."""
        phases = np.empty(len(threads), np.int64)
        for place in np.unique(places).tolist():
            phases[places == place] = self._existing(threads[places == place][0], place).phase
        return phases % 2 != parities

    def learn(self, threads: Array, places: Array) -> None:
        """What was known by the end of the phase."""
        self._shared.use_barrier(threads, places)
        for place in np.unique(places).tolist():
            self._shared.learn(threads[places == place], self._at[place].over)

    def _existing(self, thread: int, place: int) -> Barrier:
        if place not in self._at:
            raise FaultError(thread, "there is no barrier there: nobody has initialised it")
        return self._at[place]

    @staticmethod
    def _end_phase_if_over(barrier: Barrier) -> None:
        if barrier.missing == 0 and barrier.bytes == 0:
            barrier.missing = barrier.arrivals
            barrier.phase += 1
            barrier.over, barrier.known = barrier.known, np.zeros_like(barrier.known)


def _places(m: Machine, address: Read, threads: Array) -> Array:
    return m.shared.places(threads, address(m)[threads], 8)


@instruction(rf"mbarrier\.init{_SPACE}\.b64")
def make(x: Operands) -> Execute:
    address, count = x.address(x[0]), x.read(x[1], "u32")

    def execute(m: Machine, mask: Mask) -> None:
        active = m.active(mask)
        for thread, place, arrivals in zip(active, _places(m, address, active), m.spread(count(m))[active], strict=True):
            m.barriers.make(int(thread), int(place), int(arrivals))

    return execute


@instruction(r"fence\.mbarrier_init\.release\.cluster")
def publish(x: Operands) -> Execute:
    return lambda m, mask: m.barriers.publish(m.active(mask))


@instruction(r"fence\.proxy\.async(?:\.shared::cta)?")
def fence_proxy(x: Operands) -> Execute:
    return lambda m, mask: m.shared.fence_proxy(m.active(mask))


@instruction(rf"mbarrier\.arrive(\.expect_tx)?{_RELEASE}{_SPACE}\.b64")
def arrive(x: Operands, announces: str | None) -> Execute:
    if x[0] != "_" or len(x) != (3 if announces else 2):
        raise x.error("an arrival's state, or a count of arrivals, is not known")
    address, count = x.address(x[1]), x.read(x[2] if announces else "0", "u32")

    def execute(m: Machine, mask: Mask) -> None:
        active = m.active(mask)
        for thread, place, announced in zip(active, _places(m, address, active), m.spread(count(m))[active], strict=True):
            m.barriers.announce(int(thread), int(place), int(announced))
            m.barriers.arrive(int(thread), int(place))

    return execute


_TRY_WAIT = rf"mbarrier\.try_wait\.parity(?:\.acquire)?(?:\.cta)?{_SPACE}\.b64"


def _phases_over(x: Operands) -> Ready:
    address, parity = x.address(x[1]), x.read(x[2], "u32")

    def over(m: Machine, threads: Array) -> Array:
        asked = m.spread(parity(m))[threads]
        if (asked > 1).any():
            raise FaultError(threads[asked > 1][0], f"a parity of {asked.max()}")
        return m.barriers.are_over(threads, _places(m, address, threads), asked)

    return over


@condition(_TRY_WAIT)
def worth_trying(x: Operands) -> Ready:
    over = _phases_over(x)
    return lambda m, threads: ~m.has_tried[threads] | over(m, threads)


@instruction(_TRY_WAIT)
def try_wait(x: Operands) -> Execute:
    if len(x) != 3:
        raise x.error("a limit of time is not known")
    store, address, over = x.write(x[0], "pred"), x.address(x[1]), _phases_over(x)

    def execute(m: Machine, mask: Mask) -> None:
        active = m.active(mask)
        found = over(m, active)
        m.barriers.learn(active[found], _places(m, address, active[found]))
        m.has_tried[active] = ~found
        everywhere = np.zeros(m.threads, bool)
        everywhere[active] = found
        store(m, everywhere, mask)

    return execute
