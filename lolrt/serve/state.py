"""Keeps sessions on the disk, so that they continue after a crash: `--state DIR`.

    DIR/lock
    DIR/sessions/ID/session.safetensors    a snapshot, and a `Record` in it
    DIR/sessions/ID/journal.json           interactions since then, each with the first chunk that follows it
    DIR/sessions/ID/chunks/SEQUENCE        chunks that viewers may still ask for: a line of JSON, and the fragment

A chunk is on the disk before a viewer sees it. After a crash the snapshot is older than the newest chunk. The chunks between the two are
made again, with the same interactions, and are not sent again.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from lolrt.errors import CheckpointError, Error
from lolrt.serve.folder import SNAPSHOT, Directory, Folder
from lolrt.serve.hub import Fragment
from lolrt.session.snapshot import Snapshot

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Interaction:
    event_id: str
    prompt: str
    transition_chunks: int
    sequence: int | None = None
    """Its number among the interactions of the session: the one asked for, then the one it got."""


@dataclass(frozen=True)
class Record:
    """The state of a session that a snapshot of its stream does not hold; the fields are those of `lolrt.serve.live.Live`."""

    id: str
    created: float
    lease_seconds: float
    client: str
    sequence: int
    frames: int
    frames_left: int | None
    paused: bool
    interactions: int
    known: list[dict[str, Any]]
    waiting: list[str]
    active: list[str]
    fragments: int = 0
    """The number of fragments that were encoded."""


@dataclass(frozen=True)
class Saved:
    """A session as read from the disk."""

    snapshot: Snapshot
    record: Record
    journal: list[tuple[int, Interaction]]
    """Pairs of chunk and interaction."""
    fragments: list[Fragment]
    """Fragments without a gap; the last one is the newest that a viewer may have seen."""


class Keeper(ABC):
    """Where a server keeps its sessions."""

    def __init__(self, told: Callable[[bool], None]) -> None:
        """told: called after each write, with whether it succeeded."""
        self._told = told
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="lolrt state")

    def kept(self, id: str, every_seconds: float) -> Kept:
        """What is kept of a session that is new, or that was read. every_seconds: how often the session is saved. Raises OSError and
        `lolrt.Error`."""
        return Kept(self.folder(id), self._writer, every_seconds, self._told)

    @abstractmethod
    def folder(self, id: str) -> Folder:
        """The folder of a session that is new, or that was read. Raises OSError and `lolrt.Error`."""

    @abstractmethod
    def ids(self) -> list[str]:
        """The ids of the sessions with which the server begins."""

    @abstractmethod
    def read(self, id: str) -> Saved:
        """Reads a session. Raises `lolrt.Error`, `lolrt.CheckpointError` if it is damaged, and OSError."""

    def close(self) -> None:
        """Waits for the writes that are not finished."""
        self._writer.shutdown()


class Store(Keeper):
    """The folder of the state, `--state`. Only one server at a time uses it."""

    def __init__(self, folder: Path, told: Callable[[bool], None]) -> None:
        """Raises `lolrt.Error` if the folder cannot be used."""
        super().__init__(told)
        self._folder = folder / "sessions"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock: BinaryIO = open(folder / "lock", "ab")  # noqa: SIM115 - locked as long as the server lives
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Error(f"another server keeps its sessions in {folder}: give each a folder of its own with --state") from None
        except OSError as error:
            raise Error(f"cannot keep sessions in {folder}: {error.strerror}; choose another folder with --state") from error

    def folder(self, id: str) -> Directory:
        assert ID.fullmatch(id)
        folder = Directory(self._folder / id)
        folder.make()
        return folder

    def ids(self) -> list[str]:
        """The ids of the sessions on the disk. Removes the folders of sessions without a snapshot; what is not a server's stays."""
        folders = [path for path in self._folder.iterdir() if ID.fullmatch(path.name)]
        for path in folders:
            if Directory(path).is_left_over():
                shutil.rmtree(path, ignore_errors=True)
        return sorted(path.name for path in folders if (path / SNAPSHOT).exists())

    def read(self, id: str) -> Saved:
        return read(id, Directory(self._folder / id))

    def close(self) -> None:
        super().close()
        self._lock.close()


def read(id: str, folder: Folder) -> Saved:
    """Reads a session from its folder. Raises `lolrt.CheckpointError` if it is damaged, and OSError."""
    snapshot = folder.read_snapshot()
    try:
        record = Record(**snapshot.run)
        journal = [(int(chunk), Interaction(**interaction)) for chunk, interaction in json.loads(folder.read_journal() or b"[]")]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{id} is no session that this server can go on with ({error})") from error
    return Saved(snapshot, record, [entry for entry in journal if entry[0] >= record.sequence], _run(folder))


class Kept:
    """What of one session is in its folder."""

    def __init__(self, folder: Folder, writer: ThreadPoolExecutor, every_seconds: float, told: Callable[[bool], None]) -> None:
        """writer: writes snapshots. every_seconds: how often the session is saved. told: called after each write, with whether it
        succeeded."""
        self._folder, self._writer, self._every, self._told = folder, writer, every_seconds, told
        self._removed = False
        self._journal: list[tuple[int, Interaction]] = []
        self._writing: Future[None] | None = None
        self._begun, self._saved = -float("inf"), -1
        self.sequence = 0
        """The sequence number of the first chunk after the newest snapshot."""
        self.failures = 0
        self.error: str | None = None
        """Why the last write failed; None if it succeeded."""

    def take(self, saved: Saved) -> None:
        """Takes over the journal and the fragments of a session that was read. Removes all other chunks."""
        self._journal = list(saved.journal)
        self._folder.remove_chunks(set(self._folder.chunks()) - {fragment.sequence for fragment in saved.fragments})

    def due(self, now: float, sequence: int) -> bool:
        """Whether it is time to save the session, whose next chunk is `sequence`. It is not while the last save is still being written."""
        waited = now - self._begun >= self._every or self._saved < 0
        return waited and sequence != self._saved and (self._writing is None or self._writing.done())

    def begin(self, now: float, sequence: int) -> None:
        """Notes that the session is being saved."""
        self._begun, self._saved = now, sequence

    def change(self) -> None:
        """Asks for a save though there is no new chunk."""
        self._saved = -1

    def note(self, chunk: int, interaction: Interaction) -> bool:
        """Writes an interaction to the disk. Returns whether it could. To be called before the chunk that follows it is made."""
        self._journal = [*(entry for entry in self._journal if entry[0] >= self.sequence), (chunk, interaction)]
        text = json.dumps([(at, asdict(one)) for at, one in self._journal])
        return self._write(lambda: self._folder.write_journal(text.encode()))

    def keep(self, fragment: Fragment) -> None:
        """Writes a chunk to the disk. To be called before a viewer can see it."""
        self._write(lambda: self._folder.write_chunk(fragment.sequence, fragment.text.encode() + b"\n" + fragment.data))

    def forget(self, sequences: Iterable[int]) -> None:
        """Removes chunks that viewers can no longer ask for."""
        self._submit(lambda: self._folder.remove_chunks(sequences))

    def save(self, snapshot: Snapshot, record: Record) -> Future[None]:
        """Begins to write a snapshot. The future is done when it is on the disk, or has failed."""

        def write() -> None:
            if self._write(lambda: self._folder.write_snapshot(replace(snapshot, run=asdict(record)))):
                self.sequence = record.sequence

        self._writing = self._submit(write)
        return self._writing

    def remove(self) -> Future[None]:
        """Begins to delete the folder: the session has ended. The future is done when it is gone."""
        self._removed = True
        return self._submit(self._folder.delete)

    def _submit(self, write: Any) -> Future[None]:
        try:
            return self._writer.submit(write)
        except RuntimeError:  # the writer has shut down: the server has ended
            done: Future[None] = Future()
            done.set_result(None)
            return done

    def _write(self, write: Callable[[], None]) -> bool:
        """Returns whether it was written. Counts a failed write instead of raising it: the session goes on, whatever the disk does. Of a
        session that has ended nothing is written: another may have its name, and its folder."""
        if self._removed:
            return False
        try:
            write()
        except (Error, OSError) as error:
            if not self._removed:
                self.failures += 1
                self.error = str(error)
                self._told(False)
            return False
        self.error = None
        self._told(True)
        return True


def _run(folder: Folder) -> list[Fragment]:
    """The newest fragments of a folder, without a gap."""
    found: list[Fragment] = []
    for sequence in sorted(folder.chunks(), reverse=True):
        fragment = _fragment(folder, sequence)
        if fragment is None or (found and found[-1].sequence != sequence + 1):
            break
        found.append(fragment)
    return found[::-1]


def _fragment(folder: Folder, sequence: int) -> Fragment | None:
    """A fragment; None if its file is incomplete, as after a power cut."""
    try:
        line, data = folder.read_chunk(sequence).split(b"\n", 1)
        about = json.loads(line)
        whole = about.pop("sequence") == sequence and about.pop("byte_length") == len(data) and about.pop("type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Fragment(sequence, about, data) if whole else None
