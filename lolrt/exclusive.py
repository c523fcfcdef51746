"""A lock for work that only one thread at a time may do."""

from __future__ import annotations

import threading
from types import TracebackType

from lolrt.errors import Error


class Exclusive:
    """A context manager that raises `lolrt.Error` in a second thread, as a generator does. Waiting would hide a mistake of the caller."""

    def __init__(self, what: str) -> None:
        self._what, self._lock = what, threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise Error(f"{self._what} is already at work in another thread: ask it from one thread at a time")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()
