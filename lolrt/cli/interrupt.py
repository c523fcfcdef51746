"""How a long run ends when it is asked to."""

from __future__ import annotations

import signal


class Interrupt:
    """Turns the first Ctrl-C (or SIGTERM) into a flag, so that a run ends between two chunks; the second one is a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interrupt:
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
