"""Statistics of a session: the usual measures of a serving system."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

# The figures are those of the newest chunks, at most so many.
MOST_CHUNKS = 512


def percentile(values: list[float], percent: int) -> float:
    """The percentile of values, by the nearest-rank method."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


@dataclass
class Statistics:
    """Statistics of one session. The encoder's thread writes them, the event loop reads them."""

    opened: float = field(default_factory=time.monotonic)
    first_chunk_seconds: float | None = None
    """From the request for the session until its first chunk could be sent."""
    chunks: int = 0
    timed: int = 0
    """Chunks with a deadline: all but the first one after the opening and after each pause."""
    late: int = 0
    """Chunks that missed their deadline. A viewer who plays from the first chunk on, with a buffer of
    `lolrt.serve.live.START_BUFFER_SECONDS`, has as many underruns."""
    stall_seconds: float = 0.0
    """The total time that such a viewer has waited."""
    control_seconds: float | None = None
    """From the acceptance of the newest interaction until the first chunk that follows it could be sent."""
    _published: float | None = None
    _intervals: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_CHUNKS))
    _factors: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_CHUNKS))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, now: float, about: dict[str, Any], control_seconds: float | None) -> float | None:
        """Adds a chunk that can be sent now. about: its description. Returns the seconds since the chunk before; None after a pause."""
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
        """The statistics as a JSON object."""
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
