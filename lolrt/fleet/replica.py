"""A replica: a server of `lolrt.serve` that shares its sessions by leases."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

import uvicorn

from lolrt.errors import Error, printable
from lolrt.fleet.lease import BEAT_SECONDS, Beat, Holding, Orders
from lolrt.fleet.objects import open_store
from lolrt.fleet.scaling import Load
from lolrt.fleet.service import Leases
from lolrt.fleet.store import SharedStore
from lolrt.pipeline import Pipeline
from lolrt.serve.app import make_app
from lolrt.serve.server import MOST_MESSAGE, listening
from lolrt.serve.sessions import Session, Sessions
from lolrt.serve.settings import Settings

# How often a replica reports while it gives up its sessions one after another.
LEAVE_SECONDS = 0.1


class Replica(threading.Thread):
    """Serves a model in a thread of its own, and reports to the lease service."""

    def __init__(self, name: str, pipe: Pipeline, settings: Settings, url: str, leases: Leases, host: str) -> None:
        """url: the store. host: the address to listen at, by which gateways reach it. Raises `lolrt.Error`."""
        super().__init__(name=f"lolrt {name}", daemon=True)
        self._name, self._leases, self._holding, self._pause = name, leases, Holding(), BEAT_SECONDS
        store = open_store(url)
        app = make_app(pipe, settings, lambda told: SharedStore(store, self._holds, told))
        self.sessions: Sessions = app.state.sessions
        self._socket = listening(host, 0)
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws_max_size=MOST_MESSAGE, ws_max_queue=8))
        self._taking: set[str] = set()
        self._giving: set[str] = set()
        self._released: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False
        self._begun: Future[asyncio.AbstractEventLoop] = Future()

    def _holds(self) -> bool:
        return self._holding.holds(time.monotonic())

    @property
    def _store(self) -> SharedStore:
        store = self.sessions.factory.store
        assert isinstance(store, SharedStore)
        return store

    # From any thread.

    @property
    def address_when_ready(self) -> str:
        """The address, when it answers. Waits for that."""
        self._begun.result()
        return self.address

    @property
    def load(self) -> Load:
        told = [session.live.statistics.plain()["deadline_attainment"] for session in self.sessions]
        known = [one for one in told if one is not None]
        return Load(len(told), self._room(), sum(known) / len(known) if known else 1.0)

    def leave(self, seconds: float) -> None:
        """Gives up all sessions one by one, each when another replica has room for it, and ends. Those that nobody has taken after
        `seconds` are saved, and stay in the store until somebody can."""
        asyncio.run_coroutine_threadsafe(self._leave(seconds), self._begun.result()).result()
        self.join()

    def run(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            if not self._begun.done():
                self._begun.set_exception(error)
            raise

    # In the event loop of this thread.

    async def _run(self) -> None:
        reporting = asyncio.create_task(self._report())
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.01)
        self._begun.set_result(asyncio.get_running_loop())
        await serving
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)

    async def _report(self) -> None:
        """Reports again and again. A service that does not answer is asked again; when the leases are over, the sessions are given up."""
        while True:
            begun = time.monotonic()
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await self._beat()
            if not self._holds():
                self._follow(Orders(drop=tuple(session.live.id for session in self._kept())))
            await asyncio.sleep(max(0.0, begun + (LEAVE_SECONDS if self._leaving else self._pause) - time.monotonic()))

    def _kept(self) -> list[Session]:
        return [session for session in self.sessions if session.live.kept is not None]

    def _room(self) -> int:
        pool, window = self.sessions.factory.engine.engine.pool, self.sessions.pipe.window
        return max(0, min(self.sessions.settings.max_sessions - len(list(self.sessions)), pool.unreserved_pages // window.pool_pages))

    async def _beat(self) -> None:
        held = {session.live.id: self._store.epochs[session.live.id] for session in self._kept()}
        released = frozenset(self._released)
        beat = Beat(self._name, self.address, self._room(), held, frozenset(self._taking), released, self._leaving)
        sent = time.monotonic()
        orders, seconds, self._pause = await self._leases.beat(beat)
        self._holding.answered(sent, seconds)
        self._released -= released
        self._follow(orders)

    def _follow(self, orders: Orders) -> None:
        """Begins to do what it is told. It takes long to finish a chunk, or to read a session, and leases have to be renewed meanwhile."""
        for session in self._kept():
            if session.live.id in orders.drop:
                self._do(self.sessions.drop(session))
            elif session.live.id in orders.give and session.live.id not in self._giving:
                self._giving.add(session.live.id)
                self._do(self._give(session))
        for id in set(orders.take) - self._taking:
            self._taking.add(id)
            self._do(self._take(id))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, id: str) -> None:
        try:
            await self.sessions.revive(id)
        except (Error, OSError) as error:
            print(f"lolrt: session {id} cannot go on here: {printable(str(error))}", file=sys.stderr)
        finally:
            self._taking.discard(id)

    async def _give(self, session: Session) -> None:
        try:
            await self.sessions.leave(session, "moved")
            self._released.add(session.live.id)
        finally:
            self._giving.discard(session.live.id)

    async def _leave(self, seconds: float) -> None:
        self._leaving, end = True, time.monotonic() + seconds
        while self._kept() and time.monotonic() < end:
            await asyncio.sleep(LEAVE_SECONDS)
        await asyncio.gather(*[self._give(session) for session in self._kept()], return_exceptions=True)
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await self._beat()
        await self.sessions.close()
        self._server.should_exit = True
