"""Ends a long run on a signal, between two chunks."""

from __future__ import annotations

import contextlib
import os
import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal ended the run early; the text says which part of the output exists."""

    def __init__(self, number: int, text: str = "interrupted") -> None:
        super().__init__(text)
        self.number = number


class Interrupt:
    """The first Ctrl-C, SIGTERM or SIGHUP sets a flag, so that a run ends between two chunks. The second raises `Stopped`.

    A signal that the process was started to ignore (nohup does this with SIGHUP) stays ignored.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        """The number of the first signal."""

    def __enter__(self) -> Interrupt:
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.requested is not None:
            raise Stopped(number)
        self.requested = number
        with contextlib.suppress(OSError):  # not print: the signal may have interrupted a use of its buffer
            os.write(2, b"\nlolrt: finishing this chunk; again to stop now\n")
