"""What one thread at a time may do."""

from __future__ import annotations

import threading
from types import TracebackType

from lolrt.errors import Error


class Exclusive:
    """A context manager that refuses a second thread with `lolrt.Error`, as a generator does: to wait would hide a mistake."""

    def __init__(self, what: str) -> None:
        self._what, self._lock = what, threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise Error(f"{self._what} is already at work in another thread: ask it from one thread at a time")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()
