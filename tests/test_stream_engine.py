"""Many streams in one engine: whose turn it is, who is admitted, and that each gets its chunks in order and once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from sessions import TWO_PASSES, smallest_dit, smallest_text

import lolrt
from lolrt.engine.engine import Engine
from lolrt.engine.scheduler import EarliestDeadline, RoundRobin, Turn
from lolrt.session.stream import Chunk, Stream
from lolrt.session.stream_engine import StreamEngine

pytestmark = pytest.mark.usefixtures("one_thread")

SMALLEST = smallest_dit()


def test_everyone_has_a_turn_before_anyone_has_two():
    """With any number of streams and of places: the numbers of passes differ by at most one after every step."""
    for at_once in (1, 2, 3, 5, None):
        turns = [Turn(opened=0) for _ in range(5)]
        for _ in range(13):
            chosen = RoundRobin(at_once).choose(turns, 0.0)
            assert len(chosen) == len(set(chosen)) == (at_once or 5)
            for i in chosen:
                turns[i].passes += 1
            passes = [turn.passes for turn in turns]
            assert max(passes) - min(passes) <= 1
    assert RoundRobin().choose([], 0.0) == []


def test_who_is_due_first_comes_first_and_who_is_far_ahead_waits():
    turns = [Turn(opened=10.0, made_seconds=made) for made in (3.0, 0.5, 1.0, 8.0)]
    scheduler = EarliestDeadline(ahead_seconds=2.0)
    assert scheduler.choose(turns, 10.0) == [1, 2]  # 13 and 18 are two seconds ahead or more
    assert scheduler.choose(turns, 11.5) == [1, 2, 0]
    assert scheduler.choose(turns, 100.0) == [1, 2, 0, 3]
    assert EarliestDeadline(at_once=1).choose(turns, 100.0) == [1]
    assert scheduler.choose(turns, 0.0) == []


class Clock:
    """A clock that advances by a fixed time whenever it is read."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 100.0, seconds

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


class Carrying:
    """A made-up VAE with one frame per latent frame, which depends on the previous one, so that chunks must come in order and once."""

    description, memory_frames = "a VAE that carries", 1

    def decode(self, latents: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        before = torch.cat([state.get("last", torch.zeros_like(latents[:1])), latents[:-1]])
        state["last"] = latents[-1:].clone()
        return torch.tanh(latents[:, :3] + before[:, :3] / 2)


def encode(prompt: str) -> torch.Tensor:
    return smallest_text(len(prompt))


SMALL = {"window": lolrt.Window(1, 3, 3), "sampler": TWO_PASSES}
FPS = 3  # a chunk is a second


def engine_of(sessions: int, clock: Callable[[], float] | None = None, **options: object) -> StreamEngine:
    """Its products are computed separately (`batch_invariant`), so its streams can be compared bit for bit on any machine."""
    return StreamEngine(
        SMALLEST, Carrying(), encode, TWO_PASSES, 4, 4, FPS, max_sessions=sessions, window=SMALL["window"], batch_invariant=True,
        **({"clock": clock} if clock else {}), **options,
    )  # type: ignore[arg-type]  # fmt: skip


def alone_of(prompt: str, seed: int) -> Stream:
    return Stream(lolrt.LatentStream(SMALLEST, encode(prompt), 4, 4, seed=seed, **SMALL), Carrying(), encode, prompt)  # type: ignore[arg-type]


def alike(chunks: list[Chunk], alone: Stream) -> bool:
    return all(
        chunk.first_frame == own.first_frame and torch.equal(chunk.latents, own.latents) and torch.equal(chunk.frames, own.frames)
        for chunk, own in zip(chunks, alone, strict=False)
    )


@pytest.mark.parametrize("scheduler", [RoundRobin(), RoundRobin(at_once=2), EarliestDeadline(at_once=2)], ids=["all", "turns", "deadlines"])
def test_an_engine_gives_each_streams_chunks_in_order_and_once(scheduler):
    """While streams open and close, and one changes its prompt."""
    prompts = "a", "bb", "ccc"
    engine = engine_of(3, Clock(0.05), scheduler=scheduler)
    streams = [engine.open(prompts[i], seed=i, **SMALL) for i in range(3)]
    made: dict[Stream, list[Chunk]] = {stream: [] for stream in streams}
    closed: list[Stream] = []
    for stream, chunk in engine:
        assert stream not in closed
        made[stream].append(chunk)
        if stream is streams[0] and len(made[stream]) == 1:
            stream.set_prompt(prompts[1])
        if stream is streams[1] and len(made[stream]) == 2:
            with pytest.raises(lolrt.Error, match="close"):
                engine.open(prompts[0], **SMALL)
            engine.close(stream)
            closed.append(stream)
            streams.append(engine.open(prompts[0], seed=7, **SMALL))
            made[streams[3]] = []
        if len(made[stream]) == 3:
            engine.close(stream)
            closed.append(stream)
    assert not engine.streams and [len(made[stream]) for stream in streams] == [3, 2, 3, 3]
    for i, (stream, seed) in enumerate(zip(streams, (0, 1, 2, 7), strict=True)):
        alone = alone_of(prompts[0] if i == 3 else prompts[i], seed)
        if i == 0:
            assert alike(made[stream][:1], alone)
            alone.set_prompt(prompts[1])
            made[stream] = made[stream][1:]
        assert alike(made[stream], alone), f"stream {i}"
    with pytest.raises(lolrt.Error, match="not open"):
        engine.close(streams[0])


class FailsInTheMiddle(Carrying):
    """Changes its carried state and then fails, once, at the frames of one stream's chunk."""

    def __init__(self, failure: BaseException, calls: int) -> None:
        self.failure, self.calls = failure, calls

    def decode(self, latents: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        self.calls -= 1
        if self.calls == 0:
            if "last" in state:
                with torch.inference_mode():
                    state["last"].add_(1)  # in place, as a VAE does
            super().decode(latents[:1], state)
            raise self.failure
        return super().decode(latents, state)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError()], ids=["Ctrl-C", "memory"])
@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_chunk_whose_decoding_is_stopped_is_decoded_anew(failure, calls):
    """Alone and in an engine: no stream loses a chunk, and none is decoded with half-changed state."""
    stream = alone_of("a", 3)
    stream.vae = FailsInTheMiddle(failure, calls)  # type: ignore[assignment]
    made: list[Chunk] = []
    while len(made) < 5:
        try:
            made.append(next(stream))
        except type(failure):
            with pytest.raises(lolrt.Error, match="ask for that chunk first"):
                stream.snapshot()
    assert stream.vae.calls <= 0 and alike(made, alone_of("a", 3))

    engine = engine_of(3)
    engine.vae = FailsInTheMiddle(failure, calls)  # type: ignore[assignment]
    streams = [engine.open("abc"[: i + 1], seed=i, **SMALL) for i in range(3)]
    found: dict[Stream, list[Chunk]] = {one: [] for one in streams}
    failures, chunks = 0, iter(engine)
    while min(map(len, found.values())) < 4:
        try:
            one, chunk = next(chunks)
            found[one].append(chunk)
        except type(failure):
            failures, chunks = failures + 1, iter(engine)
    assert failures == 1
    for i, one in enumerate(streams):
        assert alike(found[one], alone_of("abc"[: i + 1], i)), f"stream {i}"


def test_one_thread_at_a_time_is_served():
    """A second thread is refused, and no chunk comes twice or is lost."""
    stream = alone_of("a", 3)
    inside, go_on = threading.Event(), threading.Event()
    decode = stream.vae.decode

    class Waits(Carrying):
        def decode(self, latents: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
            inside.set()
            assert go_on.wait(60)
            return decode(latents, state)

    stream.vae = Waits()  # type: ignore[assignment]
    made: list[Chunk] = []
    thread = threading.Thread(target=lambda: made.append(next(stream)))
    thread.start()
    assert inside.wait(60)
    for ask in (lambda: next(stream), stream.snapshot, stream.state_dict):
        with pytest.raises(lolrt.Error, match="the stream is already at work in another thread"):
            ask()
    with stream.latent_stream.engine.at_work, pytest.raises(lolrt.Error, match="the engine is already at work"):
        next(stream.latent_stream)
    go_on.set()
    thread.join()
    made += [next(stream) for _ in range(2)]
    assert alike(made, alone_of("a", 3))


def test_who_comes_late_does_not_keep_the_others_waiting():
    """A stream that is opened after the others have had many turns begins with as many; otherwise it would be the only one for as long."""
    engine = engine_of(2, scheduler=RoundRobin(at_once=1))
    first = engine.open("a", **SMALL)
    for _ in range(7):
        engine.step()
    second = engine.open("a", **SMALL)
    begun = [engine._turns[stream].passes for stream in (first, second)]
    for _ in range(4):
        engine.step()
    assert [engine._turns[stream].passes - before for stream, before in zip((first, second), begun, strict=True)] == [2, 2]


def test_a_watched_stream_is_made_no_further_ahead_than_it_may_be():
    """With a clock that stands still, chunks come until the next one is due later than the margin; then none, until time passes."""
    now = 50.0
    engine = engine_of(1, lambda: now, scheduler=EarliestDeadline(ahead_seconds=1.5))
    stream = engine.open("a", **SMALL)
    seconds = 0.0
    for _ in range(20):
        engine.step()
        while engine._finished:
            seconds += len(engine._finished.popleft()[1].frames) / FPS
    assert seconds == 2  # one is less than the margin, so a second one is made, but no third
    before = engine._turns[stream].passes
    engine.step()
    assert engine._turns[stream].passes == before
    now += 0.6
    engine.step()
    assert engine._turns[stream].passes == before + 1


def test_a_frame_wise_stream_is_made_frame_by_frame_as_it_is_watched():
    """Beside one of whole chunks, by a clock that every pass moves on. 9 and 3 passes make 3 frames of each in the time of 20: neither
    falls behind its viewer, nor gets far ahead."""
    now, ahead, longest = 50.0, 0.7, 3 / FPS
    engine = engine_of(2, lambda: now, scheduler=EarliestDeadline(at_once=1, ahead_seconds=ahead))
    streams = [engine.open("a", window=lolrt.Window(1, 3, chunk_frames), sampler=TWO_PASSES) for chunk_frames in (1, 3)]
    shown = dict.fromkeys(streams, 0.0)
    sizes: dict[Stream, set[float]] = {stream: set() for stream in streams}
    while min(shown.values()) < 8:
        engine.step()
        now += longest / 20
        while engine._finished:
            stream, chunk = engine._finished.popleft()
            due = engine._turns[stream].opened + shown[stream]
            assert now - due <= longest, "the first chunk is late by what both took to begin, and no later one by more"
            length = len(chunk.frames) / FPS
            assert due - now < ahead
            shown[stream] += length
            sizes[stream].add(length)
    assert [sizes[stream] for stream in streams] == [{1 / FPS}, {3 / FPS}]


def test_memory_is_what_decides_who_is_let_in():
    window = SMALL["window"]
    sizes = Engine(SMALLEST, 4, 4, pages=1)
    least = 3 * sizes.session_bytes + window.pool_pages * sizes.page_bytes
    with pytest.raises(lolrt.Error, match=f"memory is {least - 1} bytes; .* need {least}"):
        engine_of(3, memory=least - 1)
    engine = engine_of(3, memory=least + 2 * sizes.page_bytes)
    held = engine.engine.pool.pages.nbytes + engine.engine.latents.nbytes + engine.engine._text_pages.nbytes
    assert held == least + 2 * sizes.page_bytes
    first = engine.open("a", **SMALL)
    with pytest.raises(lolrt.Error, match=r"needs 4 \(.* MiB\) pages of the KV cache, and 2 \(.* MiB\) of 6 are free"):
        engine.open("a", **SMALL)
    assert engine.streams == [first]
    engine.open("a", window=lolrt.Window(0, 2, 2), sampler=TWO_PASSES)  # a smaller one has room
    assert len(engine.streams) == 2 and engine.engine.pool.unreserved_pages == 0
    assert engine_of(2, memory=1 << 40).engine.pool.pages.shape[1] == 2 * window.pool_pages
