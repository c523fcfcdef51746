"""A live session: a stream, and all that the engine's thread knows of it. Used in that thread alone, but where it says otherwise."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lolrt.serve.encoding import ChunkEncoder
from lolrt.serve.errors import ConflictError, NoRoomError
from lolrt.serve.hub import Hub
from lolrt.session.stream import Chunk, Stream

Result = TypeVar("Result")

# Seconds from a first chunk until it is shown: what the viewer has in hand by whom deadlines are counted.
START_BUFFER_SECONDS = 0.25
# Interactions that wait for the chunk in hand, and those that are remembered so that none happens twice.
MOST_WAITING = 16
MOST_REMEMBERED = 1000


class Call(Generic[Result]):
    """What one thread asks another to do, and its answer."""

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
class Interaction:
    event_id: str
    prompt: str
    transition_chunks: int
    sequence: int | None = None
    """Which interaction of its session it has to be, or became."""


@dataclass(frozen=True)
class Made:
    """A chunk that was made, on its way to be encoded."""

    live: Live
    sequence: int
    frames: Callable[[], Tensor]
    """Waits for them, where they are still on their way; raises `lolrt.Error` when they are not finite."""
    begun: float
    """When its first pass began, by the monotonic clock."""
    deadline: float | None
    about: dict[str, Any]


@dataclass(eq=False)
class Live:
    id: str
    stream: Stream
    hub: Hub
    encoder: ChunkEncoder
    fps: int
    sequence: int = 0
    """Of the next chunk."""
    frames: int = 0
    """Video frames before the next chunk."""
    frames_left: int | None = None
    """Until it is complete; None: it has no end."""
    paused: bool = False
    ended: bool = False
    due: float | None = None
    """When its next chunk is to be there, by the monotonic clock; None: as soon as can be."""
    interactions: int = 0
    """How many there were."""
    known: OrderedDict[str, Interaction] = field(default_factory=OrderedDict)
    """Interactions by their ids, the newest ones."""
    between: deque[Call[Any]] = field(default_factory=deque)
    """What is to be done between two chunks."""
    _waiting: deque[tuple[Interaction, Tensor]] = field(default_factory=deque)
    _started: list[str] = field(default_factory=list)
    _active: list[str] = field(default_factory=list)
    _begun: float = 0.0
    _made_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=8))

    @property
    def between_chunks(self) -> bool:
        return self.stream.latent_stream.session.between_chunks and not self.stream.undecoded

    # Prompts.

    def accept(self, asked: Interaction, embeds: Tensor) -> Interaction:
        """Takes an interaction, or knows that it has it already; gives it with its number. Raises `ConflictError` and `NoRoomError`."""
        before = self.known.get(asked.event_id)
        if before is not None:
            if (before.prompt, before.transition_chunks) != (asked.prompt, asked.transition_chunks):
                raise ConflictError(f"event {asked.event_id!r} has happened, and was another: give each its own id", "event_id_conflict")
            return before
        if asked.sequence not in (None, self.interactions):
            raise ConflictError(f"interaction {asked.sequence} was asked for, and {self.interactions} is the next", "sequence_conflict")
        if len(self._waiting) >= MOST_WAITING:
            raise NoRoomError(f"{MOST_WAITING} interactions wait for the next chunk already")
        taken = Interaction(asked.event_id, asked.prompt, asked.transition_chunks, self.interactions)
        self.interactions += 1
        self.known[taken.event_id] = taken
        while len(self.known) > MOST_REMEMBERED:
            self.known.popitem(last=False)
        self._waiting.append((taken, embeds))
        return taken

    def begin(self) -> None:
        """To be called before the first pass of a chunk."""
        while self._waiting:
            taken, embeds = self._waiting.popleft()
            self.stream.latent_stream.set_prompt(embeds, over_chunks=taken.transition_chunks)
            self.stream.prompt = taken.prompt
            self._started.append(taken.event_id)
            self._active = [taken.event_id]
        self._begun = time.monotonic()

    # Time.

    def wait_seconds(self, now: float, most_ahead: float) -> float | None:
        """How long its next chunk is not to be begun; None: nobody knows. It is begun before it is due by as long as chunks take of late,
        and a little more, `most_ahead` at most."""
        if self.paused or self.frames_left == 0:
            return None
        lead = min(most_ahead, 0.1 + 1.25 * max(self._made_seconds, default=0.0))
        return 0.0 if self.due is None else self.due - lead - now

    def pause(self) -> None:
        self.paused = True

    def go_on(self) -> None:
        """Its viewers have nothing left: the next chunk begins their time anew."""
        self.paused, self.due = False, None

    # Chunks.

    def finish(self) -> Made:
        """Decodes the chunk that the engine has just finished."""
        chunk = self.stream.decode_next()
        now, frames = time.monotonic(), chunk.n_frames
        if self.frames_left is not None:
            frames = min(frames, self.frames_left)
            self.frames_left -= frames
        seconds = frames / self.fps
        deadline = self.due
        # What has come too late is not made up for: its viewers have waited.
        self.due = (now + START_BUFFER_SECONDS if deadline is None else max(deadline, now)) + seconds
        self._made_seconds.append(now - self._begun)
        made = Made(self, self.sequence, lambda: chunk.frames[:frames], self._begun, deadline, self._about(chunk, frames, seconds))
        self.sequence += 1
        self.frames += frames
        return made

    def _about(self, chunk: Chunk, frames: int, seconds: float) -> dict[str, Any]:
        started, self._started = self._started, []
        active = self._active
        if chunk.switch is not None:
            self._active = []
        return {
            "num_frames": frames,
            "first_frame": self.frames,
            "first_latent_frame": chunk.first_frame,
            "seconds": seconds,
            "prompt": self.stream.prompt,
            "started_event_ids": started,
            "active_event_ids": active,
            "completed_event_ids": active if chunk.switch is not None else [],
            "sink_mass": sink_mass(chunk),
        }


def sink_mass(chunk: Chunk) -> list[list[float]] | None:
    """Attention mass on the sinks [layers][heads], mean over a chunk's frames, to four digits; None where it was not measured."""
    if chunk.mass is None:
        return None
    mass = chunk.mass[..., : chunk.sink_frames].sum(-1).mean(-1)
    return [[round(value, 4) for value in heads] for heads in torch.nan_to_num(mass).tolist()]
