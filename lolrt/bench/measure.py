"""Measures side by side: a callable and its peers take turns in one process, so that other load on the machine affects all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lolrt.errors import Error

# Returns its result, or None if its layout differs from the others', so that it cannot be compared.
Run = Callable[[], Tensor | None]


@dataclass(frozen=True)
class Spread:
    """The median of some values, and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, median, high = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75)).tolist()
        return cls(low, median, high)


@dataclass(frozen=True)
class Effort:
    """The time for a case: rounds for about `seconds`, but at least `least` and at most `most` rounds."""

    seconds: float
    least: int
    most: int

    def rounds(self, seconds_of_one: float) -> int:
        return int(min(max(self.seconds / seconds_of_one, self.least), self.most))


QUICK = Effort(seconds=0.4, least=5, most=50)
FULL = Effort(seconds=2.0, least=5, most=200)


def timed(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


class Race:
    """`ours` against its peers, in turns; `times` and `peer_times` have a value per round. timed: the seconds that a callable takes."""

    def __init__(self, ours: Run, peers: Mapping[str, Run], tolerance: float, timed: Callable[[Run], float] = timed) -> None:
        self.ours, self.peers, self._timed = ours, dict(peers), timed
        self.times: list[float] = []
        self.peer_times: dict[str, list[float]] = {name: [] for name in self.peers}
        self._tolerance = tolerance

    def warm_up(self) -> float:
        """Runs everything twice; returns the seconds of the second round. Raises `lolrt.Error` when a peer computes something else.

        Results are compared by the root mean square of their difference, relative to that of ours.
        """
        ours = self.ours()
        ours = None if ours is None else ours.float().clone()
        for name, run in self.peers.items():
            theirs = run()
            if ours is None or theirs is None:
                continue
            difference = (rms(theirs.float().reshape(ours.shape) - ours) / rms(ours)).item()
            if not difference <= self._tolerance:
                raise Error(f"{name} differs from ours by {difference:.2g} of the result, more than {self._tolerance:g}: no fair peer")
        return sum(self._timed(run) for run in (self.ours, *self.peers.values()))

    def peers_turn(self) -> None:
        for name, run in self.peers.items():
            self.peer_times[name].append(self._timed(run))

    def run(self, rounds: int) -> None:
        collects = gc.isenabled()
        gc.disable()
        try:
            for _ in range(rounds):
                self.peers_turn()
                self.times.append(self._timed(self.ours))
        finally:
            if collects:
                gc.enable()

    def ratios(self) -> dict[str, Spread]:
        """Each peer's time divided by ours, round by round: above 1, ours is faster."""
        return {
            name: Spread.of([theirs / ours for theirs, ours in zip(times, self.times, strict=True)])
            for name, times in self.peer_times.items()
        }
