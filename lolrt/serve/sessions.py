"""The sessions of a server, as the event loop sees them: who may open one, how long it lives, and what it is asked to do."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from lolrt.engine.kv_window import Window
from lolrt.errors import Error
from lolrt.pipeline import Pipeline
from lolrt.positions.rope import Rope
from lolrt.serve.encoding import ChunkEncoder, init_segment, mime_type
from lolrt.serve.engine_thread import EngineThread
from lolrt.serve.errors import ConflictError, NoRoomError, NotFoundError, RequestError
from lolrt.serve.hub import Fragment, Hub, State
from lolrt.serve.live import Interaction, Live
from lolrt.serve.protocol import Branch, Interact, Stream, with_options
from lolrt.serve.settings import Settings
from lolrt.session.config import StreamConfig, from_plain, to_plain
from lolrt.session.snapshot import Snapshot
from lolrt.session.stream import Stream as VideoStream

Result = TypeVar("Result")

REAP_SECONDS = 1.0


@dataclass(eq=False)
class Session:
    """A session and its lease."""

    live: Live
    lease_seconds: float
    expires: float
    """By the monotonic clock, unless it is renewed before."""

    @property
    def hub(self) -> Hub:
        return self.live.hub

    def renew(self) -> None:
        self.expires = time.monotonic() + self.lease_seconds


class Sessions:
    def __init__(self, pipe: Pipeline, settings: Settings) -> None:
        self.pipe, self.settings = pipe, settings
        self.init = init_segment(pipe.height, pipe.width, pipe.fps, settings.crf)
        self.mime = mime_type(self.init)
        self._open: dict[str, Session] = {}
        self._coming: set[str] = set()
        """Sessions that are being opened."""
        self._engine = pipe.engine(settings.max_sessions)
        self._chunk_seconds = pipe.window.chunk_frames * pipe.vae.config.temporal_factor / pipe.fps

    async def run(self) -> None:
        """Starts the engine's thread, and ends sessions whose time is over, until it is cancelled."""
        self._loop = asyncio.get_running_loop()
        self._thread = EngineThread(self._engine, self.settings.ahead_seconds, self._published, self._failed, self._completed)
        self._thread.start()
        try:
            while True:
                await asyncio.sleep(REAP_SECONDS)
                for session in list(self._open.values()):
                    if session.hub.viewers:
                        session.renew()
                    elif session.expires < time.monotonic():
                        await self.end(session, State("ended", "expired"))
        finally:
            for session in list(self._open.values()):
                session.hub.tell(State("ended", "shutdown"))
            self._thread.stop()
            await asyncio.to_thread(self._thread.join)

    # From the engine's threads.

    def _published(self, live: Live, fragment: Fragment) -> None:
        self._loop.call_soon_threadsafe(live.hub.publish, fragment)

    def _failed(self, live: Live, error: Exception) -> None:
        message = str(error) if isinstance(error, Error) else f"{type(error).__name__} in the server"
        self._thread.call(lambda: self._thread.remove(live))
        self._loop.call_soon_threadsafe(self._forget, live, State("ended", "failed", message))

    def _completed(self, live: Live) -> None:
        self._thread.call(lambda: self._thread.remove(live))
        self._loop.call_soon_threadsafe(self._forget, live, State("ended", "complete"))

    def _forget(self, live: Live, state: State) -> None:
        self._open.pop(live.id, None)
        live.hub.tell(state)

    # From the event loop.

    def __iter__(self) -> Any:
        return iter(list(self._open.values()))

    def get(self, id: str) -> Session:
        """Renews its lease. Raises `NotFoundError`."""
        session = self._open.get(id)
        if session is None:
            raise NotFoundError("there is no such session: it has ended, or the server has been started anew")
        session.renew()
        return session

    async def open(self, wanted: Stream, frames: int | None = None) -> Session:
        """frames: video frames after which it is complete. Raises `lolrt.Error`, `ConflictError` and `NoRoomError`."""
        rope: Rope = with_options(Rope(), wanted.rope)
        window: Window = with_options(self.pipe.window, wanted.window)
        self._check_fits(window)
        await asyncio.to_thread(self.pipe.encode_text, wanted.prompt)

        def make() -> VideoStream:
            self._check_room(window)
            return self._engine.open(wanted.prompt, seed=wanted.seed, rope=rope, window=window, probe=wanted.probe)

        return await self._add(make, wanted.session_id, wanted.lease_seconds, lambda live: setattr(live, "frames_left", frames))

    async def branch(self, session: Session, wanted: Branch) -> Session:
        """A session that goes on from where another is."""
        source = session.live

        def make() -> VideoStream:
            return self._restored(source.stream.snapshot())

        def follow(live: Live) -> None:
            live.sequence, live.frames = source.sequence, source.frames
            live.encoder = self._encoder(source.frames, source.encoder.fragments)
            live.hub = self._hub(source.sequence)

        return await self._add(make, wanted.session_id, wanted.lease_seconds, follow, source)

    def _restored(self, snapshot: Snapshot) -> VideoStream:
        config = from_plain(StreamConfig, snapshot.config)
        self._check_room(config.window)
        stream = self._engine.open(
            snapshot.prompt or "", seed=config.seed or 0, rope=config.rope, window=config.window, sampler=config.sampler,
            probe=config.probe, start_frame=config.start_frame,
        )  # fmt: skip
        try:
            stream.restore(snapshot)
        except BaseException:
            self._engine.close(stream)
            raise
        return stream

    def _check_fits(self, window: Window) -> None:
        most = self._engine.engine.pool.pages.shape[1]
        if window.pool_pages > most:
            raise RequestError(f"the window and its memory bank have {window.pool_pages} frames, and the server has room for {most}")

    def _check_room(self, window: Window) -> None:
        free = self._engine.engine.pool.unreserved_pages
        if window.pool_pages > free:
            raise NoRoomError(f"the session needs {window.pool_pages} pages of the KV cache, and {free} are free: close one, or wait")

    def _encoder(self, frames: int = 0, fragments: int = 0) -> ChunkEncoder:
        return ChunkEncoder(self.pipe.height, self.pipe.width, self.pipe.fps, self.settings.crf, frames, fragments)

    def _hub(self, first: int = 0) -> Hub:
        return Hub(first, self._chunk_seconds, self.settings.dvr_seconds)

    async def _add(
        self, make: Callable[[], VideoStream], id: str | None, lease_seconds: float | None, prepare: Callable[[Live], None],
        source: Live | None = None,
    ) -> Session:  # fmt: skip
        id = id or uuid.uuid4().hex
        if id in self._open or id in self._coming:
            raise ConflictError(f"session {id} is there already: choose another id, or leave it out", "session_exists")
        if len(self._open) + len(self._coming) >= self.settings.max_sessions:
            raise NoRoomError(f"{self.settings.max_sessions} sessions are open, and there is room for no more: close one, or wait")
        self._coming.add(id)

        def add() -> Live:
            live = Live(id, make(), self._hub(), self._encoder(), self.pipe.fps)
            prepare(live)
            self._thread.add(live)
            return live

        try:
            live = await self._asked(self._thread.call(add) if source is None else self._thread.between_chunks(source, add))
        finally:
            self._coming.discard(id)
        session = Session(live, lease_seconds or self.settings.lease_seconds, 0.0)
        session.renew()
        if live.hub.state.name != "ended":  # it may have been quicker than we
            self._open[id] = session
        return session

    async def end(self, session: Session, state: State) -> None:
        self._forget(session.live, state)
        await self._asked(self._thread.call(lambda: self._thread.remove(session.live)))

    async def interact(self, session: Session, asked: Interact) -> Interaction:
        """Raises `lolrt.PromptError`, `ConflictError` and `NoRoomError`."""
        interaction = Interaction(asked.event_id or uuid.uuid4().hex, asked.event.prompt, asked.transition_chunks or 1, asked.sequence)
        embeds = await asyncio.to_thread(self.pipe.encode_text, interaction.prompt)
        return await self._asked(self._thread.call(lambda: session.live.accept(interaction, embeds)))

    async def pause(self, session: Session) -> None:
        await self._asked(self._thread.between_chunks(session.live, session.live.pause))
        session.hub.tell(State("paused"))

    async def go_on(self, session: Session) -> None:
        await self._asked(self._thread.between_chunks(session.live, session.live.go_on))
        session.hub.tell(State("live"))

    async def snapshot(self, session: Session) -> Snapshot:
        return await self._asked(self._thread.between_chunks(session.live, session.live.stream.snapshot))

    async def _asked(self, answer: Future[Result]) -> Result:
        try:
            return await asyncio.wrap_future(answer)
        except asyncio.CancelledError:
            if answer.cancelled():
                raise NotFoundError("the session has ended") from None
            raise

    def describe(self, session: Session) -> dict[str, Any]:
        """A session as JSON takes it."""
        live, pipe, config = session.live, self.pipe, session.live.stream.latent_stream.config
        return {
            "id": live.id,
            "state": session.hub.state.name,
            "prompt": live.stream.prompt,
            "seed": config.seed,
            "width": pipe.width,
            "height": pipe.height,
            "fps": pipe.fps,
            "temporal_factor": pipe.vae.config.temporal_factor,
            "rope": to_plain(config.rope),
            "window": {**to_plain(config.window), "pages": config.window.pages},
            "probe": config.probe,
            "next_sequence": session.hub.next_sequence,
            "next_interaction": live.interactions,
            "lease_seconds": session.lease_seconds,
            "expires_in": round(max(0.0, session.expires - time.monotonic()), 1),
            "viewers": session.hub.viewers,
        }

    def radians(self, session: Session) -> list[list[float]] | None:
        """Frequencies of the heads, [heads][pairs] in radians per latent frame; None where sinks do not fall behind."""
        config, dit = session.live.stream.latent_stream.config, self.pipe.dit.config
        if config.rope.positions != "absolute" or not config.window.sink_frames:
            return None
        return config.rope.radians(dit.num_layers, dit.num_heads, dit.temporal_pairs).reshape(-1, dit.temporal_pairs).tolist()
