"""Long-term memory: what the store keeps and finds; a stream with it resumes, and a stream without it has not changed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lolrt
from lolrt import _core, ops
from lolrt.cli import main
from lolrt.engine.kv_window import KVWindow
from lolrt.engine.memory_bank import MemoryBank
from lolrt.engine.page_pool import PagePool
from lolrt.lab import returning

pytestmark = pytest.mark.whole

LAYERS, HEADS, DIM, TOKENS = 2, 2, 128, 16


def unit(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(length == 0, 1, length)


class NaiveStore:
    """The rules of `MemoryBank` in float64, over a plain list of (frame, mean key)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.kept: list[tuple[int, np.ndarray]] = []

    def keep(self, frame: int, key: np.ndarray) -> None:
        self.kept.append((frame, key))
        if len(self.kept) > self.capacity:
            keys = unit(np.stack([key for _, key in self.kept]))
            likeness = np.einsum("alhd,blhd->ab", keys, keys)
            del self.kept[max((likeness[a, b], b) for b in range(len(self.kept)) for a in range(b))[1]]

    def find(self, query: np.ndarray, count: int) -> list[int]:
        keys = np.stack([key for _, key in self.kept])
        likeness = np.einsum("alhd,lhd->a", unit(keys - keys.mean(0)), unit(query))
        return sorted(np.argsort(-likeness)[:count].tolist())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 14), st.integers(1, 8), st.integers(0, 2**31))
def test_a_store_follows_its_rules(capacity: int, frames: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pool = _core.Pool(capacity + 1)
    store, naive = MemoryBank(pool, capacity), NaiveStore(capacity)
    for frame in range(100, 100 + frames):
        key = random.standard_normal((2, 3, 4))
        page = pool.acquire()
        store.keep(frame, page, torch.from_numpy(key).float())
        pool.release(page)  # as when a frame leaves the window
        naive.keep(frame, key)
        assert store.frames == [frame for frame, _ in naive.kept]
        assert pool.free_pages == capacity + 1 - len(store.frames) and len(set(store.pages)) == len(store.pages)
    if frames:
        query = random.standard_normal((2, 3, 4))
        assert store.find(torch.from_numpy(query).float(), count) == naive.find(query, count)


def test_a_long_scene_does_not_drive_a_short_one_out() -> None:
    """With a thousand frames of one scene and five of another, both scenes stay, and a query of each finds it."""
    random = np.random.default_rng(0)
    scenes = random.standard_normal((2, LAYERS, HEADS, 8)) + 5  # the part that all keys have in common
    pool = _core.Pool(9)
    store = MemoryBank(pool, 8)
    for frame in range(1005):
        page = pool.acquire()
        store.keep(frame, page, torch.from_numpy(scenes[int(frame >= 5)] + 0.1 * random.standard_normal(scenes[0].shape)).float())
        pool.release(page)
    common = scenes.mean(0)
    for query, is_short in ((scenes[0] - common, True), (scenes[1] - common, False)):
        [found] = store.find(torch.from_numpy(query + 0.1 * random.standard_normal(query.shape)).float(), 1)
        assert (store.frames[found] < 5) == is_short


def test_what_all_keys_have_in_common_silences_no_head() -> None:
    """One head distinguishes frame 1 from the others, on top of a large part that all share. Another head, without such a part, leans
    towards frame 2."""
    own = torch.eye(8)
    keys = torch.stack([torch.stack([own[i] + 100 * own[7], own[i]]) for i in range(4)])[:, None]
    store = MemoryBank(pool := _core.Pool(4), 4)
    for frame, key in enumerate(keys):
        store.keep(frame, pool.acquire(), key)
    assert store.find(torch.stack([own[1], own[2] + own[5] + own[6]])[None], 1) == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("tokens, heads, dim", [(1, 1, 2), (16, 2, 8), (37, 3, 14), (24, 4, 64)])
def test_mean_keys_are_those_that_were_written(dtype, tokens, heads, dim):
    k, v = torch.randn(2, 1, tokens, heads, dim, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    pages = torch.full((3, ops.page_elements(dtype, tokens, heads, dim)), torch.nan, dtype=dtype)
    ops.kv_write(k, v, pages, torch.tensor([1], dtype=torch.int32))
    exact = k[0].double().mean(0).float()
    torch.testing.assert_close(ops.mean_key(pages[1], tokens, heads, dim), exact, rtol=1e-5, atol=1e-6)


def written(cache: KVWindow, first_frame: int, keys: torch.Tensor) -> None:
    """A chunk whose frames have these keys [frames, heads, dim] in all tokens of all layers."""
    chunk = cache.advance(first_frame, len(keys))
    k = keys[:, None].expand(-1, TOKENS, -1, -1).contiguous()
    for pages in cache.pool.layer_pages:
        ops.kv_write(k, k, pages, chunk.chunk_page_table)


@pytest.mark.parametrize("wanted", [9, 15, 24])
def test_the_page_whose_content_matches_comes_back(wanted):
    """The keys of every frame have their own direction and, more strongly, a common one. A query in the own direction brings that page,
    with the contents that were written there."""
    window = lolrt.Window(3, 6, recall_frames=1, store_frames=30)
    cache = KVWindow(window, PagePool(window.pool_pages, LAYERS, TOKENS, HEADS, DIM, torch.float32))
    *own, common = torch.linalg.qr(torch.randn(DIM, 40, generator=torch.Generator().manual_seed(3))).Q.T
    keys = (torch.stack(own) + 4 * common)[:, None].expand(-1, HEADS, -1).contiguous()
    for first in range(0, 36, 3):
        written(cache, first, keys[first : first + 3])
    chunk = cache.advance(36, 3)
    assert cache.stored_frames == list(range(3, 33))
    query = (own[wanted] + 9 * common).expand(LAYERS, HEADS, -1)
    recalled = cache.recall(chunk, query)
    assert list(recalled.frames) == [0, 1, 2, wanted, *range(33, 39)] and recalled.recalled == 1
    assert torch.equal(recalled.chunk_page_table, recalled.page_table[-3:])
    written(cache, 36, keys[36:39])  # with its own frames, so that every page of the window is written
    rotation = torch.zeros(10, 3, HEADS, DIM // 2, 2)
    rotation[..., 0] = 1
    q = 1e4 * own[wanted].expand(3, 1, HEADS, -1).contiguous()
    out = ops.frame_attention(q, cache.pool.layer_pages[1], recalled.page_table, TOKENS, rotation=rotation)
    torch.testing.assert_close(out, keys[wanted].expand_as(out), atol=1e-5, rtol=1e-5)


def test_recalled_frames_stand_behind_the_recent_ones_or_where_they_were():
    frames = [0, 1, 2, 40, 71, 94, 95, 96, 97, 98, 99]
    near = lolrt.Rope().offsets(frames, 3, 3, 2)
    assert near[:, 0].tolist() == [97, 96, 95, 5, 4, 3, 2, 1, 0, -1, -2]
    kept = lolrt.Rope(recall_positions="kept").offsets(frames, 3, 3, 2)
    assert kept[:, 0].tolist() == [97, 96, 95, 57, 26, 3, 2, 1, 0, -1, -2]
    assert lolrt.Rope("window").offsets(frames, 3, 3, 2)[:, 2].tolist() == list(range(10, -1, -1))
    assert (lolrt.Rope().offsets(frames, 3, 3) == kept).all(), "of a window without recall, nothing is moved"
    with pytest.raises(lolrt.Error, match='"near" or "kept"'):
        lolrt.Rope(recall_positions="far")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def dit(request, data) -> lolrt.CausalDiT:
    return lolrt.load_dit(data / "self_forcing_dmd_small.pt", request.param)


WINDOW = lolrt.Window(3, 6, recall_frames=2, store_frames=4)


def stream(dit: lolrt.CausalDiT, inputs: dict[str, torch.Tensor], window: lolrt.Window, **options) -> lolrt.LatentStream:
    return lolrt.LatentStream(dit, inputs["prompt_embeds"][:20], 8, 8, window=window, **options)


def latents(source: lolrt.LatentStream, chunks: int) -> torch.Tensor:
    return torch.cat([chunk.latents for chunk in islice(source, chunks)])


def test_a_store_that_nothing_is_recalled_from_is_none(dit, rollout_inputs):
    """If recall is off, whatever the size of the store, the stream has the bits of one without, the same pages, and no more state."""
    off, without = (stream(dit, rollout_inputs, lolrt.Window(3, 6, store_frames=n)) for n in (99, 0))
    for a, b in islice(zip(off, without, strict=True), 5):
        assert torch.equal(a.latents, b.latents) and a.page_frames == b.page_frames and a.recalled_frames == 0
    assert off.state_dict().keys() == without.state_dict().keys() and not any("stored" in name for name in off.state_dict())
    assert lolrt.Window(3, 6, store_frames=99).pool_pages == 9 and WINDOW.pool_pages == 13


def test_until_a_frame_has_left_there_is_nothing_to_recall(dit, rollout_inputs):
    """The first three chunks fill the window and have the bits of a stream without recall; then the rollouts differ."""
    remembering, plain = stream(dit, rollout_inputs, WINDOW), stream(dit, rollout_inputs, lolrt.Window(3, 6))
    assert torch.equal(latents(remembering, 3), latents(plain, 3))
    assert not torch.equal(next(remembering).latents, next(plain).latents)


def test_a_chunk_sees_sinks_then_what_was_recalled_then_recent_frames(small_dit, rollout_inputs):
    seen = list(islice(stream(small_dit, rollout_inputs, WINDOW, probe=True), 8))
    for chunk in seen[4:]:
        recalled, first = list(chunk.page_frames[3:5]), chunk.first_frame
        assert chunk.page_frames == (0, 1, 2, *recalled, *range(first - 3, first + 3)) and chunk.recalled_frames == 2
        assert recalled == sorted(recalled) and recalled[0] >= 3 and recalled[1] < first - 3
        assert chunk.mass.shape[-1] == 11 and (chunk.mass > 0).all()


@pytest.mark.parametrize("chunks", [3, 4, 9])
def test_resuming_gives_the_bits_of_not_stopping(dit, rollout_inputs, chunks):
    whole = stream(dit, rollout_inputs, WINDOW)
    latents(whole, chunks)
    state = whole.state_dict()
    resumed = stream(dit, rollout_inputs, WINDOW)
    latents(resumed, 5)  # its own contents are forgotten
    resumed.load_state_dict(state)
    for _ in range(5):
        a, b = next(whole), next(resumed)
        assert torch.equal(a.latents, b.latents) and a.page_frames == b.page_frames


def test_a_state_with_another_store_is_refused_and_changes_nothing(small_dit, rollout_inputs):
    remembering, plain = stream(small_dit, rollout_inputs, WINDOW), stream(small_dit, rollout_inputs, lolrt.Window(3, 6))
    latents(remembering, 5), latents(plain, 5)
    twin = stream(small_dit, rollout_inputs, WINDOW)
    latents(twin, 5)
    with pytest.raises(lolrt.Error, match=r"window\.recall_frames is 0 in the saved one and 2 here"):
        remembering.load_state_dict(plain.state_dict())
    with pytest.raises(lolrt.Error, match=r"window\.recall_frames is 2 in the saved one and 0 here"):
        plain.load_state_dict(remembering.state_dict())
    with pytest.raises(lolrt.Error, match=r"window\.store_frames is 4 in the saved one and 2 here"):
        stream(small_dit, rollout_inputs, lolrt.Window(3, 6, recall_frames=2, store_frames=2)).load_state_dict(twin.state_dict())
    assert torch.equal(next(remembering).latents, next(twin).latents)


def test_wrong_windows_are_told():
    for recall, store in ((-1, 4), (5, 4)):
        with pytest.raises(lolrt.Error, match="0 <= recall <= store"):
            lolrt.Window(recall_frames=recall, store_frames=store)


def test_given_frames_are_not_denoised_and_recall_nothing(small_dit, rollout_inputs):
    start = latents(stream(small_dit, rollout_inputs, lolrt.Window(3, 6)), 6)
    chunks = list(islice(stream(small_dit, rollout_inputs, WINDOW, start=start), 7))
    assert [chunk.recalled_frames for chunk in chunks] == [0] * 6 + [2]
    assert torch.equal(torch.cat([chunk.latents for chunk in chunks[:6]]), start)


# ---- lolrt lab returning ----------------------------------------------------------------------------------------------------


def test_strangeness_is_one_for_strangers_and_small_for_who_is_known_again():
    random = np.random.default_rng(0)
    firsts = random.standard_normal((4, 9, 3, 50))
    known = [returning.Journey(first, first[::-1] + 0.1, 1.0) for first in firsts]
    strangers = [returning.Journey(first, random.standard_normal((9, 3, 50)), 0.0) for first in firsts]
    assert returning.distance(known[0].again, known[0].first) == pytest.approx(0.1)
    for own in range(4):
        assert returning.strangeness(own, known) < 0.1
        assert returning.strangeness(own, strangers) == pytest.approx(1, abs=0.05)
    walk = np.cumsum(np.full((5, 2, 2), 0.3), axis=0)
    assert returning.motion(walk) == pytest.approx(0.3)


def test_a_table_compares_with_the_first_policy():
    first = np.zeros((4, 2))
    moving = np.array([[1.0, 1.0], [3.0, 3.0]])
    group = [returning.Journey(first + i, moving, 0.0) for i in range(2)]
    halved = [returning.Journey(first + i, moving / 2, 0.5) for i in range(2)]
    rows = [line.strip("| ").split(" | ") for line in returning.table(["a", "b"], [[group], [halved]]).splitlines()]
    assert rows[2][2].startswith("1.00 [1.00, 1.00]") and rows[2][3].startswith("1.00") and rows[2][4].startswith("0.00")
    # distances 2 and (0 + 2) / 2 against 1 and (0.5 + 0.5) / 2
    assert rows[3][2] == "0.50 [0.50, 0.50]" and rows[3][3].startswith("0.50") and rows[3][4].startswith("0.50")


def test_the_command_says_first_what_it_will_cost(tmp_path, monkeypatch, capsys):
    """Two policies, three scenes and two seeds are 12 streams of 30 chunks; of each window one chunk is timed."""
    timed = []

    def half_a_second(work: Callable[[], object]) -> float:
        timed.append(work())
        return 0.5

    def stopped(*_: object) -> None:
        raise lolrt.Error("before the first")

    monkeypatch.setattr("lolrt.lab.cost.cpu_seconds", half_a_second)
    monkeypatch.setattr("lolrt.workers.pool", stopped)
    assert main(["lab", "returning", "--policies", "sigma=0", "sigma=0,recall_frames=3", "--seeds", "2", "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("12 streams of 30 chunks are to be made: about 3 CPU minutes, predicted from a chunk of")
    assert len(timed) == 2


def test_a_journey_goes_out_and_comes_back(tiny, monkeypatch):
    for name, chunks in (("OPENING", 1), ("VISIT", 3), ("AWAY", 2), ("RETURN", 3)):
        monkeypatch.setattr(returning, name, chunks)
    policies = ("sigma=0,recent_frames=3", "sigma=0,recent_frames=3,recall_frames=3")
    journeys = [returning.journey("tiny", policy, returning.SCENES[0], 1) for policy in policies]
    assert all(one.first.shape == one.again.shape == (3, 24, 8, 12) for one in journeys)
    assert journeys[0].recalled_from_first == 0 < journeys[1].recalled_from_first <= 1
    stream = tiny.latent_stream(returning.SCENES[0][0], seed=1, rope=lolrt.Rope(sigma=0), window=lolrt.Window(3, 3))
    next(stream)
    stream.set_prompt(tiny.encode_text(returning.SCENES[0][1]))
    np.testing.assert_array_equal(journeys[0].first, latents(stream, 3)[6:])
