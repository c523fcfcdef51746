"""Passes as CUDA graphs, on the emulator: a pass over a full window is captured once and replayed for every later chunk, with the bits
of ordinary passes."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from emulated import Emulated
from emulated_device import EmulatedCore, computing_with
from emulated_graph import Graph
from torch import Tensor

import lolrt
from lolrt import ops
from lolrt.engine import graph as graphs
from lolrt.engine.graph import GraphedPasses
from lolrt.engine.kv_window import KVWindow

pytestmark = pytest.mark.whole

# Full after three chunks of one frame; latents of 4 x 4 make four tokens.
WINDOW = lolrt.Window(1, 2, 1)
FULL = 3
OPTIONS = dict(sampler=lolrt.Sampler((1000, 500)), probe=True)
CONFIG = lolrt.DiTConfig(dim=128, ffn_dim=256, text_dim=16, text_len=8, num_heads=2, num_layers=2)
PROMPT = torch.randn(5, CONFIG.text_dim, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def dit() -> lolrt.CausalDiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lolrt.CausalDiT(CONFIG).requires_grad_(False).bfloat16()


@pytest.fixture
def captures(core: EmulatedCore, emulated_library: Emulated, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Graph]]:
    """Collects all graphs that are made, in order; ops are the emulator's meanwhile."""
    made: list[Graph] = []

    def captured(work: Callable[[], Tensor], memory: object, device: torch.device) -> tuple[Callable[[], None], Tensor]:
        with Graph(emulated_library) as graph:
            velocity = work()
        made.append(graph)
        return graph.replay, velocity

    monkeypatch.setattr(graphs, "captured", captured)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    with computing_with(core):
        yield made


def streams(dit: lolrt.CausalDiT, window: lolrt.Window = WINDOW, **options: object) -> tuple[lolrt.LatentStream, lolrt.LatentStream]:
    """A stream whose passes are graphs, and one with ordinary passes."""
    graphed, plain = (lolrt.LatentStream(dit, PROMPT, 4, 4, window=window, **OPTIONS | options) for _ in range(2))
    graphed.session.model._graphs = GraphedPasses(dit)
    return graphed, plain


def assert_same(graphed: lolrt.LatentStream, plain: lolrt.LatentStream, chunks: int) -> None:
    for a, b in islice(zip(graphed, plain, strict=True), chunks):
        assert a.page_frames == b.page_frames
        assert torch.equal(a.latents, b.latents)
        assert a.mass is not None and b.mass is not None and torch.equal(a.mass, b.mass)


def test_chunks_over_a_full_window_are_replays_with_the_bits_of_ordinary_passes(dit, captures, core):
    graphed, plain = streams(dit)
    assert_same(graphed, plain, FULL)
    assert len(captures) == 2, "a pass with the probe and one without"
    core.calls.clear()
    next(graphed)
    assert core.calls == {"sampler_step": 2}, "all else is replayed"
    next(plain)
    assert_same(graphed, plain, 2)
    assert len(captures) == 2


def test_a_new_prompt_is_written_where_the_old_one_was(dit, captures):
    graphed, plain = streams(dit)
    assert_same(graphed, plain, FULL)
    for stream in graphed, plain:
        stream.set_prompt(-2 * PROMPT, recache="sinks")
    assert_same(graphed, plain, 2)
    assert len(captures) == 2
    state = graphed.state_dict()
    for stream in graphed, plain:
        stream.load_state_dict(state)
    assert_same(graphed, plain, 1)
    assert len(captures) == 2


def test_a_launch_that_fails_while_a_pass_is_captured(dit, captures, emulated_library):
    """The chunk raises its error, and no graph of the incomplete capture is kept. From the state before, the bits are those of ordinary
    passes."""
    graphed, plain = streams(dit)
    assert_same(graphed, plain, FULL - 1)
    state = graphed.state_dict()
    emulated_library.restart_runtime()
    next(plain)
    calls = len(emulated_library.notes())
    passes = len(plain.config.sampler.timesteps) + 1  # and the one that fills the pages
    emulated_library.restart_runtime(failing_call=calls // passes * 3 // 2)
    with pytest.raises(RuntimeError, match="CUDA: unknown error"):
        next(graphed)
    assert captures == [] and graphed.session.model._graphs._graphs == {}
    emulated_library.restart_runtime()
    for stream in graphed, plain:
        stream.load_state_dict(state)
    assert_same(graphed, plain, 2)
    assert len(captures) == 2


@pytest.mark.parametrize("when", ["always", "synchronised"])
def test_a_gates_bias_is_an_input(dit, captures, when):
    gate = lolrt.SinkGate(-1.0, when, head_share=0.0)
    graphed, plain = streams(dit, replace(WINDOW, gate=gate))
    assert_same(graphed, plain, FULL + 2)


RECALLING = replace(WINDOW, recall_frames=1, store_frames=2)


def test_recalled_pages_are_an_input_and_the_mean_query_an_output(dit, captures, monkeypatch):
    recall, queries = KVWindow.recall, list[Tensor]()

    def spy(self, chunk, query):
        queries.append(query.clone())
        return recall(self, chunk, query)

    monkeypatch.setattr(KVWindow, "recall", spy)
    graphed, plain = streams(dit, RECALLING)
    assert_same(graphed, plain, FULL + 1)
    made = len(captures)
    assert_same(graphed, plain, 2)
    assert len(captures) == made
    assert len(queries) == 6 and all(torch.equal(*pair) for pair in zip(queries[::2], queries[1::2], strict=True))
    assert not torch.equal(queries[-1], queries[-3])


def captures_of_two_chunks(
    dit: lolrt.CausalDiT, captures: list[Graph], window: lolrt.Window = WINDOW, **options: object
) -> tuple[list[Graph], list[Graph]]:
    """The same passes, captured in one chunk and again in the next."""
    stream, _ = streams(dit, window, **options)
    stream.session.model._graphs = passes = GraphedPasses(dit)
    for _ in range(FULL):
        next(stream)
    of_chunks = []
    for _ in range(2):
        passes._graphs.clear()
        captures.clear()
        next(stream)
        of_chunks.append(list(captures))
    return of_chunks[0], of_chunks[1]


@pytest.mark.parametrize(
    "window, kinds",
    [(WINDOW, 2), (replace(WINDOW, gate=lolrt.SinkGate(-1.0)), 2), (RECALLING, 3)],
    ids=["plain", "gate", "recall"],
)
def test_two_chunks_launch_the_same_kernels_with_the_same_arguments(dit, captures, window, kinds):
    first, second = captures_of_two_chunks(dit, captures, window)
    # In each layer three norms, queries and keys and values of self-attention, queries of cross-attention, two attentions, GELU.
    assert min(graph.launches for graph in first) == 9 * dit.config.num_layers + 1
    assert len(first) == kinds
    assert [graph.steps() for graph in first] == [graph.steps() for graph in second]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_replays_passes_with_the_bits_of_ordinary_ones(dit: lolrt.CausalDiT) -> None:
    there = copy.deepcopy(dit).to("cuda")
    graphed, plain = (lolrt.LatentStream(there, PROMPT, 4, 4, window=WINDOW, **OPTIONS) for _ in range(2))
    assert graphed.session.model._graphs is not None
    plain.session.model._graphs = None
    assert_same(graphed, plain, FULL + 3)
    for stream in graphed, plain:
        stream.set_prompt(-2 * PROMPT)
    assert_same(graphed, plain, 2)
    assert len(graphed.session.model._graphs._graphs) == 2


# ---- planted bugs: what changes from chunk to chunk reaches a pass in another way than by memory that stays in place ----


def chunk_numbers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The first frame of the current chunk, as the host knows it."""
    advance, newest = KVWindow.advance, [0]

    def spy(self, first_frame, n_frames):
        newest[0] = first_frame
        return advance(self, first_frame, n_frames)

    monkeypatch.setattr(KVWindow, "advance", spy)
    return lambda: newest[0]


def plant_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel gets a number that depends on the chunk."""
    norm, number = ops.modulated_norm, chunk_numbers(monkeypatch)
    monkeypatch.setattr(ops, "modulated_norm", lambda *args, eps, **options: norm(*args, eps=eps * (1 + number()), **options))


def plant_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are written to the chunk's page by its address instead of by the table."""
    write, number = ops.kv_write, chunk_numbers(monkeypatch)
    first_page = torch.zeros(1, dtype=torch.int32)

    def planted(k, v, pages, page_table, **options):
        if number() == 0 or len(pages) == 1:
            return write(k, v, pages, page_table, **options)
        return write(k, v, pages[1 + (number() - 1) % 2 :], first_page, **options)

    monkeypatch.setattr(ops, "kv_write", planted)


def plant_torch_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation of torch gets a number that depends on the chunk."""
    gelu, number = ops.gelu, chunk_numbers(monkeypatch)
    monkeypatch.setattr(ops, "gelu", lambda x: gelu(x.mul_(1 + number() / 8)))


@pytest.mark.parametrize("plant", [plant_number, plant_address, plant_torch_number])
def test_what_a_graph_would_freeze_is_found_both_ways(dit, captures, monkeypatch, plant):
    plant(monkeypatch)
    [first], [second] = captures_of_two_chunks(dit, captures, probe=False)
    assert first.steps() != second.steps()
    with pytest.raises(AssertionError):
        assert_same(*streams(dit), FULL + 2)


def test_a_pass_that_waits_for_the_device_is_found(dit, captures, monkeypatch):
    gelu = ops.gelu
    monkeypatch.setattr(ops, "gelu", lambda x: gelu(x) if x.max().item() < 1e9 else None)
    with pytest.raises(AssertionError, match="waits for the device"):
        assert_same(*streams(dit), FULL)


def test_torch_is_asked_for_a_capture_in_its_own_words(monkeypatch):
    """On a stream of the device, in the given memory, while other threads may continue."""
    signature, done = inspect.signature(torch.cuda.graph), list[object]()

    @contextlib.contextmanager
    def context(name: str, *given: object) -> Iterator[None]:
        done.append((name, *given))
        yield
        done.append(f"end of {name}")

    def graph(*args: object, **options: object) -> contextlib.AbstractContextManager[None]:
        arguments = signature.bind(*args, **options).arguments
        assert arguments.pop("cuda_graph") is made
        return context("graph", arguments)

    made = SimpleNamespace(replay=lambda: done.append("replay"))
    for name, fake in {
        "CUDAGraph": lambda: made, "graph": graph, "Stream": lambda device: device, "device": lambda device: context("device", device)
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    device = torch.device("cuda", 1)
    replay, result = graphs.captured(lambda: done.append("work") or torch.ones(1), (0, 7), device)
    replay()
    options = {"pool": (0, 7), "stream": device, "capture_error_mode": "thread_local"}
    assert result == 1 and done == [("device", device), ("graph", options), "work", "end of graph", "end of device", "replay"]


def test_the_cuda_half_asks_the_runtime_for_nothing_that_a_capture_forbids():
    """Nothing that allocates, waits or asks whether work is done, in the sources without their comments."""
    sources = itertools.chain(*(Path(__file__).parents[2].glob(f"csrc/cuda/**/*.{kind}") for kind in ("cu", "cuh", "cpp", "h")))
    code = "\n".join(line.partition("//")[0] for path in sources for line in path.read_text().splitlines())
    calls = set(re.findall(r"\bcuda[A-Z]\w+(?=\()|\bcu[A-Z]\w+(?=\()", code))
    assert "cudaGetLastError" in calls
    assert not [name for name in calls if re.search("Malloc|Alloc|Free|Synchronize|Query|Memcpy|Memset", name)]
