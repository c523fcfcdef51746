"""Standard streams that may be closed, on a full disk, a broken pipe, or unable to encode a character. None of these ends a run with a
traceback."""

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
    """Standard output or standard error. After a failed write, later output is discarded. On standard output the failure also raises
    `lolrt.OutputError`, or BrokenPipeError if the reader has gone. On standard error it does not: those messages are not the result of a
    run."""

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
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:  # the rest of the buffer is written there at exit
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if not self._raises:
                return None
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(f"cannot write to standard output: {error.strerror}; lead it elsewhere") from error


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Replaces standard output and standard error with `Standard`. A closed stream stays None, or discards its output."""
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
    """Opens the descriptors 0 to 2 that are closed. Otherwise a file of ours could get one of these numbers, and any library that prints
    would write into it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
