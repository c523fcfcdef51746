"""Sessions in a store that all replicas share. Every write is fenced: see `lolrt.fleet.fencing`."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from lolrt.errors import CheckpointError
from lolrt.files import temporary_folder
from lolrt.fleet.fencing import RETRY_SECONDS, Claim, claim_new, end, run, take_over, write_fenced
from lolrt.fleet.objects import Store
from lolrt.serve.errors import ConflictError, MovedError, NotFoundError
from lolrt.serve.folder import CHUNKS, JOURNAL, SNAPSHOT
from lolrt.serve.state import Keeper, Saved, read
from lolrt.session.snapshot import Snapshot


class SharedStore(Keeper):
    def __init__(self, store: Store, holds: Callable[[], bool], told: Callable[[bool], None]) -> None:
        """holds: whether the leases of this replica last at this moment."""
        super().__init__(told)
        self._store, self._holds = store, holds
        self._taken: dict[str, Claim] = {}
        self.epochs: dict[str, int] = {}
        """The epoch with which each session was claimed here last."""

    def ids(self) -> list[str]:
        """None: a replica begins without sessions, and takes over what it is told to."""
        return []

    def folder(self, id: str) -> ClaimedFolder:
        claim = self._taken.pop(id, None) or run(claim_new(id, uuid.uuid4().hex), self._store)
        if claim is None:
            raise ConflictError(f"session {id} exists already: choose another id, or leave it out", "session_exists")
        self.epochs[id] = claim.epoch
        return ClaimedFolder(self._store, claim, self._holds, whole=claim.epoch > 1)

    def read(self, id: str) -> Saved:
        """Takes a session over. Raises `NotFoundError` if another replica was quicker, or if the session has ended."""
        claim = run(take_over(id, uuid.uuid4().hex), self._store)
        if claim is None:
            raise NotFoundError(f"session {id} has ended, or another server has it")
        self._taken[id] = claim
        return read(id, ClaimedFolder(self._store, claim, self._holds, whole=True))


class ClaimedFolder:
    """The files of one claim. A write is tried again while the leases of this replica last; when they are over, or when another replica
    has claimed the session, it raises `MovedError`."""

    def __init__(
        self, store: Store, claim: Claim, holds: Callable[[], bool], *, whole: bool, gone: Callable[[], None] = lambda: None
    ) -> None:
        """whole: whether it has a snapshot. gone: called when the session has ended."""
        self._store, self._claim, self._holds, self._gone = store, claim, holds, gone
        self._lost, self._whole = False, threading.Event()
        if whole:
            self._whole.set()

    def _path(self, name: str) -> str:
        return f"{self._claim.folder}/{name}"

    def _fenced(self, write: Callable[[], None]) -> None:
        if not run(write_fenced(self._claim, lambda store: write(), self._holds), self._store):
            self._lost = True
            raise MovedError(f"session {self._claim.session} is not this server's any more")

    def write_journal(self, content: bytes) -> None:
        self._fenced(lambda: self._store.write(self._path(JOURNAL), content))

    def write_chunk(self, sequence: int, content: bytes) -> None:
        # Nobody could go on with a session that has no snapshot yet, so nobody is to see anything of it.
        while not self._whole.wait(RETRY_SECONDS):
            if self._lost or not self._holds():
                raise MovedError(f"session {self._claim.session} was taken over before its first snapshot")
        self._fenced(lambda: self._store.write(self._path(f"{CHUNKS}/{sequence}"), content))

    def write_snapshot(self, snapshot: Snapshot) -> None:
        with temporary_folder() as folder:
            path = Path(folder) / SNAPSHOT
            snapshot.write(path)
            self._fenced(lambda: self._store.put(path, self._path(SNAPSHOT)))
        self._whole.set()

    def read_journal(self) -> bytes | None:
        try:
            return self._store.read(self._path(JOURNAL))
        except FileNotFoundError:
            return None

    def read_chunk(self, sequence: int) -> bytes:
        return self._store.read(self._path(f"{CHUNKS}/{sequence}"))

    def read_snapshot(self) -> Snapshot:
        with temporary_folder() as folder:
            path = Path(folder) / SNAPSHOT
            try:
                self._store.get(self._path(SNAPSHOT), path)
            except FileNotFoundError:
                raise CheckpointError(f"session {self._claim.session} has no snapshot in the store") from None
            return Snapshot.read(path)

    def chunks(self) -> list[int]:
        return [int(name) for name in self._store.names(self._path(CHUNKS)) if name.isdecimal()]

    def remove_chunks(self, sequences: Iterable[int]) -> None:
        for sequence in sequences:
            try:
                self._store.remove(self._path(f"{CHUNKS}/{sequence}"))
            except OSError:
                return

    def delete(self) -> None:
        self._lost = True  # who waits for the first snapshot need not any more: none will come
        try:
            run(end(self._claim), self._store)
        except OSError:
            return
