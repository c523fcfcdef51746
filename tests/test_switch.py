"""Prompt switches and given starts: after a re-cached switch, a stream equals one that had its text and its latents from the start."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lolrt
from bench.published import PublishedDiT
from lolrt.engine.kv_window import KVWindow
from lolrt.engine.page_pool import PagePool

pytestmark = pytest.mark.whole

PLAIN = lolrt.Rope(sigma=0)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def dit(request, data) -> lolrt.CausalDiT:
    return lolrt.load_dit(data / "self_forcing_dmd_small.pt", request.param)


@pytest.fixture(scope="module")
def texts(rollout_inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts of different lengths."""
    return rollout_inputs["prompt_embeds"][:20], 3 * rollout_inputs["prompt_embeds"][40:52]


def stream(dit: lolrt.CausalDiT, text: torch.Tensor, **options) -> lolrt.LatentStream:
    return lolrt.LatentStream(dit, text, 8, 8, **options)


def latents(stream: lolrt.LatentStream, chunks: int) -> torch.Tensor:
    return torch.cat([chunk.latents for chunk in islice(stream, chunks)])


@pytest.mark.parametrize("chunks", [1, 3, 4])
def test_a_switch_that_re_caches_all_is_a_fresh_stream_with_the_same_latents(chunks, dit, texts):
    old, new = texts
    switched = stream(dit, old)
    past = latents(switched, chunks)
    switched.set_prompt(new, recache="sinks")
    fresh = stream(dit, new, start=past)
    assert torch.equal(latents(fresh, chunks), past)
    following = latents(switched, 3)
    assert torch.equal(following, latents(fresh, 3))
    kept = stream(dit, old, start=past)
    latents(kept, chunks)
    assert not torch.equal(following[:3], next(kept).latents)


def test_the_same_with_a_window_that_has_moved_on(dit, texts):
    """With positions relative to the window, its frames are those of a fresh stream with no earlier frames, whatever their numbers."""
    old, new = texts
    rope, window = lolrt.Rope(positions="window"), lolrt.Window()
    switched = stream(dit, old, rope=rope)
    past = latents(switched, 7)
    dropped = len(past) - window.pages
    source = lolrt.Noise(0, 16, 8, 8)
    fresh = stream(
        dit, new, rope=rope, start=torch.cat([past[:3], past[-9:]]), noise=lambda first, n, step: source(first + dropped, n, step)
    )
    latents(fresh, 4)
    switched.set_prompt(new, recache="sinks")
    assert torch.equal(latents(switched, 2), latents(fresh, 2))


def test_a_re_cached_switch_against_the_published_model(texts, small_dit):
    """The same latents with the new text, and the chunk that follows, by the public code's arithmetic."""
    old, new = texts
    published = PublishedDiT(small_dit.config)
    published.load_state_dict(small_dit.state_dict())
    sampler, noise = lolrt.Sampler(), lolrt.Noise(0, 16, 8, 8)
    switched = stream(small_dit, old, rope=PLAIN)
    past = latents(switched, 3)
    switched.set_prompt(new, recache="sinks")
    with torch.inference_mode():
        text, caches = published.encode_text(new), published.caches(lolrt.Window(), 16)
        for first in range(0, 9, 3):
            published(past[first : first + 3], 0.0, first, caches, text)
        timesteps = sampler.model_timesteps.tolist()
        expected = sampler.denoise(lambda x, k: published(x, timesteps[k], 9, caches, text).float(), noise, 9, 3)
    assert (next(switched).latents - expected).abs().max() <= 5e-5


@pytest.mark.parametrize("recache, changed", [("sinks", range(12)), ("window", range(3, 12)), ("none", range(0))])
def test_what_is_re_cached(recache, changed, small_dit, texts):
    source = stream(small_dit, texts[0])
    latents(source, 6)
    before = source.state_dict()
    source.set_prompt(texts[1], recache=recache)
    for inputs in source.session._follow_switch():
        source.dit(inputs)
    after = source.state_dict()
    assert torch.equal(before["cache.frames"], after["cache.frames"])
    for page in range(12):
        assert torch.equal(before["cache.pages"][:, page], after["cache.pages"][:, page]) == (page not in changed)


def test_the_same_prompt_again_changes_no_bit_while_nothing_has_left_the_window(dit, texts):
    switched, plain = stream(dit, texts[0]), stream(dit, texts[0])
    latents(switched, 3), latents(plain, 3)
    switched.set_prompt(texts[0], recache="sinks")
    assert torch.equal(latents(switched, 3), latents(plain, 3))


def test_an_interpolated_switch_is_a_switch_to_each_mixture(small_dit, texts):
    old, new = texts
    padded = torch.zeros_like(old)
    padded[: len(new)] = new
    smooth, stepped = stream(small_dit, old), stream(small_dit, old)
    latents(smooth, 2), latents(stepped, 2)
    smooth.set_prompt(new, over_chunks=4)
    for quarters in (1, 2, 3, 4):
        stepped.set_prompt(new if quarters == 4 else old + quarters / 4 * (padded - old))
        chunk = next(smooth)
        torch.testing.assert_close(chunk.latents, next(stepped).latents, atol=1e-4, rtol=0)
        assert (chunk.switch is None) == (quarters < 4)
    assert chunk.switch.chunks == 4 and 0 < chunk.switch.recache_ms < chunk.switch.total_ms
    assert next(smooth).switch is None


def test_a_switch_that_is_overtaken_goes_on_from_its_mixture(small_dit, texts):
    old, new = texts[0][:12], texts[1]
    overtaken, direct = stream(small_dit, old), stream(small_dit, (old + new) / 2)
    overtaken.set_prompt(new, over_chunks=2)
    first = next(overtaken).latents
    torch.testing.assert_close(first, next(direct).latents, atol=1e-4, rtol=0)
    for source in (overtaken, direct):
        source.set_prompt(old, over_chunks=3)
    torch.testing.assert_close(latents(overtaken, 3), latents(direct, 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("chunks_after", [0, 1, 4])
def test_a_stream_saved_around_a_switch_resumes_bit_for_bit(chunks_after, dit, texts):
    whole = stream(dit, texts[0])
    latents(whole, 5)
    whole.set_prompt(texts[1], over_chunks=3, recache="sinks")
    list(islice(whole, chunks_after))
    state = whole.state_dict()
    resumed = stream(dit, texts[0])
    resumed.load_state_dict(state)
    for _ in range(4):
        expected, chunk = next(whole), next(resumed)
        assert torch.equal(chunk.latents, expected.latents)
        assert (chunk.switch is None) == (expected.switch is None)


def test_resuming_forgets_a_switch_that_the_saved_stream_had_not_seen(small_dit, texts):
    whole = stream(small_dit, texts[0])
    latents(whole, 2)
    state = whole.state_dict()
    resumed = stream(small_dit, texts[1])
    resumed.set_prompt(texts[1])
    resumed.load_state_dict(state)
    assert torch.equal(next(resumed).latents, next(whole).latents)


def test_a_switch_that_is_interrupted_is_done_again(small_dit, texts, monkeypatch):
    def interrupted(first: int) -> None:
        raise KeyboardInterrupt

    source, twin = stream(small_dit, texts[0]), stream(small_dit, texts[0])
    for one in (source, twin):
        latents(one, 2)
        one.set_prompt(texts[1], over_chunks=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(source.session, "_recache", interrupted)
        next(source)
    assert torch.equal(latents(source, 3), latents(twin, 3))


def test_switches_that_cannot_be_are_told_at_once(small_dit, texts):
    source, twin = stream(small_dit, texts[0]), stream(small_dit, texts[0])
    with pytest.raises(lolrt.Error, match=r"expected \[1 to 512 text tokens, 64\]"):
        source.set_prompt(texts[1][:, 1:])
    with pytest.raises(lolrt.Error, match="recache is 'all'; expected one of window, sinks, none"):
        source.set_prompt(texts[1], recache="all")
    with pytest.raises(lolrt.Error, match="over 0 chunks"):
        source.set_prompt(texts[1], over_chunks=0)
    assert torch.equal(next(source).latents, next(twin).latents)


@pytest.mark.parametrize("frames, sizes", [(1, [1, 3]), (3, [3, 3]), (4, [1, 3, 3]), (8, [2, 3, 3, 3])])
def test_given_latents_are_the_first_chunks(frames, sizes, dit, texts):
    """In the chunks in which they were made, they give the stream that made them; in others, only the first chunk is shorter."""
    whole = stream(dit, texts[0], probe=True)
    made = latents(whole, 3)
    source = stream(dit, texts[0], start=made[:frames], start_frame=7, probe=True)
    chunks = list(islice(source, len(sizes)))
    assert [len(chunk.latents) for chunk in chunks] == sizes
    assert [chunk.first_frame for chunk in chunks] == [7 + sum(sizes[:i]) for i in range(len(sizes))]
    assert torch.equal(torch.cat([chunk.latents for chunk in chunks])[:frames], made[:frames])
    for chunk in chunks:
        assert chunk.mass.shape[2:] == (len(chunk.latents), len(chunk.page_frames)) and chunk.mass.isfinite().all()
    if frames % 3 == 0:
        again = stream(dit, texts[0], start=made[:frames])
        assert torch.equal(latents(again, 4), latents(stream(dit, texts[0]), 4))


def test_a_stream_saved_within_its_start_resumes_bit_for_bit(small_dit, texts):
    given_latents = latents(stream(small_dit, texts[0]), 3)[:7]
    whole, resumed = (stream(small_dit, texts[0], start=given_latents) for _ in range(2))
    latents(whole, 2)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(latents(resumed, 3), latents(whole, 3))


def test_a_start_of_another_size_is_told(small_dit, texts):
    with pytest.raises(lolrt.Error, match=r"start is \[1, 16, 8, 4\]; expected latents \[frames, 16, 8, 8\]"):
        stream(small_dit, texts[0], start=torch.zeros(1, 16, 8, 4))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 8), st.integers(0, 1000), st.booleans())
def test_chunks_of_a_window_are_those_that_went_in(sinks, more, size, first_size, whole, start, with_sinks):
    first_size = min(first_size, size)
    window = lolrt.Window(sinks, size + more, size)
    cache = KVWindow(window, PagePool(window.pool_pages, 1, 1, 1, 8, torch.float32))
    went_in = [list(range(start, start + first_size))]
    went_in += [list(range(a, a + size)) for a in range(start + first_size, start + first_size + whole * size, size)]
    for chunk in went_in:
        newest = cache.advance(chunk[0], len(chunk))
        assert list(newest.frames[-len(chunk) :]) == chunk
    first = 0 if with_sinks else min(sinks, len(cache.frames))
    wanted = cache.frames[first:]
    expected = [own for chunk in went_in if (own := [frame for frame in chunk if frame in wanted])]
    page_of = dict(zip(cache.frames, cache.page_table.tolist(), strict=True))
    chunks = list(cache.chunks(first))
    assert [list(chunk.frames[len(chunk.frames) - len(chunk.chunk_page_table) :]) for chunk in chunks] == expected
    for chunk in chunks:
        assert list(chunk.frames) == [frame for frame in cache.frames if frame <= chunk.frames[-1]]
        assert chunk.page_table.tolist() == [page_of[frame] for frame in chunk.frames]
        assert chunk.chunk_page_table.tolist() == chunk.page_table.tolist()[-len(chunk.chunk_page_table) :]
