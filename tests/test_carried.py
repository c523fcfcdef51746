"""The state that a VAE carries from call to call can be made again from the newest latents, bit for bit, whatever came before them."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

import lolrt
from lolrt.models.vae.codec import Codec
from lolrt.models.vae.taehv import TAEHVConfig
from lolrt.models.vae.tiles import Tiled


def full(dtype: torch.dtype) -> Codec:
    torch.manual_seed(1)
    return lolrt.CausalVAE(lolrt.VAEConfig(dim=8, z_dim=16)).requires_grad_(False).to(dtype)


def small(dtype: torch.dtype) -> Codec:
    torch.manual_seed(1)
    return lolrt.TAEHV(TAEHVConfig(encoder_width=16, decoder_widths=(32, 16, 16, 16))).requires_grad_(False).to(dtype)


CODECS = {"full": full, "tiles": lambda dtype: Tiled(full(dtype), 32), "TAEHV": small}


@pytest.fixture(params=CODECS)
def codec(request) -> Codec:
    return CODECS[request.param](torch.float32)


def carried(codec: Codec, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    codec.decode(latents, state)
    return state


@pytest.mark.whole
def test_a_codec_forgets_what_is_older_than_it_says(codec):
    latents = torch.randn(codec.memory_frames + 3, 16, 6, 8, generator=torch.Generator().manual_seed(0))
    whole, newest = carried(codec, latents), carried(codec, latents[-codec.memory_frames :])
    assert whole.keys() == newest.keys() and all(torch.equal(whole[slot], newest[slot]) for slot in whole)
    short = carried(codec, latents[-2:])
    assert not all(torch.equal(whole[slot], short[slot]) for slot in whole), "and remembers something"


class Stops:
    """Stops once in the middle of a chunk, after it has changed the carried state."""

    def __init__(self, codec: Codec, call: int) -> None:
        self.config, self.description, self.memory_frames = codec.config, codec.description, codec.memory_frames
        self.codec, self.call = codec, call

    def decode(self, latents: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        self.call -= 1
        if self.call == 0:
            self.codec.decode(latents[:2], state)
            raise KeyboardInterrupt
        return self.codec.decode(latents, state)


@pytest.mark.whole
@pytest.mark.parametrize("after", [1, 2, 26])
@pytest.mark.parametrize("restored", [False, True])
def test_a_stream_whose_decoder_was_stopped_gives_the_bits_of_one_that_was_not(restored, after):
    """Also if the decoder has forgotten its first frames, or began from a saved state; too soon after that, it raises an error."""
    pipe = lolrt.load("tiny")
    options = {"window": lolrt.Window(1, 3), "sampler": lolrt.Sampler(timesteps=(1000,)), "seed": 3}
    twin, stream = (pipe.stream(pipe.example_prompts[0], **options) for _ in range(2))
    if restored:
        stream.load_state_dict(twin.state_dict())
        next(twin)
        stream.load_state_dict(twin.state_dict())
    stream.vae = Stops(stream.vae, after)
    made = []
    while len(made) < after + 2:
        try:
            made.append(next(stream))
        except KeyboardInterrupt:
            assert len(made) == after - 1
            if restored and 3 * (after - 1) < pipe.vae.memory_frames:
                with pytest.raises(lolrt.Error, match="restore that state again"):
                    next(stream)
                return
    for chunk, expected in zip(made, islice(twin, len(made)), strict=True):
        assert torch.equal(chunk.frames, expected.frames), f"frame {chunk.first_frame}"
