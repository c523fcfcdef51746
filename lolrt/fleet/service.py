"""The table of leases as a service: it has a clock, and looks into the store. All who ask it are in `Leases`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Protocol

from lolrt.fleet.lease import Beat, LeaseTable, Orders
from lolrt.fleet.objects import open_store

LEASE_SECONDS = 6.0


class Leases(Protocol):
    """What replicas and gateways ask. Raises OSError if the service does not answer."""

    async def beat(self, beat: Beat) -> tuple[Orders, float, float]:
        """Renews the leases of a replica. Returns what it is to do, for how many seconds its leases last from when it asked, and after how
        many it is to report again."""

    async def place(self, sessions: Sequence[str], at: str | None = None) -> dict[str, str | None]:
        """The addresses of the replicas that are to open new sessions: the one at the address `at`, or any; None: no replica has room, or
        the session is between two replicas."""

    async def locate(self, sessions: Sequence[str]) -> dict[str, str | None]:
        """Of those sessions that there are, or were a moment ago, the addresses of the replicas that have them; None: none has it at the
        moment."""

    async def addresses(self) -> list[str]:
        """Of all replicas, the ones with the most room first."""


class LeaseService:
    def __init__(self, url: str, seconds: float = LEASE_SECONDS) -> None:
        """url: the store (`lolrt.fleet.objects`). seconds: how long a lease lasts. Raises `lolrt.Error`."""
        self._store, self._table = open_store(url), LeaseTable(seconds, time.monotonic())

    async def beat(self, beat: Beat) -> tuple[Orders, float, float]:
        return self._table.beat(beat, time.monotonic()), self._table.seconds, self._table.pause

    async def place(self, sessions: Sequence[str], at: str | None = None) -> dict[str, str | None]:
        return self._table.place(sessions, time.monotonic(), at)

    async def locate(self, sessions: Sequence[str]) -> dict[str, str | None]:
        now = time.monotonic()
        return {session: self._table.locate(session, now) for session in sessions if self._table.knows(session)}

    async def addresses(self) -> list[str]:
        alive = self._table.alive(time.monotonic()).values()
        return [replica.address for replica in sorted(alive, key=lambda one: -one.room)]

    async def watch_store(self) -> None:
        """Looks into the store again and again, until it is cancelled. A store that does not answer is asked again."""
        while True:
            with contextlib.suppress(OSError):
                sessions = await asyncio.to_thread(self._store.names, "")
                self._table.stored(sessions, time.monotonic())
            await asyncio.sleep(self._table.seconds / 8)
