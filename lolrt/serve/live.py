"""A live session: a stream, and all that the engine's thread knows about it. Used only in that thread, except where noted."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lolrt.serve.encoding import ChunkEncoder
from lolrt.serve.errors import ConflictError, NoRoomError
from lolrt.serve.hub import Hub
from lolrt.serve.state import Interaction, Kept, Record
from lolrt.serve.statistics import Statistics
from lolrt.session.stream import Chunk, Stream

Result = TypeVar("Result")

# Deadlines assume a viewer who buffers so much video: the first chunk is shown so many seconds after it is made.
START_BUFFER_SECONDS = 0.2
# The most interactions that wait for the next chunk, and the most that are remembered so that none is applied twice.
MOST_WAITING = 16
MOST_REMEMBERED = 1000


class Call(Generic[Result]):
    """A function that one thread asks another to run, and the future of its result."""

    def __init__(self, ask: Callable[[], Result]) -> None:
        self._ask = ask
        self.answer: Future[Result] = Future()

    def run(self) -> None:
        if self.answer.set_running_or_notify_cancel():
            try:
                self.answer.set_result(self._ask())
            except BaseException as error:
                self.answer.set_exception(error)


@dataclass(frozen=True)
class Waiting:
    """An interaction that waits. It applies to the first chunk whose number is `chunk` or more."""

    interaction: Interaction
    embeds: Tensor
    chunk: int
    noted: bool = False
    """Whether it is in the journal."""
    accepted: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Made:
    """A chunk that is made and not yet encoded."""

    live: Live
    sequence: int
    frames: Callable[[], Tensor]
    """Waits for the frames to arrive from the GPU, and returns them. Raises `lolrt.Error` when they are not finite."""
    begun: float
    """The time when its first pass began, by the monotonic clock."""
    deadline: float | None
    accepted: float | None
    """The time when the newest interaction was accepted, if this is the first chunk that follows it."""
    about: dict[str, Any]


@dataclass(eq=False)
class Live:
    id: str
    stream: Stream
    hub: Hub
    encoder: ChunkEncoder
    fps: int
    lease_seconds: float
    client: str = ""
    """The address of the client that opened the session."""
    created: float = field(default_factory=time.time)
    opened: float = field(default_factory=time.monotonic)
    """The same time, by the monotonic clock."""
    background: bool = False
    """Whether the session gives way to all others, and has no deadlines."""
    sequence: int = 0
    """The sequence number of the next chunk."""
    frames: int = 0
    """The number of video frames before the next chunk."""
    frames_left: int | None = None
    """The number of video frames until the session is complete; None: it has no end."""
    paused: bool = False
    ended: bool = False
    broken: bool = False
    """Whether a chunk could not be encoded. Used in the encoder's thread."""
    due: float | None = None
    """The deadline of the next chunk, by the monotonic clock; None: as soon as possible."""
    interactions: int = 0
    """The number of interactions so far."""
    known: OrderedDict[str, Interaction] = field(default_factory=OrderedDict)
    """The newest interactions, by their ids."""
    waiting: deque[Waiting] = field(default_factory=deque)
    active: list[str] = field(default_factory=list)
    """The ids of the interactions whose prompt switch is not complete."""
    between: deque[Call[Any]] = field(default_factory=deque)
    """Functions to run between two chunks."""
    kept: Kept | None = None
    """The session's folder on the disk, if it is kept."""
    replay: dict[int, int] = field(default_factory=dict)
    """The chunks that were sent before the server restarted and have to be made again: CRC-32 of their bytes, by sequence number."""
    statistics: Statistics = field(default_factory=Statistics)
    _started: list[str] = field(default_factory=list)
    _accepted: float | None = None
    _begun: float = 0.0
    _stages: dict[str, float] = field(default_factory=dict)
    _made_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=8))

    @property
    def age(self) -> float:
        """Seconds since it was created."""
        return time.monotonic() - self.opened

    @property
    def between_chunks(self) -> bool:
        return self.stream.latent_stream.session.between_chunks and not self.stream.undecoded

    # Prompts.

    def accept(self, asked: Interaction, embeds: Tensor) -> Interaction:
        """Accepts an interaction and returns it with its number. It is then on the disk, if the session is kept, with the chunk that will
        be the first to follow it. An interaction that was accepted before is returned as it is. Raises `ConflictError`, `NoRoomError` and
        `MovedError`."""
        before = self.known.get(asked.event_id)
        if before is not None:
            if (before.prompt, before.transition_chunks) != (asked.prompt, asked.transition_chunks):
                raise ConflictError(
                    f"event {asked.event_id!r} was used before, for another interaction: give each its own id", "event_id_conflict"
                )
            return before
        if asked.sequence not in (None, self.interactions):
            raise ConflictError(
                f"the interaction has the number {asked.sequence}; expected {self.interactions}, the next one", "sequence_conflict"
            )
        if len(self.waiting) >= MOST_WAITING:
            raise NoRoomError(f"{len(self.waiting)} interactions wait for the next chunk already")
        taken = Interaction(asked.event_id, asked.prompt, asked.transition_chunks, self.interactions)
        self.interactions += 1
        self.remember(taken)
        chunk = max(self.sequence if self.between_chunks else self.sequence + 1, max(self.replay, default=-1) + 1)
        noted = self.kept is not None and self.kept.note(chunk, taken)
        self.waiting.append(Waiting(taken, embeds, chunk, noted))
        return taken

    def remember(self, interaction: Interaction) -> None:
        self.known[interaction.event_id] = interaction
        while len(self.known) > MOST_REMEMBERED:
            self.known.popitem(last=False)

    def begin(self) -> None:
        """Applies the interactions that wait for the next chunk. To be called before the chunk's first pass."""
        while self.waiting and self.waiting[0].chunk <= self.sequence:
            one = self.waiting.popleft()
            if self.kept is not None and not one.noted:
                self.kept.note(self.sequence, one.interaction)
            self.stream.latent_stream.set_prompt(one.embeds, over_chunks=one.interaction.transition_chunks)
            self.stream.prompt = one.interaction.prompt
            self._started.append(one.interaction.event_id)
            self.active = [one.interaction.event_id]
            self._accepted = one.accepted
        self._begun, self._stages = time.monotonic(), {}

    # Time.

    def wait_seconds(self, now: float, most_ahead: float) -> float | None:
        """The seconds until the next chunk should begin; None: unknown. A chunk begins earlier than its deadline by the time that recent
        chunks took, and a little more; at most `most_ahead` earlier."""
        if self.paused or self.frames_left == 0:
            return None
        lead = min(most_ahead, 0.1 + 1.25 * max(self._made_seconds, default=0.0))
        return 0.0 if self.due is None else self.due - lead - now

    def pause(self, paused: bool) -> None:
        """Pauses the session or lets it go on. After a pause its viewers have no video left, so deadlines start again with the next
        chunk."""
        self.paused, self.due = paused, None
        if self.kept is not None:
            self.kept.change()

    def spend(self, stage: str, seconds: float) -> None:
        self._stages[stage] = self._stages.get(stage, 0.0) + seconds

    # Chunks.

    def finish(self) -> Made:
        """Decodes the chunk that the engine has just finished."""
        decoding = time.monotonic()
        chunk = self.stream.decode_next()
        now, frames = time.monotonic(), chunk.n_frames
        self.spend("decode", now - decoding)
        if self.frames_left is not None:
            frames = min(frames, self.frames_left)
            self.frames_left -= frames
        seconds, deadline = frames / self.fps, self.due
        if not self.background and self.sequence not in self.replay:
            # A late chunk moves all later deadlines: its viewers have waited, and do not catch up.
            self.due = (now + START_BUFFER_SECONDS if deadline is None else max(deadline, now)) + seconds
        self._made_seconds.append(now - self._begun)
        about, accepted = self._about(chunk, frames, seconds), self._accepted
        self._started, self._accepted = [], None
        made = Made(self, self.sequence, lambda: chunk.frames[:frames], self._begun, deadline, accepted, about)
        self.sequence += 1
        self.frames += frames
        return made

    def _about(self, chunk: Chunk, frames: int, seconds: float) -> dict[str, Any]:
        active = self.active
        if chunk.switch is not None:
            self.active = []
        return {
            "num_frames": frames,
            "first_frame": self.frames,
            "first_latent_frame": chunk.first_frame,
            "seconds": seconds,
            "prompt": self.stream.prompt,
            "started_event_ids": self._started,
            "active_event_ids": active,
            "completed_event_ids": active if chunk.switch is not None else [],
            "sink_mass": sink_mass(chunk),
            "stage_seconds": self._stages,
        }

    def record(self) -> Record:
        """The state that a snapshot of the stream does not hold. To be called between two chunks."""
        return Record(
            id=self.id, created=self.created, lease_seconds=self.lease_seconds, client=self.client, sequence=self.sequence,
            frames=self.frames, frames_left=self.frames_left, paused=self.paused, interactions=self.interactions,
            known=[asdict(one) for one in self.known.values()], waiting=[one.interaction.event_id for one in self.waiting],
            active=self.active,
        )  # fmt: skip


def sink_mass(chunk: Chunk) -> list[list[float]] | None:
    """The attention mass on the sinks, [layers][heads], mean over a chunk's frames, rounded to four digits; None if it was not measured."""
    if chunk.mass is None:
        return None
    mass = chunk.mass[..., : chunk.sink_frames].sum(-1).mean(-1)
    return [[round(value, 4) for value in heads] for heads in torch.nan_to_num(mass).tolist()]
