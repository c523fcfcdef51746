"""Which replica may write a session, decided by the store alone.

    ID/claims/EPOCH            who has claimed the session: a token. Epochs count from 1
    ID/EPOCH-TOKEN/...         the files of that claim: snapshot, journal, chunks. Only its owner writes there

Who claims a session creates the next epoch's file, which only one can. A writer *first* writes a chunk and *then* looks whether the next
epoch is claimed, and shows the chunk only if it is not. Who takes over *first* claims and *then* reads. So either the writer sees the
claim, or the one who takes over sees the chunk: no chunk is shown that the next owner does not know. Whatever a former owner goes on to
write is in its own folder, which nobody reads again.

What this needs of a store: creating a file fails if it exists, for all but one; a write that has returned is seen by every later read; and
it is not lost. Local disks, POSIX file systems over a network without caching of attributes, and S3 with conditional writes have it.

Each function is a generator of single operations on the store, and of waits, so that a simulation can put anything between two of them.
`run` carries them out.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lolrt.serve.folder import CHUNKS, JOURNAL, SNAPSHOT

CLAIMS = "claims"
CLAIMED = re.compile(r"[0-9]+-[0-9A-Za-z]+")


class Objects(Protocol):
    """Files with names such as `a/b/c`. All raise OSError."""

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file that does not exist; False if it exists."""

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""

    def names(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder; none if it does not exist."""

    def copy(self, source: str, target: str) -> None:
        """Copies a file. Raises FileNotFoundError."""

    def remove(self, name: str) -> None:
        """Removes a file or a folder with all that is in it, if it exists."""


Result = TypeVar("Result")
Operation = Callable[[Objects], Any]
# Operations, and waits in seconds.
Steps = Generator[Operation | float, Any, Result]

# Between two attempts at a write that failed.
RETRY_SECONDS = 0.2


@dataclass(frozen=True)
class Claim:
    session: str
    epoch: int
    token: str
    """Unique to this claim."""

    @property
    def folder(self) -> str:
        return f"{self.session}/{self.epoch}-{self.token}"

    @property
    def file(self) -> str:
        return f"{self.session}/{CLAIMS}/{self.epoch}"


def run(steps: Steps[Result], objects: Objects) -> Result:
    """Carries out the steps, one after another."""
    try:
        step = next(steps)
        while True:
            try:
                found = step(objects) if callable(step) else time.sleep(step)  # type: ignore[func-returns-value]
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(found)
    except StopIteration as stop:
        return stop.value


def claim_new(session: str, token: str) -> Steps[Claim | None]:
    """Claims a session that does not exist yet; None if it does."""
    claim = Claim(session, 1, token)
    if (yield _naming(f"{session}/{CLAIMS}")):
        return None
    created = yield lambda store: store.create(claim.file, token.encode())
    return claim if created else None


def take_over(session: str, token: str) -> Steps[Claim | None]:
    """Claims a session that exists, and makes its folder from that of the former owner; None if another replica was quicker. A session
    without a snapshot cannot go on, and is removed: nobody has seen anything of it."""
    there = yield _naming(session)
    epochs = yield _naming(f"{session}/{CLAIMS}")
    if not epochs:  # it has ended, and a former owner has written since; or it is no session, and nobody's to remove
        for name in filter(CLAIMED.fullmatch, there):
            yield _removing(f"{session}/{name}")
        return None
    claim = Claim(session, max(map(int, epochs)) + 1, token)
    if not (yield lambda store: store.create(claim.file, token.encode())):
        return None
    while True:
        base = yield from _newest_whole(claim)
        if base is None:
            yield from end(claim)
            return None
        try:
            yield from _copy(base, claim)
            break
        except FileNotFoundError:
            # Its owner has ended the session, or one between has taken it over and removed what it did not need any more. In both cases
            # looking again tells.
            if not (yield from owns(claim)):
                return None
    # A store that has lost the claim (it must not) has lost it by now, and the former folder is still the session.
    if not (yield from owns(claim)):
        return None
    yield from _remove_others(claim)
    return claim


def owns(claim: Claim) -> Steps[bool]:
    """Whether the claim is the newest one of its session. To be asked after a write, and before anybody sees what was written."""
    newer = Claim(claim.session, claim.epoch + 1, "").file
    try:
        token = yield _reading(claim.file)
    except FileNotFoundError:
        return False
    try:
        yield _reading(newer)
    except FileNotFoundError:
        return token.decode() == claim.token
    return False


def write_fenced(claim: Claim, write: Operation, holds: Callable[[], bool]) -> Steps[bool]:
    """Writes, and returns whether what was written may be seen. A write that fails is tried again while the writer's lease lasts. holds:
    whether it does."""
    while holds():
        try:
            yield write
            return (yield from owns(claim))
        except OSError:
            yield RETRY_SECONDS
    return False


def end(claim: Claim) -> Steps[None]:
    """Removes a session, if the claim is its newest one."""
    if (yield from owns(claim)):
        yield _removing(claim.session)


def _newest_whole(claim: Claim) -> Steps[str | None]:
    """The newest folder before this claim's that has a snapshot. Looks from old to new: an old folder is removed only when a newer one is
    whole, and that one is looked at later."""
    whole = None
    for epoch in sorted(map(int, (yield _naming(f"{claim.session}/{CLAIMS}")))):
        if epoch < claim.epoch:
            try:
                token = yield _reading(Claim(claim.session, epoch, "").file)
            except FileNotFoundError:
                continue
            folder = Claim(claim.session, epoch, token.decode()).folder
            if SNAPSHOT in (yield _naming(folder)):
                whole = folder
    return whole


def _reading(name: str) -> Operation:
    return lambda store: store.read(name)


def _naming(folder: str) -> Operation:
    return lambda store: store.names(folder)


def _copy(base: str, claim: Claim) -> Steps[None]:
    """Copies a folder: chunks first, so that the journal has all that led to them, and the snapshot last, so that it is not older than what
    was taken out of the journal."""
    for sequence in (yield lambda store: store.names(f"{base}/{CHUNKS}")):
        with contextlib.suppress(FileNotFoundError):  # its owner removes those that no viewer can ask for any more
            yield _copying(base, claim, f"{CHUNKS}/{sequence}")
    with contextlib.suppress(FileNotFoundError):  # there has been no interaction
        yield _copying(base, claim, JOURNAL)
    yield _copying(base, claim, SNAPSHOT)


def _copying(base: str, claim: Claim, name: str) -> Operation:
    return lambda store: store.copy(f"{base}/{name}", f"{claim.folder}/{name}")


def _remove_others(claim: Claim) -> Steps[None]:
    """Removes the folders and claims before this one, whose folder is whole."""
    for name in (yield _naming(claim.session)):
        epoch = name.partition("-")[0]
        if epoch.isdecimal() and int(epoch) < claim.epoch:
            yield _removing(f"{claim.session}/{name}")
    for epoch in (yield _naming(f"{claim.session}/{CLAIMS}")):
        if int(epoch) < claim.epoch:
            yield _removing(f"{claim.session}/{CLAIMS}/{epoch}")


def _removing(name: str) -> Operation:
    return lambda store: store.remove(name)
