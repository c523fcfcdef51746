"""States in memory: a state with any change is refused, and the stream goes on as if it had not been given."""

from __future__ import annotations

import pytest
import torch

import lolrt


@pytest.fixture(scope="module")
def tiny() -> lolrt.Pipeline:
    return lolrt.load("tiny")


def stream_of(tiny: lolrt.Pipeline) -> lolrt.Stream:
    window = lolrt.Window(1, 3, recall_frames=2, store_frames=4)
    sampler = lolrt.Sampler(timesteps=(1000, 500))
    stream = tiny.stream(tiny.example_prompts[0], seed=5, window=window, sampler=sampler)
    for i in range(4):
        next(stream)
        if i == 2:
            stream.set_prompt(tiny.example_prompts[1], over_chunks=3)
    return stream


def flipped(tensor: torch.Tensor) -> torch.Tensor:
    bits = tensor.clone().contiguous()
    content = bits.reshape(-1).view(torch.uint8)
    content[len(content) // 2] ^= 1
    return bits


@pytest.fixture(scope="module")
def saved(tiny) -> tuple[dict[str, torch.Tensor], lolrt.Chunk]:
    """A state, and the chunk that comes after it."""
    stream = stream_of(tiny)
    return stream.state_dict(), next(stream)


def test_a_state_of_which_anything_has_changed_is_refused(tiny, saved):
    """Every tensor of it: pages, latents, text, counters, a pending prompt switch, what the VAE carries, and the description."""
    state, following = saved
    stream = stream_of(tiny)
    assert {name.split(".")[0] for name in state} == {"cache", "switch", "vae", "next_frame", "prompt_embeds", "inputs", "description"}
    for name, tensor in state.items():
        another = tensor.double() if tensor.is_floating_point() else tensor.int()
        same = another.dtype == tensor.dtype or name == "description"  # whose numbers are what counts
        rest = {other: x for other, x in state.items() if other != name}
        for what, changed in (
            ("a bit", rest | {name: flipped(tensor)}),
            ("left out", rest),
            ("another dtype", rest if same else rest | {name: another}),
            ("another shape", rest | {name: tensor[None]}),
            ("another name", rest | {f"{name}2": tensor}),
        ):
            with pytest.raises(lolrt.Error):
                stream.load_state_dict(changed)
                pytest.fail(f"{name}: {what}")
    assert torch.equal(next(stream).frames, following.frames), "nothing was changed by what was refused"


def test_a_state_that_is_whole_goes_on(tiny, saved):
    state, following = saved
    stream = stream_of(tiny)
    next(stream)
    stream.load_state_dict(state)
    assert torch.equal(next(stream).frames, following.frames)
