"""What many ask about sessions at the same time, in one question after another.

When a machine dies, all viewers of its sessions ask again and again until these are elsewhere; and many may open sessions at once. A
question for each would keep the lease service from what it has to hear from the replicas, whose leases would end too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Batched:
    def __init__(self, ask: Callable[[list[str]], Awaitable[dict[str, str | None]]]) -> None:
        """ask: a question of `lolrt.fleet.service.Leases` about many sessions."""
        self._ask_all = ask
        self._waiting: dict[str, asyncio.Future[str | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def __call__(self, session: str) -> str | None:
        """The answer about one session. Raises KeyError if there is none, and OSError if the lease service does not answer."""
        answer = self._waiting.setdefault(session, asyncio.get_running_loop().create_future())
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(answer)  # which others may wait for, too

    async def _ask(self) -> None:
        """Asks for all who wait. Those who come meanwhile are in the next question."""
        while self._waiting:
            asked, self._waiting = self._waiting, {}
            try:
                found = await self._ask_all(list(asked))
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
