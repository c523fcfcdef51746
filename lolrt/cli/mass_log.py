"""The file of `lolrt generate --probe`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lolrt.errors import OutputError

if TYPE_CHECKING:
    from lolrt.session.stream import Chunk


class MassLog:
    """Writes the attention mass of each chunk as it comes, a row per layer, head and page: mean over the chunk's frames."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __enter__(self) -> MassLog:
        self._file: TextIO | None = None
        if self.path is not None:
            try:
                self._file = open(self.path, "w", newline="")
            except OSError as error:
                raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
            self._rows = csv.writer(self._file)
            self._rows.writerow(["first_frame", "layer", "head", "page_frame", "mass"])
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, chunk: Chunk) -> None:
        if self._file is None or chunk.mass is None:
            return
        try:
            self._rows.writerows(self._chunk_rows(chunk))
        except OSError as error:
            raise OutputError(f"cannot go on writing {self.path}: {error.strerror}") from error

    @staticmethod
    def _chunk_rows(chunk: Chunk) -> Iterator[tuple[int, int, int, int, str]]:
        assert chunk.mass is not None
        for layer, heads in enumerate(chunk.mass.mean(2).tolist()):
            for head, pages in enumerate(heads):
                for frame, mass in zip(chunk.page_frames, pages, strict=False):
                    yield chunk.first_frame, layer, head, frame, f"{mass:.5f}"
