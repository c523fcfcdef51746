"""Destinations of the boxes of an mp4: a file, or standard output."""

from __future__ import annotations

import contextlib
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from lolrt.errors import OutputError
from lolrt.files import check_there, locked, new_file, sync

CHECKED_BYTES = 1 << 16


@dataclass(frozen=True)
class Position:
    """The position of a video at a cut. The video can be truncated there, and continued from there."""

    frames: int
    fragments: int
    bytes: int
    """The length of the file, or of the last segment of an HLS video, in bytes."""
    checksum: int
    """CRC-32 of the last bytes before the cut, to detect another video under the same name."""


def checksum(path: Path, end: int) -> int:
    """CRC-32 of the last `CHECKED_BYTES` of a file's first `end` bytes."""
    with open(path, "rb") as file:
        file.seek(max(0, end - CHECKED_BYTES))
        return zlib.crc32(file.read(min(end, CHECKED_BYTES)))


class Destination(Protocol):
    """The interface of a destination. Its methods raise OSError when they fail."""

    name: str
    """The name for messages."""

    @property
    def partial_path(self) -> Path | None:
        """The file of the video while it grows; None if there is no file."""

    def check_there(self) -> None:
        """Raises FileNotFoundError if what was written so far was removed or moved."""

    def write(self, box: bytes, /) -> object: ...

    def flush(self) -> None: ...

    def cut(self) -> tuple[int, int]:
        """Writes everything to the disk. Returns `bytes` and `checksum` of `Position`."""

    def finish(self) -> None:
        """Ends a video that is complete."""

    def leave(self, has_pictures: bool) -> None:
        """Ends a video that is not complete. It is kept if it has pictures, and removed if it has none."""


class StandardOutput:
    def __init__(self) -> None:
        self.name, self.partial_path = "standard output", None
        self._file = sys.stdout.buffer

    def check_there(self) -> None:
        pass

    def write(self, box: bytes, /) -> int:
        return self._file.write(box)

    def flush(self) -> None:
        self._file.flush()

    def cut(self) -> tuple[int, int]:
        return 0, 0

    def finish(self) -> None:
        pass

    def leave(self, has_pictures: bool) -> None:
        pass


class MovieFile:
    """A file that is written as `<stem>.partial<suffix>`, locked, and gets its final name when it is complete and on the disk."""

    def __init__(self, path: Path, resume: Position | None) -> None:
        """Raises `lolrt.OutputError`."""
        self.name, self._path = str(path), path
        self.suffix, self.partial_path = path.suffix.lower(), self._partial(path)
        self.file = self._open() if resume is None else self._reopen(resume)

    @staticmethod
    def _partial(path: Path) -> Path:
        return path.with_name(f"{path.stem}.partial{path.suffix}")

    @classmethod
    def check_free(cls, path: Path) -> None:
        """Raises `lolrt.OutputError` if the video cannot be started, as far as this can be known without writing."""
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; choose another place with -o")
        if cls._partial(path).exists():
            new_file(cls._partial(path)).close()

    def _open(self) -> BinaryIO:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            return new_file(self.partial_path)
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}; choose another place with -o") from error

    def _reopen(self, position: Position) -> BinaryIO:
        """Opens the file of an earlier run, whether that is complete or not, and truncates it at the cut."""
        try:
            found = self.partial_path if self.partial_path.exists() else self._path
            with contextlib.ExitStack() as on_error:
                file = on_error.enter_context(locked(found))
                if found.stat().st_size < position.bytes:
                    raise OutputError(f"{found} has fewer than the {position.bytes} bytes that were written before the snapshot")
                if checksum(found, position.bytes) != position.checksum:
                    raise OutputError(f"{found} is not the video that the snapshot goes on with: another run has written it since")
                if found == self._path:
                    self._path.rename(self.partial_path)
                file.truncate(position.bytes)
                file.seek(position.bytes)
                on_error.pop_all()
                return file
        except OSError as error:
            raise OutputError(f"cannot go on with {self._path}: {error.strerror}; the earlier run wrote it there") from error

    def check_there(self) -> None:
        check_there(self.file.fileno(), self.partial_path)

    def write(self, box: bytes, /) -> int:
        return self.file.write(box)

    def flush(self) -> None:
        self.file.flush()

    def cut(self) -> tuple[int, int]:
        self.file.flush()
        os.fsync(self.file.fileno())
        end = self.file.tell()
        return end, checksum(self.partial_path, end)

    def finish(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.partial_path.replace(self._path)
        sync(self._path.parent)
        self.file.close()  # locked until it has its final name

    def leave(self, has_pictures: bool) -> None:
        try:
            if not has_pictures:
                with contextlib.suppress(FileNotFoundError):
                    self.check_there()
                    self.partial_path.unlink()
        finally:
            self.file.close()
