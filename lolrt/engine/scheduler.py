"""Which sessions of an engine take part in the next pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Turn:
    """What a scheduler knows of a session."""

    opened: float = field(default_factory=time.monotonic)
    """When it was opened, by the monotonic clock, in seconds."""
    made_seconds: float = 0.0
    """Seconds of video that it has made."""
    passes: int = 0
    """Passes that it has taken part in."""

    @property
    def due(self) -> float:
        """When a viewer who has watched from the start needs its next chunk, by the monotonic clock."""
        return self.opened + self.made_seconds


class Scheduler(Protocol):
    def choose(self, turns: Sequence[Turn], now: float) -> Sequence[int]:
        """Indices of the sessions that take part in the next pass; none: it is too early for all of them."""


@dataclass(frozen=True)
class RoundRobin:
    """All in turns, for the most video in all: those that have taken part in the fewest passes come first."""

    at_once: int | None = None
    """Sessions in a pass at most; None: all."""

    def choose(self, turns: Sequence[Turn], now: float) -> Sequence[int]:
        return sorted(range(len(turns)), key=lambda i: turns[i].passes)[: self.at_once]


@dataclass(frozen=True)
class EarliestDeadline:
    """Those whose next chunk is due first, for streams that are watched as they are made; none is made far ahead of its viewer."""

    at_once: int | None = None
    """Sessions in a pass at most; None: all that are due."""
    ahead_seconds: float = 2.0
    """How far a session may be ahead of its viewer."""

    def choose(self, turns: Sequence[Turn], now: float) -> Sequence[int]:
        waiting = [i for i, turn in enumerate(turns) if turn.due - now < self.ahead_seconds]
        return sorted(waiting, key=lambda i: turns[i].due)[: self.at_once]
