"""Which replica may write a session, decided by the store alone.

    ID/claims/EPOCH-TOKEN      who has claimed the session. Epochs count from 1; a token is unique, and so is each of these names
    ID/EPOCH-TOKEN/...         the files of that claim: snapshot, journal, chunks. Only its owner writes there

The greatest claim, by epoch and then by token, has the session. A writer *first* writes a chunk and *then* looks whether its claim is the
greatest, and shows the chunk only if it is. Who takes over *first* makes a greater claim and *then* reads. So either the writer sees the
claim, or the one who takes over sees the chunk: no chunk is shown that the next owner does not know. Whatever a former owner goes on to
write is in its own folder, which nobody reads again.

A session may end, and another one of the same name begin at epoch 1, while a process stops between two operations. Therefore nothing is
removed but by a name that is never used again, and that was found *before* a look that showed the own claim to be the greatest. Smaller
claims are removed before greater ones: a claim that is there when its owner looks tells that those above it have not been removed.

What this needs of a store: a write that has returned is seen by every later read and listing, and it is not lost. Local disks, POSIX file
systems over a network without caching of attributes, and S3 have it.

Each function is a generator of single operations on the store, and of waits, so that a simulation can put anything between two of them.
`run` carries them out.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lolrt.serve.folder import CHUNKS, JOURNAL, SNAPSHOT

# ENDED: a file in the folder of a claim whose owner has ended the session, which is about to be removed.
CLAIMS, ENDED = "claims", "ended"
CLAIMED = re.compile(r"[0-9]+-[0-9A-Za-z]+")


class Objects(Protocol):
    """Files with names such as `a/b/c`. All raise OSError."""

    def write(self, name: str, content: bytes) -> None: ...

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


@dataclass(frozen=True, order=True)
class Claim:
    session: str
    epoch: int
    token: str
    """Unique to this claim."""

    @property
    def name(self) -> str:
        return f"{self.epoch}-{self.token}"

    @property
    def folder(self) -> str:
        return f"{self.session}/{self.name}"

    @property
    def file(self) -> str:
        return f"{self.session}/{CLAIMS}/{self.name}"


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
    if (yield from _claims(session)):
        return None
    yield _claiming(claim)
    # Others may have done so at the same time. The greatest begins, if none of the smaller ones was so early that it has written something.
    if (yield from owns(claim)) and (yield _naming(session)) == [CLAIMS]:
        return claim
    yield _removing(claim.file)
    return None


def take_over(session: str, token: str) -> Steps[Claim | None]:
    """Claims a session that exists, and makes its folder from that of the former owner; None if another replica has a greater claim. A
    session without a snapshot cannot go on, and is removed: nobody has seen anything of it."""
    there = yield _naming(session)
    claims = yield from _claims(session)
    if not claims:  # it has ended, and a former owner has written since; or it is no session, and nobody's to remove
        for name in filter(CLAIMED.fullmatch, there):
            yield _removing(f"{session}/{name}")
        return None
    claim = Claim(session, claims[-1].epoch + 1, token)
    yield _claiming(claim)
    while (yield from owns(claim)):
        base = yield from _newest_whole(claim)
        if base is None:
            yield from _remove(claim)
            return None
        try:
            yield from _copy(base, claim)
        except FileNotFoundError:
            # Its owner has ended the session, or one between has taken it over and removed what it did not need any more. In both cases
            # looking again tells.
            continue
        # A store that has lost the claim (it must not) has lost it by now, and the former folder is still the session.
        former = yield from _former(claim)
        if former is None:
            return None
        yield from _remove_all(former)
        return claim
    return None


def owns(claim: Claim) -> Steps[bool]:
    """Whether the claim is the greatest one of its session. To be asked after a write, and before anybody sees what was written."""
    claims = yield from _claims(claim.session)
    if not claims or claims[-1] != claim:
        return False
    try:  # a listing may take a while: what is there after it was there all the time, and so was each greater claim
        yield lambda store: store.read(claim.file)
    except FileNotFoundError:
        return False
    return True


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


def end(claim: Claim) -> Steps[bool]:
    """Removes a session, if the claim is its greatest one. Returns whether it was."""
    if not (yield from owns(claim)):
        return False
    # Who takes it over now must find that it has ended, and not copy what is about to be removed.
    yield lambda store: store.write(f"{claim.folder}/{ENDED}", b"")
    return (yield from _remove(claim))


def _claims(session: str) -> Steps[list[Claim]]:
    """The claims of a session, the greatest one last."""
    names = yield _naming(f"{session}/{CLAIMS}")
    return _sorted(session, names)


def _sorted(session: str, names: Iterable[str]) -> list[Claim]:
    parts = [name.partition("-") for name in names if CLAIMED.fullmatch(name)]
    return sorted(Claim(session, int(epoch), token) for epoch, _, token in parts)


def _newest_whole(claim: Claim) -> Steps[Claim | None]:
    """The greatest claim before this one whose folder has a snapshot; None: there is none, or it has been ended. Looks from old to new: an
    old folder is removed only when a newer one is whole or has been ended, and that one is looked at later."""
    whole = None
    for one in (yield from _claims(claim.session)):
        if one < claim:
            names = yield _naming(one.folder)
            if ENDED in names:
                whole = None
            elif SNAPSHOT in names:
                whole = one
    return whole


def _former(claim: Claim) -> Steps[list[Claim] | None]:
    """All smaller claims and those that have left a folder, in order; None if this claim is not the greatest one."""
    folders = yield _naming(claim.session)
    claims = yield _naming(f"{claim.session}/{CLAIMS}")
    if not (yield from owns(claim)):
        return None
    return [one for one in _sorted(claim.session, {*folders, *claims}) if one < claim]


def _remove(claim: Claim) -> Steps[bool]:
    """Removes a session, if the claim is its greatest one. Returns whether it was."""
    former = yield from _former(claim)
    if former is not None:
        yield from _remove_all([*former, claim])
    return former is not None


def _remove_all(claims: list[Claim]) -> Steps[None]:
    """Removes claims and their folders, which must be in order. The snapshot goes first: without it nobody can go on."""
    for one in claims:
        yield _removing(f"{one.folder}/{SNAPSHOT}")
        yield _removing(one.folder)
        yield _removing(one.file)


def _claiming(claim: Claim) -> Operation:
    return lambda store: store.write(claim.file, claim.token.encode())


def _naming(folder: str) -> Operation:
    return lambda store: store.names(folder)


def _copy(base: Claim, claim: Claim) -> Steps[None]:
    """Copies a folder: chunks first, so that the journal has all that led to them, and the snapshot last, so that it is not older than what
    was taken out of the journal."""
    for sequence in (yield lambda store: store.names(f"{base.folder}/{CHUNKS}")):
        with contextlib.suppress(FileNotFoundError):  # its owner removes those that no viewer can ask for any more
            yield _copying(base, claim, f"{CHUNKS}/{sequence}")
    with contextlib.suppress(FileNotFoundError):  # there has been no interaction
        yield _copying(base, claim, JOURNAL)
    yield _copying(base, claim, SNAPSHOT)


def _copying(base: Claim, claim: Claim, name: str) -> Operation:
    return lambda store: store.copy(f"{base.folder}/{name}", f"{claim.folder}/{name}")


def _removing(name: str) -> Operation:
    return lambda store: store.remove(name)
