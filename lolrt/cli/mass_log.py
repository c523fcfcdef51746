"""The file that `lolrt generate --probe` writes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from lolrt.errors import OutputError
from lolrt.files import check_there

if TYPE_CHECKING:
    from lolrt.session.stream import Chunk


class MassLog:
    """Writes the attention mass of each chunk as it comes, one row per layer, head and page; the mean over the chunk's frames."""

    def __init__(self, path: Path | None, resume_bytes: int = 0) -> None:
        """resume_bytes: continues the file of an earlier run after so many bytes."""
        self.path, self._resume_bytes = path, resume_bytes

    def __enter__(self) -> MassLog:
        self._file: TextIO | None = None
        if self.path is not None:
            try:
                if self._resume_bytes:
                    if self.path.stat().st_size < self._resume_bytes:
                        raise OutputError(f"{self.path} has fewer than the {self._resume_bytes} bytes from before the snapshot")
                    os.truncate(self.path, self._resume_bytes)
                self._file = open(self.path, "a" if self._resume_bytes else "w", newline="")
            except OSError as error:
                raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
            self._rows = csv.writer(self._file)
            if not self._resume_bytes:
                self._rows.writerow(["first_frame", "layer", "head", "page_frame", "mass"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._file is not None:
                self._file.close()  # flushes the buffer
        except OSError as failure:
            if error is None:
                raise self._failure(failure) from failure

    def size(self) -> int:
        """The bytes on the disk so far."""
        if self._file is None:
            return 0
        try:
            self._file.flush()
            return self._file.tell()
        except OSError as error:
            raise self._failure(error) from error

    def write(self, chunk: Chunk) -> None:
        if self._file is None or self.path is None or chunk.mass is None:
            return
        try:
            check_there(self._file.fileno(), self.path)
            self._rows.writerows(self._chunk_rows(chunk))
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"cannot go on writing {self.path}: {error.strerror}")

    @staticmethod
    def _chunk_rows(chunk: Chunk) -> Iterator[tuple[int, int, int, int, str]]:
        assert chunk.mass is not None
        for layer, heads in enumerate(chunk.mass.mean(2).tolist()):
            for head, pages in enumerate(heads):
                for frame, mass in zip(chunk.page_frames, pages, strict=False):
                    yield chunk.first_frame, layer, head, frame, f"{mass:.5f}"
