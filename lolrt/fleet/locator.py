"""Where sessions are, asked for by many at the same time, in one question after another.

When a machine dies, all viewers of its sessions ask again and again until these are elsewhere. A question for each would keep the lease
service from what it has to hear from the other replicas, whose leases would end too.
"""

from __future__ import annotations

import asyncio

from lolrt.fleet.service import Leases


class Locator:
    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._waiting: dict[str, asyncio.Future[str | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def locate(self, session: str) -> str | None:
        """The address of the replica that has a session; None: none has it at the moment. Raises KeyError if there is no such session, and
        OSError if the lease service does not answer."""
        answer = self._waiting.setdefault(session, asyncio.get_running_loop().create_future())
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(answer)  # which others may wait for, too

    async def _ask(self) -> None:
        """Asks for all who wait. Those who come meanwhile are in the next question."""
        while self._waiting:
            asked, self._waiting = self._waiting, {}
            try:
                found = await self._leases.locate(list(asked))
            except Exception as error:  # whoever waits must hear of it
                _end(asked, dict.fromkeys(asked, error))
            else:
                _end(asked, {session: KeyError(session) for session in asked.keys() - found.keys()})
                for session, address in found.items():
                    asked[session].set_result(address)


def _end(asked: dict[str, asyncio.Future[str | None]], errors: dict[str, Exception]) -> None:
    for session, error in errors.items():
        asked[session].set_exception(error)
        asked[session].exception()  # those who asked may have gone
