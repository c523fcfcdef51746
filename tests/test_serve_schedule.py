"""Which sessions of `lolrt serve` share the next pass: the engine's thread on a clock that only passes and decoding move."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from lolrt.serve import engine_thread as engine_module
from lolrt.serve import live as live_module
from lolrt.serve.engine_thread import EngineThread
from lolrt.serve.live import Live, Made

SESSIONS, PASSES, CHUNK_SECONDS, BEGIN = 8, 5, 0.75, 1000.0


class Clock:
    def __init__(self) -> None:
        self.now = BEGIN

    def monotonic(self) -> float:
        return self.now

    time = monotonic


class Stepped:
    """A stream whose chunks take five passes, and now and then three more, as after a new prompt."""

    prompt = "a"

    def __init__(self, clock: Clock, decoding: float, chance: random.Random) -> None:
        self.clock, self.decoding, self.chance = clock, decoding, chance
        self.undecoded: list[int] = []
        self.latent_stream = SimpleNamespace(session=self)
        self.begin()

    def begin(self) -> None:
        self.left = self.all = PASSES + 3 * (self.chance.random() < 0.05)

    @property
    def between_chunks(self) -> bool:
        return self.left == self.all

    def decode_next(self) -> Any:
        self.undecoded.clear()
        self.clock.now += self.decoding
        self.begin()
        return SimpleNamespace(n_frames=12, mass=None, switch=None, first_frame=0)


class Engine:
    """A pass takes `fixed` seconds, and `each` for every session that shares it."""

    def __init__(self, clock: Clock, fixed: float, each: float) -> None:
        self.clock, self.fixed, self.each = clock, fixed, each

    def run_pass(self, streams: list[Stepped]) -> dict[Any, Exception]:
        self.clock.now += self.fixed + self.each * len(streams)
        for stream in streams:
            stream.left -= 1
            if not stream.left:
                stream.undecoded.append(0)
        return {}


class Thread(EngineThread):
    """It is stepped here, and its chunks are not encoded. most: only so many sessions share a pass, those with the earliest deadlines."""

    def __init__(self, engine: Engine, most: int | None) -> None:
        super().__init__(engine, 2.0, None)  # type: ignore[arg-type]
        self.most, self.slack, self.chunks = most, list[float](), Counter[str]()

    def _choose(self) -> tuple[list[Live], float | None]:
        chosen, wait = super()._choose()
        return sorted(chosen, key=lambda live: live.due or 0.0)[: self.most] if self.most else chosen, wait

    def _give(self, made: Made) -> None:
        self.chunks[made.live.id] += 1
        if made.deadline is not None:
            self.slack.append(made.deadline - self.engine.clock.now)  # type: ignore[attr-defined]


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    for module in (engine_module, live_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


def served(clock: Clock, load: float, shared: float, most: int | None = None, seconds: float = 100.0) -> tuple[float, Counter[str]]:
    """The share of chunks that met their deadlines, and the chunks of each session. load: the time that a chunk of all sessions takes,
    with passes that all share, by the time that it plays. shared: the part of such a pass that does not depend on how many share it."""
    clock.now = BEGIN
    each = load * CHUNK_SECONDS / SESSIONS
    decoding, a_pass = 0.3 * each, 0.7 * each / PASSES * SESSIONS
    thread, chance = Thread(Engine(clock, shared * a_pass, (1 - shared) * a_pass / SESSIONS), most), random.Random(7)
    coming = [(BEGIN + 0.3 * n, f"{n}") for n in range(SESSIONS)]
    while clock.now < BEGIN + seconds:
        while coming and coming[0][0] <= clock.now:
            id = coming.pop(0)[1]
            thread.add(Live(id, Stepped(clock, decoding, chance), None, None, fps=16, lease_seconds=10))  # type: ignore[arg-type]
        wait = thread._turn()
        clock.now += 0.01 if wait is None else min(wait, 0.01)
    return sum(slack >= 0 for slack in thread.slack) / len(thread.slack), thread.chunks


@pytest.mark.parametrize("shared", [0.05, 0.6], ids=["as on a CPU", "as on a GPU"])
def test_all_sessions_that_are_due_share_a_pass_because_it_meets_more_deadlines(clock, shared):
    """Passes of the most urgent sessions alone, the earliest deadline first, meet no more at any load, and fewer near the limit, where each
    pass has to do as much as it can."""
    for load in (0.7, 0.9, 1.1):
        met, _ = served(clock, load, shared)
        assert load > 1 or met > 0.93, (load, met)
        for most in (1, 2, 4):
            assert served(clock, load, shared, most)[0] <= met + 0.01, (load, most)
    assert served(clock, 0.9, shared, 1)[0] < 0.1


def test_under_overload_all_sessions_slow_down_alike(clock):
    """And the engine does as much as it can: no session is far ahead while another waits."""
    _, chunks = served(clock, 1.5, 0.05)
    assert len(chunks) == SESSIONS and min(chunks.values()) > 0.95 * max(chunks.values())
    most = 100 / (1.5 * CHUNK_SECONDS) * SESSIONS
    assert 0.9 * most < chunks.total() < most
