"""Runs many streams of one pipeline at the same time, on one engine."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from lolrt.checkpoint.load import with_lora
from lolrt.checkpoint.lora import LoRAFile, LoRAFiles, lora_files
from lolrt.engine.engine import Engine
from lolrt.engine.kv_window import Window
from lolrt.engine.sampler import Sampler
from lolrt.engine.scheduler import RoundRobin, Scheduler, Turn
from lolrt.errors import Error, check_whole
from lolrt.models.dit import CausalDiT
from lolrt.models.vae.codec import Codec
from lolrt.positions.rope import Rope
from lolrt.session.config import StreamConfig
from lolrt.session.stream import Chunk, LatentStream, Stream
from lolrt.text.encoder import TextEncoder

# The pause between two checks of the clock while no chunk is due.
IDLE_SECONDS = 0.002


class StreamEngine:
    """Opens streams, steps them together, and yields their chunks as they are finished; see `Pipeline.engine`."""

    def __init__(
        self,
        dit: CausalDiT,
        vae: Codec,
        encode_text: TextEncoder,
        sampler: Sampler,
        height: int,
        width: int,
        fps: float,
        *,
        max_sessions: int,
        memory: int | None = None,
        window: Window = Window(),
        rope: Rope = Rope(),
        scheduler: Scheduler = RoundRobin(),
        kv_dtype: torch.dtype | None = None,
        batch_invariant: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """height, width: the size of a latent frame. memory: the bytes for all pages and prompts; by default enough for `max_sessions`
        sessions with `window`. Raises `lolrt.Error` when not even one such session fits."""
        check_whole(max_sessions=max_sessions)
        if max_sessions < 1:
            raise Error(f"max_sessions is {max_sessions}; expected 1 or more")
        self.vae, self.encode_text, self.sampler, self.fps, self.scheduler = vae, encode_text, sampler, fps, scheduler
        self.window, self.rope, self._dit = window, rope, dit
        pages = max_sessions * window.pool_pages
        if memory is not None:
            probe = Engine(dit, height, width, pages=1, kv_dtype=kv_dtype)
            room = (memory - max_sessions * probe.session_bytes) // probe.page_bytes
            if room < window.pool_pages:
                needed = max_sessions * probe.session_bytes + window.pool_pages * probe.page_bytes
                raise Error(f"memory is {memory} bytes; one stream with this window and {max_sessions} prompts need {needed}")
            pages = min(pages, room)
        self.engine = Engine(dit, height, width, pages=pages, sessions=max_sessions, kv_dtype=kv_dtype, batch_invariant=batch_invariant)
        self._with_lora: WeakValueDictionary[tuple[LoRAFile, ...], CausalDiT] = WeakValueDictionary()
        self._turns: dict[Stream, Turn] = {}
        self._finished: deque[tuple[Stream, Chunk]] = deque()
        self._clock = clock

    @property
    def streams(self) -> list[Stream]:
        """The open streams, in the order in which they were opened."""
        return list(self._turns)

    def open(
        self,
        prompt: str,
        *,
        seed: int = 0,
        rope: Rope | None = None,
        window: Window | None = None,
        sampler: Sampler | None = None,
        probe: bool = False,
        start: Tensor | None = None,
        start_frame: int = 0,
        lora: LoRAFiles | None = None,
    ) -> Stream:
        """Opens a stream, which takes part from the next pass on. The options are those of `Pipeline.latent_stream`; rope and window are
        the engine's by default. lora: adapters in place of those of the pipeline, as in `LatentStream.set_lora`; streams with the same
        ones share their weights and their passes.

        Raises `lolrt.Error` when the engine has no room for it: it says what is needed, what is free, and what would help. Raises
        `lolrt.CheckpointError` for adapters that do not fit.
        """
        config = StreamConfig(
            rope=rope or self.rope, window=window or self.window, sampler=sampler or self.sampler, seed=seed, probe=probe,
            start_frame=start_frame,
        )  # fmt: skip
        latents = LatentStream.of(self.engine, self.encode_text(prompt), config, dit=self.with_lora(lora), start=start)
        stream = Stream(latents, self.vae, self.encode_text, prompt)
        # Begin at the smallest count of passes. A new stream with 0 passes would run alone until it has caught up with the others.
        self._turns[stream] = Turn(opened=self._clock(), passes=min((turn.passes for turn in self._turns.values()), default=0))
        return stream

    def with_lora(self, lora: LoRAFiles | None) -> CausalDiT:
        """The model with these adapters in place of those of the pipeline; None: the pipeline's. As long as it is held, or a stream has it,
        there is one of each, and `open` does not have to make it. May be called from another thread."""
        if lora is None:
            return self._dit
        dit = self.adapted(lora)
        if dit is None:
            dit = self._with_lora[tuple(lora_files(lora))] = with_lora(self._dit, lora)
        return dit

    def adapted(self, lora: LoRAFiles) -> CausalDiT | None:
        """The model with these adapters, if there is one already."""
        return self._with_lora.get(tuple(lora_files(lora)))

    def close(self, stream: Stream) -> None:
        """Closes a stream and gives its pages back. Raises `lolrt.Error` if the stream is not open in this engine."""
        if self._turns.pop(stream, None) is None:
            raise Error("the stream is not open in this engine: it was closed, or is another engine's")
        stream.latent_stream.session.close()

    def step(self) -> None:
        """Runs one pass of the streams that the scheduler chooses, and decodes the chunks that it finishes, for the iterator.

        When a stream fails, the finished chunks of the others are kept, and its error is raised. With the next step it starts its chunk,
        or the decoding of it, again.
        """
        streams = self.streams
        chosen = [streams[i] for i in self.scheduler.choose([self._turns[stream] for stream in streams], self._clock())]
        if not chosen:
            time.sleep(IDLE_SECONDS)
            return
        failures = list(self.run_pass(chosen).values())
        for stream in streams:  # also chunks that an earlier step could not decode
            try:
                while stream.undecoded:
                    chunk = stream.decode_next()
                    self._turns[stream].made_seconds += chunk.n_frames / self.fps
                    self._finished.append((stream, chunk))
            except Exception as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def run_pass(self, streams: Sequence[Stream]) -> dict[Stream, Exception]:
        """Runs one pass of these streams. A chunk that it finishes is appended to the stream's `undecoded`. Returns the errors of the
        streams that failed; each of these starts its chunk again with its next pass."""
        failures: dict[Stream, Exception] = {}
        for stream, made in zip(streams, self.engine.step([one.latent_stream.session for one in streams]), strict=True):
            self._turns[stream].passes += 1
            if isinstance(made, Exception):
                failures[stream] = made
            elif made is not None:
                stream.undecoded.append(made)
        return failures

    def __iter__(self) -> Iterator[tuple[Stream, Chunk]]:
        """Yields streams and their chunks as they are finished, as long as any stream is open. Streams may be opened and closed meanwhile;
        the finished chunks of a closed stream are dropped."""
        while self._turns:
            while self._finished:
                stream, chunk = self._finished.popleft()
                if stream in self._turns:
                    yield stream, chunk
            if self._turns:
                self.step()
