"""How many replicas a fleet should have: by the room for sessions, and by deadlines that were met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# The part of all places that is taken when another replica is wanted: a session that moves needs a free one.
FULL = 0.75
# The part of chunks that have to be in time.
IN_TIME = 0.95


@dataclass(frozen=True)
class Load:
    """What one replica does."""

    sessions: int
    room: int
    """The number of sessions that it could open, by free places and by free pages of its KV cache."""
    in_time: float
    """The part of the newest chunks that were made before their deadlines; 1 if there are none."""


def replicas_wanted(loads: Sequence[Load]) -> int:
    """The number of replicas that a fleet with these should have. A late one counts as if it were full."""
    sessions = sum(load.sessions for load in loads)
    places = sum(load.sessions + load.room for load in loads)
    if not loads or not places:
        return len(loads) + 1
    late = sum(load.in_time < IN_TIME for load in loads if load.sessions)
    return max(1, math.ceil(sessions / (FULL * places / len(loads))), len(loads) + 1 if late * 2 > len(loads) else 1)
