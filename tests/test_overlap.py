"""DiT and VAE on separate CUDA streams: what waits for what. Streams and events are made up, and know only the order of work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lolrt
from lolrt.cli.video import one_ahead
from lolrt.ops import device
from lolrt.session.stream import LatentChunk


class Queue:
    """A stream; `before` is all work that is done before whatever is queued next."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.before = machine, frozenset[str]()

    def queue(self, work: str) -> None:
        self.machine.order[work] = self.before
        self.before |= {work}

    def wait_stream(self, other: Queue) -> None:
        self.before |= other.before

    def record_event(self) -> SimpleNamespace:
        return SimpleNamespace(synchronize=lambda done=self.before: self.machine.waited.append(done))


class Machine:
    """order: for each work, the work that was done before it. waited: for each time that the host waited, what it waited for."""

    def __init__(self) -> None:
        self.order: dict[str, frozenset[str]] = {}
        self.waited: list[frozenset[str]] = []
        self.main = self.current = Queue(self)

    @contextlib.contextmanager
    def on(self, queue: Queue) -> Iterator[None]:
        self.current, before = queue, self.current
        yield
        self.current = before


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine()
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Queue(made))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: made.current)
    monkeypatch.setattr(torch.cuda, "stream", made.on)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, **options: empty(*shape, **options))
    device._queue.cache_clear()
    yield made
    device._queue.cache_clear()


class Latents:
    """Latents that claim to be on CUDA."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, chunk: int) -> None:
        self.chunk, self.used_on = chunk, list[Any]()

    def __len__(self) -> int:
        return 1

    def clone(self) -> Latents:
        return self

    def record_stream(self, queue: Queue) -> None:
        self.used_on.append(queue)


def stream_on(machine: Machine) -> lolrt.Stream:
    def chunks() -> Iterator[LatentChunk]:
        for i in range(9):
            machine.current.queue(f"passes {i}")
            yield LatentChunk(first_frame=i, latents=Latents(i), page_frames=(i,), sums=torch.zeros(1), sink_frames=0)  # type: ignore[arg-type]

    def decode(latents: Latents, state: object) -> torch.Tensor:
        assert latents.used_on == [machine.current], "whoever frees the latents has to know who reads them"
        machine.current.queue(f"decode {latents.chunk}")
        return torch.zeros(4, 3, 8, 8)

    return lolrt.Stream(chunks(), SimpleNamespace(decode=decode, memory_frames=1), lambda _: torch.zeros(1, 1))  # type: ignore[arg-type]


def test_a_chunk_is_decoded_after_its_passes_and_beside_the_next_chunks(machine: Machine) -> None:
    for _ in islice(stream_on(machine), 4):
        pass
    assert machine.order["decode 2"] == {"passes 0", "passes 1", "passes 2", "decode 0", "decode 1"}
    assert machine.order["passes 3"] == {"passes 0", "passes 1", "passes 2"}
    assert not machine.waited, "until somebody asks for frames"


def test_frames_wait_for_their_own_decoding_when_the_next_chunk_is_in_work(machine: Machine) -> None:
    for i, chunk in enumerate(islice(one_ahead(stream_on(machine)), 3)):
        assert f"decode {i + 1}" in machine.order, "the next chunk is queued"
        assert chunk.frames.shape == (4, 8, 8, 3)
        assert f"decode {i}" in machine.waited[i] and not {f"passes {i + 1}", f"decode {i + 1}"} & machine.waited[i]
