"""Makes live sessions: new ones, branches, and sessions read from the disk. Used in the engine's thread."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lolrt.engine.kv_window import Window
from lolrt.errors import Error
from lolrt.pipeline import Pipeline
from lolrt.positions.rope import Rope
from lolrt.serve.encoding import ChunkEncoder, init_segment, mime_type
from lolrt.serve.errors import NoRoomError, RequestError, UnavailableError
from lolrt.serve.hub import Hub, State
from lolrt.serve.live import Live, Waiting
from lolrt.serve.protocol import Adapter
from lolrt.serve.settings import Settings
from lolrt.serve.state import Interaction, Keeper, Saved
from lolrt.session.config import StreamConfig, from_plain
from lolrt.session.snapshot import Snapshot
from lolrt.session.stream import Stream


@dataclass(frozen=True)
class Place:
    """The id, lease and owner of a session that is to be opened."""

    id: str
    lease_seconds: float
    client: str = ""
    background: bool = False
    lasts: bool = True
    """Whether the session is kept on the disk, if the server keeps sessions."""


class Factory:
    def __init__(self, pipe: Pipeline, settings: Settings, store: Keeper | None) -> None:
        """store: where sessions are kept; the frames of a kept session do not depend on the sessions that share the engine, because others
        may share it when it comes back. Raises `lolrt.Error` if there is not enough memory for one session, and for adapters of the same
        name."""
        self.pipe, self._settings, self.store = pipe, settings, store
        own = {name.rpartition(":")[0] for name in pipe.dit.adapters}
        if same := sorted(path.name for path in settings.lora_modules.values() if path.name in own):
            raise Error(
                f"{same[0]} is offered to clients, and is the name of a file that all sessions have: give the offered one another name"
            )
        self.engine = pipe.engine(settings.max_sessions, kv_dtype=settings.kv_dtype, batch_invariant=store is not None)
        self.init = init_segment(pipe.height, pipe.width, pipe.fps, settings.crf)
        self.mime = mime_type(self.init)

    def new(
        self, place: Place, prompt: str, *, seed: int, rope: Rope, window: Window, lora: list[str] | None, probe: bool,
        start: Tensor | None, frames: int | None,
    ) -> Live:  # fmt: skip
        """A new session. start: uint8 [height, width, 3], its first frame. frames: the number of video frames after which it is complete.
        Raises `lolrt.Error`."""
        self._check_room(window)
        latents = None if start is None else self.pipe.encode_video([start])
        stream = self.engine.open(prompt, seed=seed, rope=rope, window=window, lora=lora, probe=probe, start=latents)
        with self._closed_on_error(stream):
            live = self._live(place, stream)
        live.frames_left = frames
        return live

    def branch(self, place: Place, source: Live, fragments: int) -> Live:
        """A new session that goes on from where `source` is, between two chunks. fragments: the number of fragments of the source so
        far."""
        stream = self._restored(source.stream.snapshot())
        with self._closed_on_error(stream):
            live = self._live(place, stream, source.sequence, source.frames, fragments)
        live.active = source.active
        return live

    def revive(self, saved: Saved) -> Live:
        """A session read from the disk. It goes on from its snapshot, and has all the chunks that its viewers may still ask for."""
        record = saved.record
        end = max(saved.fragments[-1].sequence + 1 if saved.fragments else 0, record.sequence)
        fragments = saved.fragments if saved.fragments and saved.fragments[-1].sequence + 1 == end else []
        stream = self._restored(saved.snapshot)
        with self._closed_on_error(stream):
            place = Place(record.id, record.lease_seconds, record.client)
            live = self._live(place, stream, record.sequence, record.frames, record.fragments)
            live.created, live.frames_left, live.paused, live.active = record.created, record.frames_left, record.paused, record.active
            live.opened -= max(0.0, time.time() - record.created)
            live.interactions = record.interactions
            for plain in record.known:
                live.remember(Interaction(**plain))
            self._take_waiting(live, saved, end)
        live.replay = {one.sequence: zlib.crc32(one.data) for one in fragments if one.sequence >= record.sequence}
        live.hub = self._hub(live.stream, fragments[0].sequence if fragments else end)
        assert live.kept is not None
        live.kept.take(replace(saved, fragments=fragments))
        for fragment in fragments:
            live.kept.forget(live.hub.publish(fragment))
        live.hub.tell(State("paused" if live.paused else "live"))
        return live

    def _take_waiting(self, live: Live, saved: Saved, end: int) -> None:
        """Adds the interactions that are newer than the snapshot: first the ones in the journal, at the chunks that followed them; then
        the ones that were still waiting, whose effect no viewer has seen."""
        for chunk, interaction in saved.journal:
            live.remember(interaction)
            live.interactions = max(live.interactions, (interaction.sequence or 0) + 1)
            live.waiting.append(Waiting(interaction, self.pipe.encode_text(interaction.prompt), chunk, noted=True))
        noted = {interaction.event_id for _, interaction in saved.journal}
        for event_id in saved.record.waiting:
            if event_id in live.known and event_id not in noted:
                interaction = live.known[event_id]
                live.waiting.append(Waiting(interaction, self.pipe.encode_text(interaction.prompt), end))

    def _restored(self, snapshot: Snapshot) -> Stream:
        config = from_plain(StreamConfig, snapshot.config)
        self._check_room(config.window)
        stream = self.engine.open(
            snapshot.prompt or "", seed=config.seed or 0, rope=config.rope, window=config.window, sampler=config.sampler,
            probe=config.probe, start_frame=config.start_frame, lora=self.lora_of(snapshot),
        )  # fmt: skip
        with self._closed_on_error(stream):
            stream.restore(snapshot)
        return stream

    @contextlib.contextmanager
    def _closed_on_error(self, stream: Stream) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.engine.close(stream)
            raise

    def _live(self, place: Place, stream: Stream, sequence: int = 0, frames: int = 0, fragments: int = 0) -> Live:
        pipe = self.pipe
        encoder = ChunkEncoder(pipe.height, pipe.width, pipe.fps, self._settings.crf, frames, fragments)
        live = Live(place.id, stream, self._hub(stream, sequence), encoder, pipe.fps, place.lease_seconds, place.client)
        live.background, live.sequence, live.frames = place.background, sequence, frames
        if self.store is not None and place.lasts:
            try:
                live.kept = self.store.kept(place.id, self._settings.save_every_seconds)
            except OSError as error:
                raise UnavailableError(f"the session cannot be kept: {error.strerror}", "storage") from error
        return live

    def _hub(self, stream: Stream, first: int) -> Hub:
        chunk_frames = stream.latent_stream.window.chunk_frames
        return Hub(first, chunk_frames * self.pipe.vae.config.temporal_factor / self.pipe.fps, self._settings.dvr_seconds)

    def files_of(self, adapters: Sequence[Adapter]) -> list[str]:
        """The files of adapters, with their strengths. Raises `RequestError` for those that the server does not offer."""
        offered = self._settings.lora_modules
        for one in adapters:
            if one.name not in offered:
                there = f"it offers {', '.join(sorted(offered))}" if offered else "start it with --lora-module NAME=FILE"
                raise RequestError(f"this server has no adapters named {one.name!r}: {there}", "unsupported_lora")
        return [f"{offered[one.name]}:{one.scale:g}" for one in adapters]  # the digits that a snapshot names

    def lora_of(self, snapshot: Snapshot) -> list[str] | None:
        """The files of the adapters that a saved session had, of those that the server offers; None if it had the server's own."""
        names = snapshot.model.get("lora", [])
        if names == list(self.pipe.dit.adapters):
            return None
        offered = {path.name: path for path in self._settings.lora_modules.values()}
        given = [name.rpartition(":") for name in names]
        return [f"{offered[name]}:{strength}" for name, _, strength in given if name in offered]

    def check_room_for(self, lora: list[str]) -> None:
        """Raises `NoRoomError` if a model with these adapters would be one too many."""
        others = {id(stream.latent_stream.dit) for stream in self.engine.streams} - {id(self.pipe.dit), id(self.engine.adapted(lora))}
        if len(others) >= self._settings.max_loras:
            raise NoRoomError(f"sessions with {len(others)} other choices of adapters are open, and there is room for no more: wait")

    def check_fits(self, window: Window) -> None:
        """Raises `RequestError` if no session of this server can have such a window."""
        most = self.engine.engine.pool.pages.shape[1]
        if window.pool_pages > most:
            raise RequestError(f"the window and its memory bank have {window.pool_pages} frames, and the server has room for {most}")

    def _check_room(self, window: Window) -> None:
        free = self.engine.engine.pool.unreserved_pages
        if window.pool_pages > free:
            raise NoRoomError(f"the session needs {window.pool_pages} pages of the KV cache, and {free} are free: close one, or wait")
