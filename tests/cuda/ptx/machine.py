"""Runs a program: all threads of some blocks side by side.

Each thread is at the start of some basic block. The lowest of these is run by all threads that are there, so that threads that have
gone different ways meet again where their ways do. A block whose first instruction is for a whole warp, or a whole thread block, waits
until they are all there; when nobody can go on they wait for ever, which is an error.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from .barriers import Barriers
from .boxes import Boxes
from .copies import Copies
from .memory import FaultError, Memory, Parameters
from .named import NamedBarriers
from .operands import TYPES, Mask, bits_type
from .parse import PtxError
from .program import Program
from .shared import LANES, Shared
from .warpgroups import WARPGROUP_THREADS, Warpgroups
from .warps import BLOCK, WARP, WARPGROUP

AT_ONCE = 1024
"""Threads that run side by side, of as many blocks as that is."""


@dataclass(frozen=True)
class Launch:
    grid: tuple[int, int, int]
    threads: int
    """Of a block."""
    shared_bytes: int
    parameters: bytes


def run(program: Program, launch: Launch, memory: Memory, last_blocks: int = 0) -> Counter[str]:
    """Runs all blocks of a launch, or only its last ones. Returns counts of what was executed; raises PtxError for an error of a thread."""
    if program.parameter_bytes != len(launch.parameters):
        raise PtxError(f"{program.name} has {program.parameter_bytes} bytes of parameters, not {len(launch.parameters)}")
    if launch.threads % LANES != 0:
        raise PtxError("a block is whole warps")
    if launch.threads % WARPGROUP_THREADS != 0 and any(block.meets == WARPGROUP for block in program.blocks):
        raise PtxError("a block with products of warpgroups is whole warpgroups")
    counts: Counter[str] = Counter()
    blocks = np.arange(np.prod(launch.grid))[-last_blocks:]
    for first in range(0, len(blocks), max(1, AT_ONCE // launch.threads)):
        machine = Machine(program, launch, memory, blocks[first : first + max(1, AT_ONCE // launch.threads)])
        with np.errstate(all="ignore"):
            machine.run()
        counts += machine.counts
    return counts


class Machine:
    def __init__(self, program: Program, launch: Launch, memory: Memory, blocks: np.ndarray) -> None:
        self.threads = len(blocks) * launch.threads
        self.memory = memory
        self.shared = Shared(len(blocks), launch.threads, launch.shared_bytes)
        self.copies = Copies(self.threads)
        self.barriers = Barriers(self.shared, launch.threads)
        self.named = NamedBarriers(self.shared, launch.threads)
        self.boxes = Boxes()
        self.warpgroups = Warpgroups(len(blocks), launch.threads, program.of_products)
        self.has_tried = np.zeros(self.threads, bool)
        """A phase that was not over: the next time the thread waits for it."""
        self.parameters = Parameters(launch.parameters)
        self.spaces = {"global": memory, "shared": self.shared, "param": self.parameters}
        self.counts: Counter[str] = Counter(blocks=len(blocks))
        # Memory that nothing has written is all ones: a NaN, and an invalid address.
        ones = {kind: np.full(self.threads, -1).astype(bits_type(TYPES[kind])) for kind in set(program.registers)}
        self.registers = [ones[kind] for kind in program.registers]
        self._all = np.arange(self.threads)
        self.lane = (self._all % LANES).astype(np.uint32)
        self.first_lane = self._all // LANES * LANES
        x, y, _ = launch.grid
        places = {"x": blocks % x, "y": blocks // x % y, "z": blocks // x // y}
        self.special = {f"%ctaid.{axis}": np.repeat(place, launch.threads).astype(np.uint32) for axis, place in places.items()}
        self.special["%tid.x"] = (self._all % launch.threads).astype(np.uint32)
        self._program = program
        self._together = {WARP: LANES, WARPGROUP: WARPGROUP_THREADS, BLOCK: launch.threads}
        self._at = np.zeros(self.threads, np.int64)  # of each thread its basic block
        self._doing = ""

    # ---- for instructions ----

    def active(self, mask: Mask) -> np.ndarray:
        """The numbers of the threads that execute."""
        return self._all if mask is None else np.flatnonzero(mask)

    def spread(self, value: np.ndarray) -> np.ndarray:
        """A constant as one value a thread."""
        return value if value.ndim else np.full(self.threads, value)

    def check_all(self, lanes: np.ndarray, mask: Mask, problem: str) -> None:
        wrong = self.spread(lanes != 0xFFFFFFFF)
        if mask is not None:
            wrong = wrong & mask
        if wrong.any():
            raise FaultError(int(np.flatnonzero(wrong)[0]), problem)

    # ---- the loop ----

    def run(self) -> None:
        try:
            while (chosen := self._choose()) is not None:
                self._run_block(*chosen)
        except FaultError as fault:
            axes = ", ".join(str(self.special[f"%ctaid.{axis}"][fault.thread]) for axis in "xyz")
            thread = self.special["%tid.x"][fault.thread]
            raise PtxError(f"block ({axes}), thread {thread}: {fault}: {self._doing}") from fault
        self.counts["bank_conflicts"] += self.shared.conflicts["ldmatrix"]
        self.counts["other_conflicts"] = self.shared.conflicts["other"]

    def _choose(self) -> tuple[int, np.ndarray] | None:
        """A basic block and the threads that can run it; None when all have ended."""
        end = len(self._program.blocks)
        while True:
            numbers = np.unique(self._at)
            if numbers[0] == end:
                self.boxes.check_none()
                self.named.check_none()
                return None
            for number in numbers[numbers != end].tolist():
                if (threads := self._ready(number)).any():
                    return number, threads
            if not self.boxes.deliver(self):
                raise PtxError(self._deadlock())

    def _ready(self, number: int) -> np.ndarray:
        here = self._at == number
        block = self._program.blocks[number]
        if block.meets is not None and not here.all():
            here = np.repeat(here.reshape(-1, self._together[block.meets]).all(1), self._together[block.meets])
        if block.ready is not None and here.any():
            self._doing = block.steps[0].text
            there = np.flatnonzero(here)
            here = np.zeros(self.threads, bool)
            here[there] = block.ready(self, there)
        return here

    def _deadlock(self) -> str:
        at = Counter(self._at.tolist())
        ended = at.pop(len(self._program.blocks), 0)
        waiting = "; ".join(f"{count} at {self._program.blocks[number].steps[0].text}" for number, count in at.items())
        return f"deadlock: threads wait for ever: {waiting}; {ended} of {self.threads} have ended"

    def _run_block(self, number: int, threads: np.ndarray) -> None:
        block = self._program.blocks[number]
        mask: Mask = None if threads.all() else threads
        for step in block.steps:
            self._doing = step.text
            chosen = mask
            if step.guard is not None:
                guarded = step.guard(self) & threads
                if not guarded.any():
                    continue
                chosen = None if guarded.all() else guarded
            if step.reads or step.writes:
                self.warpgroups.touch(step.reads, step.writes, self.active(chosen))
            step.execute(self, chosen)
        self._at[threads] = number + 1
        if block.target is not None:
            self._doing = block.text
            taken = threads if block.guard is None else block.guard(self) & threads
            self._at[taken] = block.target
        ended = threads & (self._at == len(self._program.blocks))
        if ended.any():
            self.copies.check_none(np.flatnonzero(ended))
            self.warpgroups.check_none(np.flatnonzero(ended))
