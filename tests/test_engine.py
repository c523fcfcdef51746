"""The engine: a session has the same bits whatever its neighbours are, its own pages whatever happens, and a fair turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sessions import TWO_PASSES, config, poison, run, same, smallest_dit, smallest_engine, smallest_text
from test_parity import BF16_MAX, BF16_RMS, FP32_MAX

import lolrt
from lolrt.engine.engine import Engine
from lolrt.engine.sampler import Sampler
from lolrt.session.config import StreamConfig
from lolrt.session.session import LatentChunk, Session

pytestmark = pytest.mark.usefixtures("one_thread")

CHUNKS = 4


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def dit(request, data) -> lolrt.CausalDiT:
    return lolrt.load_dit(data / "self_forcing_dmd_small.pt", request.param)


@dataclass(frozen=True)
class Neighbour:
    """A session among others: how it is made, when it joins, and what happens to it."""

    config: StreamConfig
    text: tuple[int, int] = (0, 20)
    """Rows of the shared embeddings that are its prompt."""
    joins: int = 0
    """Steps by which the others are ahead, so that windows are filled to different degrees."""
    switch: tuple[int, str, int] | None = None
    """The chunk before which the prompt changes, what is re-cached, and over how many chunks."""
    start: int = 0
    """The given frames."""
    decides: bool = False
    """Whether a rounding may decide what it attends to, so that only equal bits can be required of it."""


def gate(**options: object) -> lolrt.SinkGate:
    return lolrt.SinkGate(**options)  # type: ignore[arg-type]


NEIGHBOURS = [
    Neighbour(config(lolrt.Window(1, 3, 3), probe=True)),
    Neighbour(config(lolrt.Window(1, 2, 2, gate=gate(bias=-1.0)), Sampler((1000, 500), (1000, 700, 300), method="euler"), seed=1), (3, 9)),
    Neighbour(config(lolrt.Window(1, 2, 1, recall_frames=1, store_frames=2), probe=True, seed=2), (40, 52), joins=1, decides=True),
    # Shut in every chunk, with the sinks left out completely: rows of -inf beside rows without a bias.
    Neighbour(
        config(
            lolrt.Window(2, 3, 1, gate=gate(bias=-torch.inf, when="realigned", kernel_level=-1.0, after_frames=1)),
            rope=lolrt.Rope(scope="layer"), seed=3,
        )
    ),
    Neighbour(
        config(lolrt.Window(2, 4, 2, gate=gate(bias=-2.0, when="synchronised", head_share=0.0)), probe=True, seed=4), joins=3, decides=True
    ),
    # Another theta rotates rows and columns in another way, so the session cannot share a pass of the model.
    Neighbour(config(rope=lolrt.Rope(theta=5000.0), probe=True, seed=5), (10, 30)),
    Neighbour(config(lolrt.Window(1, 4, 2), seed=6, probe=True), switch=(2, "sinks", 2), joins=2),
    Neighbour(config(lolrt.Window(1, 4, 2), Sampler((1000, 500), context_noise=0.1), seed=7), switch=(1, "window", 1)),
    Neighbour(config(lolrt.Window(0, 4, 2), seed=8, probe=True, rope=lolrt.Rope(sigma=0)), start=3),
    Neighbour(config(lolrt.Window(1, 4, 2, skip=0.15), seed=9, probe=True), joins=1, decides=True),
]  # fmt: skip


class Running:
    """A neighbour in an engine, and what it has made so far."""

    def __init__(self, engine: Engine, case: Neighbour, inputs: dict[str, torch.Tensor]) -> None:
        start = inputs["noise"][: case.start] / 2 if case.start else None
        self.case, self.inputs, self.made = case, inputs, list[LatentChunk]()
        self.session = Session(engine, inputs["prompt_embeds"][slice(*case.text)], case.config, start=start)

    def prepare(self) -> None:
        """Called before each step."""
        if self.case.switch is not None and self.session._switch is None and len(self.made) == self.case.switch[0]:
            _, recache, chunks = self.case.switch
            self.session.set_prompt(3 * self.inputs["prompt_embeds"][60:75], recache=recache, over_chunks=chunks)  # type: ignore[arg-type]


def step(engine: Engine, running: list[Running]) -> None:
    for one in running:
        one.prepare()
    for one, chunk in zip(running, engine.step([one.session for one in running]), strict=True):
        one.made += [] if chunk is None else [chunk]


def alone(dit: lolrt.CausalDiT, case: Neighbour, inputs: dict[str, torch.Tensor]) -> list[LatentChunk]:
    engine = Engine(dit, 8, 8, pages=case.config.window.pool_pages)
    poison(engine)
    running = Running(engine, case, inputs)
    while len(running.made) < CHUNKS:
        step(engine, [running])
    return running.made


def together(dit: lolrt.CausalDiT, inputs: dict[str, torch.Tensor], batch_invariant: bool) -> list[list[LatentChunk]]:
    """All neighbours in one engine. Those that have made enough chunks leave, and give back pages that others then use."""
    pages = sum(case.config.window.pool_pages for case in NEIGHBOURS)
    engine = Engine(dit, 8, 8, pages=pages, sessions=len(NEIGHBOURS), batch_invariant=batch_invariant)
    poison(engine)
    running: dict[int, Running] = {}
    made: dict[int, list[LatentChunk]] = {}
    steps = 0
    while len(made) < len(NEIGHBOURS):
        for i, case in enumerate(NEIGHBOURS):
            if case.joins == steps:
                running[i] = Running(engine, case, inputs)
        step(engine, list(running.values()))
        for i in [i for i, one in running.items() if len(one.made) == CHUNKS]:
            made[i] = running[i].made
            running.pop(i).session.close()
        steps += 1
    assert engine.pool.free_pages == engine.pool.unreserved_pages == pages
    return [made[i] for i in range(len(NEIGHBOURS))]


@pytest.fixture(scope="module")
def references(dit, rollout_inputs) -> list[list[LatentChunk]]:
    lolrt.set_threads(1)
    return [alone(dit, case, rollout_inputs) for case in NEIGHBOURS]


def rows_depend_on_their_number(dit: lolrt.CausalDiT, most: int) -> bool:
    """Whether, on this machine, a product of the model's shapes gives a row other bits when more rows are multiplied with it."""
    block = dit._blocks[0]
    layers = [
        block.self_attn.fused_qkv(),
        *((layer.weight, layer.bias) for layer in (block.self_attn.o, block.ffn[0], block.ffn[2], dit.head.head)),
    ]
    for weight, bias in layers:
        x = torch.randn(most, weight.shape[1], dtype=weight.dtype)
        whole = F.linear(x, weight, bias)
        for rows in range(16, most, 16):
            if not torch.equal(F.linear(x[:rows], weight, bias), whole[:rows]):
                return True
    return False


@pytest.mark.whole
def test_neighbours_in_the_invariant_mode_change_no_bit(dit, references, rollout_inputs):
    for i, (made, expected) in enumerate(zip(together(dit, rollout_inputs, True), references, strict=True)):
        assert same(made, expected), f"neighbour {i}"
        assert all(torch.isfinite(chunk.latents).all() for chunk in made)


@pytest.mark.whole
def test_neighbours_change_nothing_but_the_roundings_of_products(dit, references, rollout_inputs):
    """The difference is exactly zero where torch's products do not depend on how many rows they multiply."""
    exact = not rows_depend_on_their_number(dit, 16 * sum(case.config.window.chunk_frames for case in NEIGHBOURS))
    made = together(dit, rollout_inputs, False)
    for i, (case, chunks, expected) in enumerate(zip(NEIGHBOURS, made, references, strict=True)):
        if exact:
            assert same(chunks, expected), f"neighbour {i}"
        elif not case.decides:
            error = torch.cat([a.latents - b.latents for a, b in zip(chunks, expected, strict=True)])
            most, rms = (FP32_MAX, FP32_MAX) if dit.dtype == torch.float32 else (BF16_MAX, BF16_RMS)
            assert error.abs().max() <= most and error.square().mean().sqrt() <= rms, f"neighbour {i}"


def test_the_neighbours_are_what_they_are_meant_to_be(references):
    """If they were not, the tests above would prove less than they say."""
    assert any(chunk.recalled_frames for chunk in references[2])
    assert any(chunk.switch for chunk in references[6]) and any(chunk.switch for chunk in references[7])
    assert [len(chunk.latents) for chunk in references[8]] == [1, 2, 2, 2]
    left_out = torch.cat([(chunk.mass == 0).flatten() for chunk in references[9]])
    assert left_out.any() and not left_out.all()


def test_what_is_measured_is_each_ones_own(small_dit, rollout_inputs):
    """Two neighbours with windows of the same size, so that a mass that belongs to the wrong one has the right shape and a sum of 1."""
    cases = [Neighbour(config(probe=True, seed=seed), text) for seed, text in ((1, (0, 20)), (2, (30, 40)))]
    engine = Engine(small_dit, 8, 8, pages=6, sessions=2, batch_invariant=True)
    running = [Running(engine, case, rollout_inputs) for case in cases]
    while len(running[0].made) < CHUNKS:
        step(engine, running)
    for case, one in zip(cases, running, strict=True):
        assert same(one.made, alone(small_dit, case, rollout_inputs))
    assert not torch.equal(running[0].made[-1].mass, running[1].made[-1].mass)


# Two layers of 32 channels are enough to test ownership, and fast enough for many attempts.
SMALLEST = smallest_dit()
POOL_PAGES, PROMPTS = 16, 3


@dataclass
class Open:
    """A session in the state machine, and all that was done to it, so that the same can be done to a session alone."""

    session: Session
    config: StreamConfig
    text: torch.Tensor
    done: list[Callable[[Session, Engine], list[LatentChunk]]]
    made: list[LatentChunk]


WINDOWS = [
    lolrt.Window(1, 1, 1),
    lolrt.Window(0, 2, 2),
    lolrt.Window(1, 3, 2),
    lolrt.Window(1, 2, 1, recall_frames=1, store_frames=2),
    lolrt.Window(0, 2, 2, recall_frames=2, store_frames=3),
    lolrt.Window(4, 9, 3),
    lolrt.Window(1, 3, 1, skip=0.2),
]


class Ownership(RuleBasedStateMachine):
    """Sessions of all kinds come, leave, are saved and are restored, in an engine whose free pages are NaN."""

    @initialize()
    def begin(self) -> None:
        lolrt.set_threads(1)
        self.engine = smallest_engine(SMALLEST, pages=POOL_PAGES, sessions=PROMPTS)
        self.open: list[Open] = []
        self.saved: list[tuple[lolrt.session.snapshot.Snapshot, Open]] = []

    @rule(window=st.sampled_from(WINDOWS), seed=st.integers(0, 5), start=st.integers(0, 2))
    def opens(self, window, seed, start):
        made = config(window, seed=seed)
        text = smallest_text(seed)
        given = torch.randn(start, 4, 4, 4, generator=torch.Generator().manual_seed(seed)) if start else None
        before = self.engine.pool.unreserved_pages, self.engine.pool.free_pages, len(self.engine._free_prompts)
        try:
            session = Session(self.engine, text, made, start=given)
        except lolrt.Error as error:
            assert "close" in str(error)  # the message says what would help
            assert window.pool_pages > before[0] or not before[2]
            assert before == (self.engine.pool.unreserved_pages, self.engine.pool.free_pages, len(self.engine._free_prompts))
            return
        assert window.pool_pages <= before[0] and before[2]
        self.open.append(Open(session, made, text, [], []))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def steps(self, data):
        chosen = data.draw(st.lists(st.sampled_from(self.open), unique_by=id, max_size=3))
        for one, chunk in zip(chosen, self.engine.step([one.session for one in chosen]), strict=True):
            if chunk is not None:
                assert torch.isfinite(chunk.latents).all()
                one.made.append(chunk)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), seed=st.integers(6, 9), recache=st.sampled_from(["window", "sinks", "none"]), chunks=st.integers(1, 2))
    def switches(self, data, seed, recache, chunks):
        one = data.draw(st.sampled_from(self.open))
        one.session.set_prompt(smallest_text(seed), recache=recache, over_chunks=chunks)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def saves(self, data):
        one = data.draw(st.sampled_from(self.open))
        if one.session.between_chunks:
            self.saved.append((one.session.snapshot(), one))
        else:
            with pytest.raises(lolrt.Error, match="on its way"):
                one.session.snapshot()

    @precondition(lambda self: self.open and self.saved)
    @rule(data=st.data())
    def goes_on_from_saved(self, data):
        """In any other session, even in the middle of its chunk; sessions with another config refuse it."""
        (snapshot, source), one = data.draw(st.sampled_from(self.saved)), data.draw(st.sampled_from(self.open))
        held = sorted(one.session.window.held_pages), one.session.next_frame
        if source.config == one.config:
            one.session.restore(snapshot)
            assert one.session.next_frame == snapshot.next_frame and one.session.between_chunks
        else:
            with pytest.raises(lolrt.Error, match="another stream"):
                one.session.restore(snapshot)
            assert held == (sorted(one.session.window.held_pages), one.session.next_frame)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def closes(self, data):
        one = data.draw(st.sampled_from(self.open))
        self.open = [other for other in self.open if other is not one]
        held = one.session.window.held_pages
        one.session.close()
        self.engine.pool.pages[:, list(held)] = torch.nan  # so that whoever still reads them shows it
        self.engine.latents[list(held)] = torch.nan

    @invariant()
    def every_page_has_one_owner(self):
        pool, held = self.engine.pool, [page for one in self.open for page in one.session.window.held_pages]
        assert len(held) == len(set(held)), "a page has two owners"
        assert len(held) + pool.free_pages == POOL_PAGES
        assert pool.unreserved_pages == POOL_PAGES - sum(one.config.window.pool_pages for one in self.open)
        prompts = [int(one.session.text.page_table[0]) for one in self.open]
        assert sorted(prompts + self.engine._free_prompts) == list(range(PROMPTS))
        for one in self.open:
            assert len(one.session.window.held_pages) <= one.config.window.pool_pages

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for one in self.open:
            one.session.close()
        assert self.engine.pool.free_pages == self.engine.pool.unreserved_pages == POOL_PAGES
        assert sorted(self.engine._free_prompts) == list(range(PROMPTS))


Ownership.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestOwnership = Ownership.TestCase


def test_a_session_that_is_closed_is_closed():
    """Its pages and its prompt may belong to another session by now, so it can neither go on nor give them back again."""
    engine = smallest_engine(SMALLEST, pages=6, sessions=2)
    first, second = (Session(engine, smallest_text(seed), config(seed=seed)) for seed in (1, 2))
    run(engine, first, 2), run(engine, second, 2)
    first.close()
    first.close()
    assert sorted(engine._free_prompts) == [int(first.text.page_table[0])] and engine.pool.unreserved_pages == 3
    saved = second.snapshot()
    for use in (first.pending, first.snapshot, lambda: first.set_prompt(smallest_text(3)), lambda: first.restore(saved)):
        with pytest.raises(lolrt.Error, match="closed"):
            use()
    third = Session(engine, smallest_text(1), config(seed=1))
    made = run(engine, third, 3)
    other = smallest_engine(SMALLEST, pages=3, sessions=1)
    assert same(made, run(other, Session(other, smallest_text(1), config(seed=1)), 3))


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "dropped"])
def test_a_session_that_is_closed_or_that_nobody_holds_gives_all_back(closed):
    """The pages of its window, and those of a full memory bank."""
    window = lolrt.Window(1, 2, 1, recall_frames=1, store_frames=2)
    engine = smallest_engine(SMALLEST, pages=window.pool_pages, sessions=1)
    for seed in range(3):
        session = Session(engine, smallest_text(seed), config(window, seed=seed))
        run(engine, session, 6)
        assert engine.pool.free_pages == 0
        if closed:
            session.close()
        del session
        assert engine.pool.free_pages == engine.pool.unreserved_pages == window.pool_pages and engine._free_prompts == [0]


def test_a_session_that_cannot_be_made_takes_nothing():
    engine = smallest_engine(SMALLEST, pages=3, sessions=1)
    for wrong in (
        lambda: Session(engine, torch.zeros(9, 8), config()),
        lambda: Session(engine, smallest_text(0), config(), start=torch.zeros(1, 4, 4, 8)),
        lambda: Session(engine, smallest_text(0), config(lolrt.Window(9, 9, 3))),
        lambda: Session(engine, smallest_text(0), config(seed=-1)),
        lambda: Session(engine, smallest_text(0), config(rope=lolrt.Rope(bases=[1.0, 2.0, 3.0]))),
    ):
        with pytest.raises(lolrt.Error):
            wrong()
        assert engine.pool.unreserved_pages == 3 and engine._free_prompts == [0]


class FailsOnce:
    """Noise that raises an error the first time that it is drawn for a step of a frame."""

    def __init__(self, frame: int, step: int) -> None:
        self.noise, self.at, self.failed = lolrt.Noise(1, 4, 4, 4), (frame, step), False

    def __call__(self, first_frame: int, n_frames: int, step: int) -> torch.Tensor:
        if (first_frame, step) == self.at and not self.failed:
            self.failed = True
            raise OSError("no noise")
        return self.noise(first_frame, n_frames, step)


@pytest.mark.parametrize("frame, step", [(0, 0), (3, 0), (3, 1)])
@pytest.mark.parametrize("window", [lolrt.Window(1, 2, 1), lolrt.Window(1, 2, 1, recall_frames=1, store_frames=2)])
def test_who_fails_begins_its_chunk_anew_and_no_neighbour_loses_one(frame, step, window):
    """No neighbour loses a chunk that it finishes in the failing step, and the chunk that is made again has the same bits."""
    made: dict[int, list[LatentChunk]] = {0: [], 1: [], 2: []}
    engine = smallest_engine(SMALLEST, pages=3 * window.pool_pages, sessions=3)
    sources = [lolrt.Noise(1, 4, 4, 4), FailsOnce(frame, step), lolrt.Noise(1, 4, 4, 4)]
    # A session that needs fewer passes, so that it finishes chunks while the failing one is at any of its passes.
    samplers = [TWO_PASSES, TWO_PASSES, Sampler(timesteps=(1000,))]
    sessions = [
        Session(engine, smallest_text(i), config(window, sampler), noise=source)
        for i, (source, sampler) in enumerate(zip(sources, samplers, strict=True))
    ]
    failures = 0
    while min(map(len, made.values())) < 6:
        for i, chunk in enumerate(engine.step(sessions)):
            failures += isinstance(chunk, OSError)
            made[i] += [chunk] if isinstance(chunk, LatentChunk) else []
    assert failures == 1
    for i, (sampler, chunks) in enumerate(zip(samplers, made.values(), strict=True)):
        other = smallest_engine(SMALLEST, pages=window.pool_pages, sessions=1)
        session = Session(other, smallest_text(i), config(window, sampler), noise=lolrt.Noise(1, 4, 4, 4))
        assert same(chunks, run(other, session, len(chunks))), f"session {i}"


def test_a_step_is_one_pass_of_each():
    engine = smallest_engine(SMALLEST, pages=8, sessions=1)
    session = Session(engine, smallest_text(0), config(lolrt.Window(1, 2, 1), TWO_PASSES), noise=lolrt.Noise(1, 4, 4, 4))
    with pytest.raises(lolrt.Error, match="given twice"):
        engine.step([session, session])
    assert engine.step([session]) == [None]
