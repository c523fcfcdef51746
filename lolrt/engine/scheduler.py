"""Schedulers: they choose the sessions of an engine that take part in the next pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Turn:
    """What a scheduler knows about a session."""

    opened: float = field(default_factory=time.monotonic)
    """The time when it was opened, by the monotonic clock, in seconds."""
    made_seconds: float = 0.0
    """Seconds of video that it has made."""
    passes: int = 0
    """The number of passes that it has taken part in."""

    @property
    def due(self) -> float:
        """The time when a viewer who has watched from the start needs the next chunk, by the monotonic clock."""
        return self.opened + self.made_seconds


class Scheduler(Protocol):
    def choose(self, turns: Sequence[Turn], now: float) -> Sequence[int]:
        """The indices of the sessions that take part in the next pass; none if it is too early for all of them."""


@dataclass(frozen=True)
class RoundRobin:
    """All sessions in turn, for the highest total throughput: those with the fewest passes so far come first."""

    at_once: int | None = None
    """The most sessions in a pass; None: all."""

    def choose(self, turns: Sequence[Turn], now: float) -> Sequence[int]:
        return sorted(range(len(turns)), key=lambda i: turns[i].passes)[: self.at_once]


@dataclass(frozen=True)
class EarliestDeadline:
    """The sessions whose next chunk is due first, for streams that are watched live. No session is made far ahead of its viewer."""

    at_once: int | None = None
    """The most sessions in a pass; None: all that are due."""
    ahead_seconds: float = 2.0
    """How far a session may be ahead of its viewer."""

    def choose(self, turns: Sequence[Turn], now: float) -> Sequence[int]:
        waiting = [i for i, turn in enumerate(turns) if turn.due - now < self.ahead_seconds]
        return sorted(waiting, key=lambda i: turns[i].due)[: self.at_once]
