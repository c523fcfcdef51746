"""How a session does, by the measures that serving is judged by."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

# Chunks of which the figures are.
MOST_CHUNKS = 512


def percentile(values: list[float], percent: int) -> float:
    """By nearest rank."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


@dataclass
class Statistics:
    """Of one session. Written by the thread that encodes, read by the event loop."""

    opened: float = field(default_factory=time.monotonic)
    first_chunk_seconds: float | None = None
    """From when the session was asked for until its first chunk could be sent."""
    chunks: int = 0
    timed: int = 0
    """Chunks with a deadline: all but first ones, after the opening and after a pause."""
    late: int = 0
    """Chunks that missed it. A viewer who plays from a first chunk on, with `lolrt.serve.live.START_BUFFER_SECONDS` in hand, has nothing to
    show as often, an underrun."""
    stall_seconds: float = 0.0
    """How long that viewer has waited in all."""
    control_seconds: float | None = None
    """From when the newest interaction was accepted until the first chunk that follows it could be sent."""
    _published: float | None = None
    _intervals: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_CHUNKS))
    _factors: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_CHUNKS))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, now: float, about: dict[str, Any], control_seconds: float | None) -> float | None:
        """A chunk that can be sent now, and what is said of it; gives the seconds since the one before, None where there was a pause."""
        with self._lock:
            if control_seconds is not None:
                self.control_seconds = control_seconds
            if self.chunks == 0:
                self.first_chunk_seconds = now - self.opened
            self.chunks += 1
            slack = about["slack_seconds"]
            interval = None
            if slack is not None:
                self.timed += 1
                self.late += slack < 0
                self.stall_seconds += max(0.0, -slack)
                interval = None if self._published is None else now - self._published
            if interval is not None:
                self._intervals.append(interval)
            self._factors.append(about["made_seconds"] / about["seconds"])
            self._published = now
            return interval

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        with self._lock:
            intervals, factors = list(self._intervals), list(self._factors)
            figures: dict[str, Any] = {
                "chunks": self.chunks,
                "late_chunks": self.late,
                "deadline_attainment": 1 - self.late / self.timed if self.timed else None,
                "stall_seconds": self.stall_seconds,
                "first_chunk_seconds": self.first_chunk_seconds,
                "control_seconds": self.control_seconds,
                "real_time_factor": sum(factors) / len(factors) if factors else None,
            }
        figures |= {f"interval_p{percent}": percentile(intervals, percent) if intervals else None for percent in (50, 95, 99)}
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
