"""The sessions of a server: opens, steers and ends them. Used in the event loop's thread; it passes work on to the engine's thread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from lolrt.engine.kv_window import Window
from lolrt.errors import Error, printable
from lolrt.models.dit import CausalDiT
from lolrt.pipeline import Pipeline
from lolrt.positions.rope import Rope
from lolrt.serve.describe import describe, gauges
from lolrt.serve.ended import Ended
from lolrt.serve.engine_thread import EngineThread
from lolrt.serve.errors import ClientLimitError, ConflictError, MovedError, NoRoomError, NotFoundError, UnavailableError
from lolrt.serve.factory import Factory, Place
from lolrt.serve.hub import ELSEWHERE, Fragment, Hub, State
from lolrt.serve.live import Live, Made
from lolrt.serve.metrics import Metrics
from lolrt.serve.protocol import Branch, Interact, Stream, with_options
from lolrt.serve.settings import Settings
from lolrt.serve.state import Interaction, Keeper, Store
from lolrt.session.config import StreamConfig
from lolrt.session.snapshot import Snapshot

Result = TypeVar("Result")
# Makes what sessions are kept in, from what is to be called after each write, with whether it succeeded.
Keep = Callable[[Callable[[bool], None]], Keeper]

REAP_SECONDS = 1.0


@dataclass(eq=False)
class Session:
    """A session and its lease."""

    live: Live
    renewed: float = field(default_factory=time.monotonic)
    """The time of the last request for the session, or of its last viewer."""
    pausing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it is paused or goes on, so that the last request decides."""

    @property
    def hub(self) -> Hub:
        return self.live.hub

    @property
    def config(self) -> StreamConfig:
        return self.live.stream.latent_stream.config

    @property
    def expires_in(self) -> float:
        """The seconds until the session ends, unless its lease is renewed before."""
        return self.renewed + self.live.lease_seconds - time.monotonic()

    def renew(self) -> None:
        self.renewed = time.monotonic()


class Sessions:
    def __init__(self, pipe: Pipeline, settings: Settings, keep: Keep | None = None) -> None:
        """keep: makes what sessions are kept in; by default the folder of the settings. Raises `lolrt.Error` if there is no room for one
        session, or if the folder of the state cannot be used."""
        self.pipe, self.settings, self.metrics = pipe, settings, Metrics()
        self.metrics.watch(lambda: gauges(self))
        if keep is None and settings.state is not None:
            keep = functools.partial(Store, settings.state)
        store = None if keep is None else keep(lambda whole: self.metrics.writes.labels("written" if whole else "failed").inc())
        self.factory = Factory(pipe, settings, store)
        self._open: dict[str, Session] = {}
        self._ended: dict[str, Ended] = {}
        """The sessions that ended last, in this order; at most as many as may be open, so that the memory is bounded."""
        self._coming: dict[str, str] = {}
        """The sessions that are being opened: client by id."""
        self._removed: dict[str, asyncio.Future[None]] = {}
        """The sessions that have ended and whose folders are being removed: done when they are gone."""
        self._stay: set[str] = set()
        """The sessions that are on the disk and could not be brought back; no other may be written over them."""
        self._thread = EngineThread(self.factory.engine, settings.ahead_seconds, self)
        self._closing = False
        self._adapting = asyncio.Lock()

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._open.values()))

    @property
    def ready(self) -> bool:
        """Whether new sessions can be opened."""
        return self._thread.is_alive() and not self._closing

    # Beginning and end.

    async def start(self) -> None:
        """Starts the engine's thread, and reads the kept sessions from the disk."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        for id in self.factory.store.ids() if self.factory.store is not None else []:
            try:
                await self.revive(id)
            except (Error, OSError) as error:
                print(f"lolrt: session {id} stays on the disk: {printable(str(error))}", file=sys.stderr)
                self._stay.add(id)
        self._reaper = asyncio.create_task(self._reap())

    async def revive(self, id: str) -> Session:
        """Goes on with a kept session. Raises `lolrt.Error` and OSError."""
        store = self.factory.store
        assert store is not None
        saved = await asyncio.to_thread(store.read, id)
        # Without a look at the limit: the session was admitted, and must not be lost because another server has the room.
        async with self._adapted(self.factory.lora_of(saved.snapshot)):
            live = await self._asked(self._thread.call(lambda: self._added(self.factory.revive(saved))))
        return self._opened(live)

    def _opened(self, live: Live) -> Session:
        session = Session(live)
        self._ended.pop(live.id, None)  # the name is the new one's
        self._open[live.id] = session
        if live.hub.state.name == "ended":  # already
            self._leave_open(session)
        return session

    def _added(self, live: Live) -> Live:
        self._thread.add(live)
        return live

    async def close(self) -> None:
        """Saves the sessions that are kept, informs viewers, and ends the engine's thread."""
        if self._closing:
            return
        self._closing = True
        self._reaper.cancel()
        leaving = list(self)  # some may end by themselves meanwhile
        for session, failure in zip(leaving, await asyncio.gather(*map(self.leave, leaving), return_exceptions=True), strict=True):
            if isinstance(failure, BaseException):
                print(f"lolrt: session {session.live.id} could not be saved: {printable(str(failure))}", file=sys.stderr)
        self._thread.stop()
        await asyncio.to_thread(self._thread.join)
        if self.factory.store is not None:
            await asyncio.to_thread(self.factory.store.close)

    async def leave(self, session: Session, reason: str = "shutdown") -> None:
        """Finishes the chunk that is being made, saves the session if it is kept, and ends it here; what is kept stays."""
        live = session.live

        def leave() -> Future[Future[None]] | None:
            saving = None if live.kept is None else self._thread.save(live)
            self._thread.remove(live)
            return saving

        with contextlib.suppress(NotFoundError):
            saving = await self._asked(self._thread.between_chunks(live, leave))
            if saving is not None:
                encoded: Future[None] = await asyncio.wrap_future(saving)  # type: ignore[arg-type]
                await asyncio.wrap_future(encoded)
        self._gone(live, State("ended", reason))

    async def drop(self, session: Session) -> None:
        """Ends a session that another server has or will have: it is not saved, and what is kept stays."""
        live = session.live
        self._gone(live, State("ended", "moved"))
        with contextlib.suppress(NotFoundError):
            await self._asked(self._thread.call(lambda: self._thread.remove(live)))

    async def _reap(self) -> None:
        """Ends sessions whose lease or lifetime is over."""
        while True:
            slept = time.monotonic()
            await asyncio.sleep(REAP_SECONDS)
            await self._reap_once(time.monotonic() - slept - REAP_SECONDS)

    async def _reap_once(self, stopped: float) -> None:
        """stopped: seconds in which the whole process was, and nobody could ask for anything."""
        for ended in self._ended.values():
            ended.until += stopped
        self._ended = {id: ended for id, ended in self._ended.items() if ended.expires_in > 0}
        most = self.settings.max_lifetime_seconds
        for session in self:
            session.renewed += stopped
            if session.hub.viewers:
                session.renew()
            if most is not None and session.live.age > most:
                await self.end(session, State("ended", "lifetime"))
            elif session.expires_in < 0:
                await self.end(session, State("ended", "expired"))

    # Called in the engine's and the encoder's thread: `lolrt.serve.engine_thread.Listener`.

    def published(self, made: Made, fragment: Fragment, pictures: tuple[bytes, ...]) -> None:
        now, statistics = time.monotonic(), made.live.statistics
        control = None if made.accepted is None else now - made.accepted
        interval = statistics.add(now, fragment.about, control)
        self.metrics.chunk(fragment.about, interval, control)
        if statistics.chunks == 1 and statistics.first_chunk_seconds is not None:
            self.metrics.first_chunk.observe(statistics.first_chunk_seconds)
        live = made.live
        self._loop.call_soon_threadsafe(self._show, live, fragment, pictures)

    def _show(self, live: Live, fragment: Fragment, pictures: tuple[bytes, ...]) -> None:
        gone = live.hub.publish(fragment, pictures)
        if live.kept is not None and gone:
            live.kept.forget(gone)

    def replayed(self, made: Made, same: bool) -> None:
        self.metrics.replayed.labels(str(same).lower()).inc()

    def failed(self, live: Live, error: Exception) -> None:
        if isinstance(error, MovedError):
            self._loop.call_soon_threadsafe(self._gone, live, State("ended", "moved"))
            return
        message = printable(str(error)) if isinstance(error, Error) else f"{type(error).__name__} in the server"
        print(f"lolrt: session {live.id} has failed: {printable(str(error)) or type(error).__name__}", file=sys.stderr)
        self._loop.call_soon_threadsafe(self._forget, live, State("ended", "failed", message))

    def completed(self, live: Live) -> None:
        self._loop.call_soon_threadsafe(self._forget, live, State("ended", "complete"))

    def _forget(self, live: Live, state: State) -> None:
        """A session has ended: nothing of it is kept."""
        if live.hub.state.name != "ended" and live.kept is not None:
            id, removed = live.id, asyncio.wrap_future(live.kept.remove())
            self._removed[id] = removed
            removed.add_done_callback(lambda _: self._removed.pop(id, None))
        self._gone(live, state)

    def _gone(self, live: Live, state: State) -> None:
        """A session is no longer here."""
        if live.hub.state.name != "ended":
            self.metrics.ended.labels(state.reason).inc()
        live.hub.tell(state)
        session = self._open.get(live.id)
        if session is not None and session.live is live:  # else it is a new session with the same name
            self._leave_open(session)

    def _leave_open(self, session: Session) -> None:
        """Takes a session that has ended out of those that are open. What viewers can read is kept, unless they find it elsewhere."""
        live = session.live
        del self._open[live.id]
        if live.hub.state.reason not in ELSEWHERE and not live.background:
            self._ended[live.id] = Ended(live.hub, session.config, describe(self, session))
            while len(self._ended) > self.settings.max_sessions:
                del self._ended[next(iter(self._ended))]

    # Called in the event loop's thread.

    def get(self, id: str) -> Session:
        """The session with this id; renews its lease. Raises `NotFoundError`."""
        session = self._open.get(id)
        if session is None:
            raise NotFoundError("there is no such session: it has ended, or the server has restarted")
        session.renew()
        return session

    def find(self, id: str) -> Session | Ended:
        """The session with this id, for those who only look: also if it has ended a moment ago. Raises `NotFoundError`."""
        return self._ended.get(id) or self.get(id)

    async def open(
        self, wanted: Stream, client: str = "", *, start: Tensor | None = None, frames: int | None = None,
        background: bool = False, lasts: bool = True,
    ) -> Session:  # fmt: skip
        """Opens a session. start: uint8 [height, width, 3], its first frame. frames: the number of video frames after which it is
        complete. background: it gives way to all others. lasts: whether it is kept on the disk. Raises `lolrt.Error`, `ConflictError` and
        `NoRoomError`."""
        rope: Rope = with_options(self.pipe.rope, wanted.rope)
        window: Window = with_options(self.pipe.window, wanted.window)
        self.factory.check_fits(window)
        lora = None if wanted.lora is None else self.factory.files_of(wanted.lora)
        await asyncio.to_thread(self.pipe.encode_text, wanted.prompt)
        place = self._place(wanted, client, background, lasts)

        def make() -> Live:
            return self.factory.new(
                place, wanted.prompt, seed=wanted.seed, rope=rope, window=window, lora=lora, probe=wanted.probe, start=start, frames=frames
            )

        return await self._add(place, lambda: self._thread.call(lambda: self._added(make())), lora)

    @contextlib.asynccontextmanager
    async def _adapted(self, lora: list[str] | None, *, limited: bool = False) -> AsyncIterator[CausalDiT | None]:
        """Merges adapters outside the engine's thread, because it takes long, and holds the model until the session has it. limited: by
        `Settings.max_loras`; raises `NoRoomError`."""
        if lora is None:
            yield None
            return
        async with self._adapting:
            if limited:
                self.factory.check_room_for(lora)
            dit = await asyncio.to_thread(self.factory.engine.with_lora, lora)
            yield dit

    async def branch(self, session: Session, wanted: Branch, client: str = "") -> Session:
        """Opens a session that goes on from where another one is."""
        place, source = self._place(wanted, client), session.live

        def make() -> Live:
            return self._added(self.factory.branch(place, source, self._thread.encoded(source).result()))

        return await self._add(place, lambda: self._thread.between_chunks(source, make))

    def _place(self, wanted: Stream | Branch, client: str, background: bool = False, lasts: bool = True) -> Place:
        """Checks that a session may be opened, and gives it an id. Raises `ConflictError` and `NoRoomError`."""
        id, most, own = wanted.session_id or uuid.uuid4().hex, self.settings.max_sessions, self.settings.max_client_sessions
        if self._closing:
            raise UnavailableError("the server is ending", "ending")
        if id in self._open or id in self._coming:
            raise ConflictError(f"session {id} exists already: choose another id, or leave it out", "session_exists")
        if id in self._stay:
            raise ConflictError(f"session {id} is on the disk, and could not be brought back: choose another id", "session_exists")
        clients = [session.live.client for session in self] + list(self._coming.values())
        if len(clients) >= most:
            raise NoRoomError(f"{most} sessions are open, and there is room for no more: close one, or wait")
        if own is not None and client and clients.count(client) >= own:
            raise ClientLimitError(f"you have {own} sessions open, and may have no more: close one")
        return Place(id, wanted.lease_seconds or self.settings.lease_seconds, client, background, lasts)

    async def _add(self, place: Place, ask: Callable[[], Future[Live]], lora: list[str] | None = None) -> Session:
        self._coming[place.id] = place.client
        try:
            await self._until_removed(place.id)
            async with self._adapted(lora, limited=True):
                live = await self._asked(ask())
        finally:
            del self._coming[place.id]
        self.metrics.opened.inc()
        return self._opened(live)

    async def end(self, session: Session, state: State) -> None:
        live = session.live
        self._forget(live, state)
        with contextlib.suppress(NotFoundError):
            await self._asked(self._thread.call(lambda: self._thread.remove(live)))
        await self._until_removed(live.id)

    async def _until_removed(self, id: str) -> None:
        """Waits until nothing is left on the disk of a session with this id that has ended: another one would have the same folder."""
        if id in self._removed:
            await asyncio.wait([self._removed[id]])

    async def interact(self, session: Session, asked: Interact) -> Interaction:
        """Gives a session a new prompt. Raises `lolrt.PromptError`, `ConflictError`, `NoRoomError`, and `UnavailableError` if the session
        has moved."""
        interaction = Interaction(asked.event_id or uuid.uuid4().hex, asked.event.prompt, asked.transition_chunks or 1, asked.sequence)
        embeds = await asyncio.to_thread(self.pipe.encode_text, interaction.prompt)
        live = session.live

        def accept() -> Interaction:
            try:
                return live.accept(interaction, embeds)
            except MovedError as error:
                self.failed(live, error)
                self._thread.remove(live)
                raise UnavailableError("another server has the session now: ask again", "moving") from error

        return await self._asked(self._thread.call(accept))

    async def pause(self, session: Session, paused: bool) -> None:
        """Pauses a session, after the chunk that is being made, or lets it go on."""
        live = session.live

        def pause() -> Future[int]:
            live.pause(paused)
            return self._thread.encoded(live)

        async with session.pausing:
            if paused != (session.hub.state.name == "paused"):
                encoded: Future[int] = await self._asked(self._thread.between_chunks(live, pause))
                await asyncio.wrap_future(encoded)  # viewers get the last chunk before the new state
                session.hub.tell(State("paused" if paused else "live"))

    async def snapshot(self, session: Session) -> Snapshot:
        return await self._asked(self._thread.between_chunks(session.live, session.live.stream.snapshot))

    async def _asked(self, answer: Future[Result]) -> Result:
        try:
            return await asyncio.wrap_future(answer)
        except asyncio.CancelledError:
            if answer.cancelled():
                raise NotFoundError("the session has ended") from None
            raise
