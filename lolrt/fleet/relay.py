"""One viewer of a session that moves: what of each replica's messages it is to get, so that it sees one connection without a gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lolrt.serve.hub import ELSEWHERE


@dataclass
class Relay:
    """Takes the messages of `watch` (docs/serve.md), from one replica after another."""

    next: int | None
    """The sequence of the next chunk; None: whatever the first replica begins with."""
    begun: bool = False
    """Whether the viewer has had `video.start`."""
    paused: bool = False
    ended: bool = False

    def takes(self, message: dict[str, Any]) -> bool:
        """Whether the viewer gets this message, and the bytes that follow it."""
        match message["type"]:
            case "video.start":
                begun, self.begun = self.begun, True
                if self.next is None:
                    self.next = message["sequence"]
                return not begun
            case "video.chunk_metadata":
                if self.next is not None and message["sequence"] < self.next:
                    return False
                self.next = message["sequence"] + 1
                return True
            case "video.gap":
                self.next = message["to"]
                return True
            case "session.paused" | "session.continued" as kind:
                paused, self.paused = self.paused, kind == "session.paused"
                return paused != self.paused
            case "session.done":
                self.ended = message["reason"] not in ELSEWHERE
                return self.ended
            case "error":
                return False
        return True
