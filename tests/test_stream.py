"""Streams: the same bits however they are run, and constant memory forever."""

from __future__ import annotations

import gc
import resource
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

import lolrt
from lolrt import _core
from lolrt.models.vae.taehv import TAEHVConfig
from lolrt.session.stream import Stream


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def dit(request, data) -> lolrt.CausalDiT:
    return lolrt.load_dit(data / "self_forcing_dmd_small.pt", request.param)


def stream(dit: lolrt.CausalDiT, inputs: dict[str, torch.Tensor], **options) -> lolrt.LatentStream:
    return lolrt.LatentStream(dit, inputs["prompt_embeds"][:20], 8, 8, **options)


def latents(stream: lolrt.LatentStream, chunks: int) -> torch.Tensor:
    return torch.cat([chunk.latents for chunk in islice(stream, chunks)])


@pytest.mark.whole
def test_sigma_zero_gives_the_bits_of_plain_rope(dit, rollout_inputs):
    jittered = stream(dit, rollout_inputs, rope=lolrt.Rope(sigma=0, jitter_seed=9))
    plain = stream(dit, rollout_inputs, rope=lolrt.Rope(bases=[10000.0, 10000.0]))
    assert torch.equal(latents(jittered, 6), latents(plain, 6))


def test_jitter_changes_the_rollout(dit, rollout_inputs):
    assert not torch.equal(
        latents(stream(dit, rollout_inputs, rope=lolrt.Rope(sigma=0.8)), 3),
        latents(stream(dit, rollout_inputs, rope=lolrt.Rope(sigma=0)), 3),
    )


def test_the_first_chunk_takes_its_own_passes_and_no_other_does(dit, rollout_inputs):
    many, few = (1000, 800, 600, 400, 200), (1000, 500)
    both = stream(dit, rollout_inputs, sampler=lolrt.Sampler(timesteps=few, first_timesteps=many))
    twin = stream(dit, rollout_inputs, sampler=lolrt.Sampler(timesteps=many))
    assert torch.equal(next(both).latents, next(twin).latents)
    rest = stream(dit, rollout_inputs, sampler=lolrt.Sampler(timesteps=few))
    rest.restore(replace(rest.snapshot(), tensors=twin.snapshot().tensors))
    assert torch.equal(latents(both, 2), latents(rest, 2))


@pytest.mark.whole
def test_resuming_gives_the_bits_of_not_stopping(dit, rollout_inputs):
    whole = stream(dit, rollout_inputs)
    first = latents(whole, 5)
    state = whole.state_dict()
    rest = latents(whole, 4)
    resumed = stream(dit, rollout_inputs)
    resumed.load_state_dict(state)
    assert torch.equal(latents(resumed, 4), rest)
    assert not torch.equal(first[:12], rest)


@pytest.mark.whole
def test_resuming_before_the_window_is_full(dit, rollout_inputs):
    whole = stream(dit, rollout_inputs)
    next(whole)
    state = whole.state_dict()
    resumed = stream(dit, rollout_inputs)
    resumed.load_state_dict(state)
    assert torch.equal(latents(resumed, 5), latents(whole, 5))


def test_resuming_before_the_first_chunk(small_dit, rollout_inputs):
    whole, resumed = stream(small_dit, rollout_inputs), stream(small_dit, rollout_inputs)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(latents(resumed, 3), latents(whole, 3))


def test_a_state_of_another_size_is_refused_and_changes_nothing(small_dit, rollout_inputs):
    other = lolrt.LatentStream(small_dit, rollout_inputs["prompt_embeds"], 4, 4)
    next(other)
    mine, twin = stream(small_dit, rollout_inputs), stream(small_dit, rollout_inputs)
    next(mine), next(twin)
    with pytest.raises(lolrt.Error, match=r"latent_size is \[4, 4\] in the saved one and \[8, 8\] here"):
        mine.load_state_dict(other.state_dict())
    full = stream(small_dit, rollout_inputs)
    latents(full, 4)
    small = stream(small_dit, rollout_inputs, window=lolrt.Window(sink_frames=1, recent_frames=3))
    with pytest.raises(lolrt.Error, match=r"window\.recent_frames is 9 in the saved one and 3 here"):
        small.load_state_dict(full.state_dict())
    with pytest.raises(lolrt.Error, match="lacks 'description'"):
        mine.load_state_dict({"next_frame": torch.tensor(3)})
    assert torch.equal(next(mine).latents, next(twin).latents)


@pytest.mark.whole
def test_frame_numbers_do_not_matter_but_for_the_noise(dit, rollout_inputs):
    """Only differences of positions matter: with the same noise, a stream at frame 10^9 has the bits of one at frame 0."""

    def from_zero(start: int):
        source = lolrt.Noise(5, 16, 8, 8)
        return lambda first_frame, n_frames, step: source(first_frame - start, n_frames, step)

    far = stream(dit, rollout_inputs, noise=from_zero(10**9), start_frame=10**9)
    near = stream(dit, rollout_inputs, noise=from_zero(0))
    for a, b in zip(islice(far, 8), near, strict=False):
        assert a.first_frame == b.first_frame + 10**9
        assert torch.equal(a.latents, b.latents)


@pytest.mark.whole
def test_threads_do_not_change_the_attention_of_a_stream(rollout_inputs, small_dit):
    """Only the kernels' part of a stream; torch's matrix products may depend on the number of threads."""
    threads = _core.threads()
    try:
        rollouts = []
        for count in (1, 2, 5):
            _core.set_threads(count)
            rollouts.append(latents(stream(small_dit, rollout_inputs), 5))
    finally:
        _core.set_threads(threads)
    assert torch.equal(rollouts[0], rollouts[1]) and torch.equal(rollouts[0], rollouts[2])


@pytest.mark.whole
def test_the_probe_reads_a_distribution_and_changes_no_bit(dit, rollout_inputs):
    probed, plain = stream(dit, rollout_inputs, probe=True), stream(dit, rollout_inputs)
    for chunk, reference in zip(islice(probed, 6), plain, strict=False):
        assert torch.equal(chunk.latents, reference.latents)
        pages = len(chunk.page_frames)
        assert chunk.mass.shape == (2, 2, 3, pages) and chunk.mass.dtype == torch.float32
        assert (chunk.mass >= 0).all()
        torch.testing.assert_close(chunk.mass.sum(-1), torch.ones(2, 2, 3), atol=1e-3, rtol=0)
        assert chunk.sink_mass == pytest.approx(chunk.mass[..., :3].sum(-1).mean().item())
        assert reference.mass is None and reference.sink_mass is None


def test_the_window_is_sinks_and_recent_frames(small_dit, rollout_inputs):
    frames = [chunk.page_frames for chunk in islice(stream(small_dit, rollout_inputs), 6)]
    assert frames[0] == (0, 1, 2)
    assert frames[3] == tuple(range(12))
    assert frames[5] == (0, 1, 2, 9, 10, 11, 12, 13, 14, 15, 16, 17)


def test_other_windows(small_dit, rollout_inputs):
    no_sinks = stream(small_dit, rollout_inputs, window=lolrt.Window(sink_frames=0, recent_frames=3))
    assert [chunk.page_frames for chunk in islice(no_sinks, 3)] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
    uneven = stream(small_dit, rollout_inputs, window=lolrt.Window(sink_frames=1, recent_frames=4, chunk_frames=2))
    assert [chunk.page_frames for chunk in islice(uneven, 4)][-1] == (0, 4, 5, 6, 7)


@pytest.mark.parametrize("window", [(-1, 9, 3), (3, 2, 3), (3, 9, 0)])
def test_impossible_windows_are_told(window):
    with pytest.raises(lolrt.Error, match="expected sinks"):
        lolrt.Window(*window)


def test_wrong_sizes_are_told(small_dit, rollout_inputs):
    embeds = rollout_inputs["prompt_embeds"]
    with pytest.raises(lolrt.Error, match="does not divide into patches"):
        lolrt.LatentStream(small_dit, embeds, 7, 8)
    with pytest.raises(lolrt.Error, match=r"expected \[1 to 512 text tokens, 64\]"):
        lolrt.LatentStream(small_dit, embeds[:, :63], 8, 8)
    with pytest.raises(lolrt.Error, match="bases have shape"):
        lolrt.LatentStream(small_dit, embeds, 8, 8, rope=lolrt.Rope(bases=[1e4] * 3))


@pytest.mark.whole
def test_embedded_model_streams_video(tiny):
    chunks = list(islice(tiny.stream(tiny.example_prompts[0], seed=7, probe=True), 3))
    assert [len(chunk.frames) for chunk in chunks] == [9, 12, 12]
    for chunk in chunks:
        assert chunk.frames.dtype == torch.uint8 and chunk.frames.shape[1:] == (tiny.height, tiny.width, 3)
        assert chunk.mass.shape[2] == 3
    again = list(islice(tiny.stream(tiny.example_prompts[0], seed=7), 3))
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(chunks, again, strict=False))
    other = next(tiny.stream(tiny.example_prompts[0], seed=8))
    assert not torch.equal(other.frames, chunks[0].frames)


@pytest.mark.whole
def test_embedded_model_resumes_bit_for_bit(tiny):
    whole = tiny.stream(tiny.example_prompts[1], seed=3)
    list(islice(whole, 4))
    state = whole.state_dict()
    rest = [next(whole) for _ in range(3)]
    resumed = tiny.stream(tiny.example_prompts[1], seed=3)
    resumed.load_state_dict(state)
    for expected in rest:
        chunk = next(resumed)
        assert chunk.first_frame == expected.first_frame
        assert torch.equal(chunk.latents, expected.latents) and torch.equal(chunk.frames, expected.frames)


@pytest.mark.whole
def test_a_decoder_does_not_begin_anew_in_the_middle(tiny):
    latent_stream = tiny.latent_stream(tiny.example_prompts[1])
    next(latent_stream)
    with pytest.raises(lolrt.Error, match="without the frames that a VAE carries"):
        tiny.stream(tiny.example_prompts[1]).load_state_dict(latent_stream.state_dict())


@pytest.mark.whole
def test_a_state_of_another_vae_is_refused_and_changes_nothing(tiny):
    tiled, twin = lolrt.load("tiny", vae_tile=32).stream(tiny.example_prompts[1]), tiny.stream(tiny.example_prompts[1])
    codec = lolrt.TAEHV(TAEHVConfig(z_dim=24, decoder_widths=(8, 8, 8, 8)))
    taehv = Stream(tiny.latent_stream(tiny.example_prompts[1]), codec, tiny.encode_text)
    streams = {"a full VAE of 16 channels in tiles of 32 pixels": tiled, "a full VAE": twin, "a TAEHV": taehv}
    states = {}
    for name, stream in streams.items():
        next(stream)
        states[name] = stream.state_dict()
    for name, stream in streams.items():
        for other in states.keys() - {name}:
            with pytest.raises(lolrt.Error, match=f"saved with {other}.*this stream has {name}"):
                stream.load_state_dict(states[other])
    resumed = tiny.stream(tiny.example_prompts[1])
    resumed.load_state_dict(states["a full VAE"])
    assert torch.equal(next(twin).frames, next(resumed).frames)


def resident_bytes() -> int:
    """Current memory of this process; not its peak, which an earlier test may have set."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.whole
def test_three_thousand_latent_frames_in_constant_memory_stay_alive(tiny):
    """1000 chunks: no growth once the window is full; latents are finite, and do not fade to a still picture or to noise."""
    source = tiny.latent_stream(tiny.example_prompts[0], seed=1)
    motion, spread, early_bytes = [], [], 0
    previous = None
    for i, chunk in enumerate(islice(source, 1000)):
        assert torch.isfinite(chunk.latents).all()
        spread.append(chunk.latents.std().item())
        if previous is not None:
            motion.append((chunk.latents - previous).abs().mean().item())
        previous = chunk.latents
        if i == 50:
            early_bytes = resident_bytes()
    # The allocator may keep a few pages more; a leak of one chunk of latents a step would be 26 MB by now.
    assert resident_bytes() - early_bytes <= 4 << 20
    late_spread, early_spread = torch.tensor(spread[-100:]).mean(), torch.tensor(spread[:100]).mean()
    late_motion, early_motion = torch.tensor(motion[-100:]).mean(), torch.tensor(motion[:100]).mean()
    assert 0.5 < late_spread / early_spread < 2
    assert 0.33 < late_motion / early_motion < 3
