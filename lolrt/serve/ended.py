"""Sessions that have ended a moment ago: what viewers who were away can still read of them. Nothing of them is in the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from lolrt.serve.hub import Hub
from lolrt.session.config import StreamConfig

ENDED_SECONDS = 60.0


@dataclass(eq=False)
class Ended:
    hub: Hub
    config: StreamConfig
    last: dict[str, Any]
    """The description of the session when it ended."""
    until: float = field(default_factory=lambda: time.monotonic() + ENDED_SECONDS)
    """The time when it is forgotten, by the monotonic clock."""

    @property
    def expires_in(self) -> float:
        """The seconds until it is forgotten."""
        return self.until - time.monotonic()

    def renew(self) -> None:
        """Nothing: it is kept for a fixed time, whoever reads it."""

    def describe(self) -> dict[str, Any]:
        """It as a JSON object."""
        state = self.hub.state
        last = {name: value for name, value in self.last.items() if name != "kept"}  # its folder is gone
        about = {**last, "state": state.name, "reason": state.reason, **({"message": state.message} if state.message else {})}
        return {**about, "expires_in": round(max(0.0, self.expires_in), 1), "viewers": self.hub.viewers, "bytes": self.hub.held_bytes}
