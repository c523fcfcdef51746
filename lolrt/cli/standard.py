"""Standard streams that are closed, full, gone, or have no letter for a name: none of it ends a run in a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeVar

from lolrt.errors import OutputError

Result = TypeVar("Result")


class Standard:
    """Standard output or standard error. After a write that fails, what follows goes nowhere; on standard output it also raises
    `lolrt.OutputError`, or BrokenPipeError where the reader has gone. What is said on standard error only accompanies a run."""

    def __init__(self, stream: TextIO, raises: bool) -> None:
        self._stream, self._raises = stream, raises

    def write(self, text: str) -> int | None:
        return self._tried(lambda: self._stream.write(text))

    def flush(self) -> None:
        if not self._stream.closed:
            self._tried(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _tried(self, call: Callable[[], Result]) -> Result | None:
        try:
            return call()
        except OSError as error:
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # what waits in the buffer is written there, at last
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if not self._raises:
                return None
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(f"cannot write to standard output: {error.strerror}; lead it elsewhere") from error


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Puts `Standard` in the place of standard output and standard error; one that is closed stays None, or goes nowhere."""
    _occupy()
    out, err = sys.stdout, sys.stderr
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")
    with open(os.devnull, "w") as nowhere:
        sys.stdout = Standard(out, raises=True) if out is not None else None  # type: ignore[assignment]
        sys.stderr = Standard(err or nowhere, raises=False)  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err


def _occupy() -> None:
    """Opens descriptors 0 to 2 where they are closed. A file of ours that got one of these would be written to by whatever library
    prints."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
