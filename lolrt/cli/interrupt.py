"""How a long run ends when it is asked to."""

from __future__ import annotations

import contextlib
import os
import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A run that a signal has ended before its time; the text says what there is of it."""

    def __init__(self, number: int, text: str = "interrupted") -> None:
        super().__init__(text)
        self.number = number


class Interrupt:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a flag, so that a run ends between two chunks, and the second into `Stopped`.

    A signal that the process was told to ignore, as nohup tells it of SIGHUP, stays ignored.
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
        with contextlib.suppress(OSError):  # not by print, whose buffer may be in use just now
            os.write(2, b"\nlolrt: finishing this chunk; again to stop now\n")
