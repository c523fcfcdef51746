"""Where one session is kept: the files of a folder on the disk, or of what else can stand for one."""

from __future__ import annotations

import contextlib
import errno
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from lolrt.files import remove_partials, write_whole
from lolrt.session.snapshot import Snapshot

SNAPSHOT, JOURNAL, CHUNKS = "session.safetensors", "journal.json", "chunks"


class Folder(Protocol):
    """The files of one session. Every write is atomic. Writes raise OSError or `lolrt.Error` if they fail, and
    `lolrt.serve.errors.MovedError` if another server has taken the session over."""

    def write_journal(self, content: bytes) -> None:
        """It is on the disk when this returns, and survives a power cut."""

    def write_chunk(self, sequence: int, content: bytes) -> None: ...

    def write_snapshot(self, snapshot: Snapshot) -> None: ...

    def read_journal(self) -> bytes | None:
        """None: there is none."""

    def read_chunk(self, sequence: int) -> bytes: ...

    def read_snapshot(self) -> Snapshot:
        """Raises `lolrt.CheckpointError` if it is damaged, or if there is none."""

    def chunks(self) -> list[int]:
        """The sequence numbers of the chunks, in no order."""

    def remove_chunks(self, sequences: Iterable[int]) -> None:
        """Removes those that are there. What cannot be removed stays."""

    def delete(self) -> None:
        """Removes all files."""


class Directory:
    """A folder on the disk, which one process at a time uses. It may become that of another session when this one's has been deleted, so
    what comes late is refused. Journal and chunks may be written while another thread deletes, a snapshot may not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock, self._deleted = threading.Lock(), False

    @contextlib.contextmanager
    def _there(self) -> Iterator[None]:
        """A context manager around a write. Raises OSError if the folder has been deleted."""
        with self._lock:
            if self._deleted:
                raise FileNotFoundError(errno.ENOENT, "the session has ended", str(self._path))
            yield

    def make(self) -> None:
        """Creates it, and removes what killed processes have left half done. Raises OSError."""
        (self._path / CHUNKS).mkdir(parents=True, exist_ok=True)
        remove_partials(self._path / SNAPSHOT)
        remove_partials(self._path / JOURNAL)

    def write_journal(self, content: bytes) -> None:
        with self._there():
            write_whole(self._path / JOURNAL, content)

    def write_chunk(self, sequence: int, content: bytes) -> None:
        path = self._path / CHUNKS / str(sequence)
        partial = path.with_name(f"{path.name}.partial")
        with self._there():
            try:
                partial.write_bytes(content)
                partial.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise

    def write_snapshot(self, snapshot: Snapshot) -> None:
        snapshot.write(self._path / SNAPSHOT)

    def read_journal(self) -> bytes | None:
        try:
            return (self._path / JOURNAL).read_bytes()
        except FileNotFoundError:
            return None

    def read_chunk(self, sequence: int) -> bytes:
        return (self._path / CHUNKS / str(sequence)).read_bytes()

    def read_snapshot(self) -> Snapshot:
        return Snapshot.read(self._path / SNAPSHOT)

    def chunks(self) -> list[int]:
        return [int(path.name) for path in (self._path / CHUNKS).iterdir() if path.name.isdecimal()]

    def remove_chunks(self, sequences: Iterable[int]) -> None:
        for sequence in sequences:
            with contextlib.suppress(OSError):
                (self._path / CHUNKS / str(sequence)).unlink()

    def delete(self) -> None:
        with self._lock:
            self._deleted = True
            shutil.rmtree(self._path, ignore_errors=True)

    def is_left_over(self) -> bool:
        """Whether it is what a server has left that was killed before the first snapshot: nothing but files that a server writes."""
        own = {JOURNAL, CHUNKS}
        files = [path.relative_to(self._path) for path in self._path.rglob("*")]
        return all(
            str(file) in own or file.suffix == ".partial" or (len(file.parts) == 2 and file.parts[0] == CHUNKS and file.name.isdecimal())
            for file in files
        )
