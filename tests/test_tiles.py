"""Tiles against whole pictures, and against each tile by itself."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lolrt
from lolrt.models.vae.tiles import Tiled, _tiles


@pytest.mark.whole
@settings(max_examples=200, deadline=None)
@given(st.integers(1, 120), st.integers(4, 40), st.sampled_from([1, 8]))
def test_tiles_cover_every_place_with_weight_one(length, size, scale):
    total, previous = torch.zeros(length * scale), None
    for start, end, weights in _tiles(length, size, scale):
        assert 0 <= start < end <= length and end - start == min(size, length) and len(weights) == (end - start) * scale
        assert (weights > 0).all() and (weights <= 1).all()
        if previous is not None:
            assert previous[0] < start and previous[1] - start >= min(size, length) // 4
        total[start * scale : end * scale] += weights
        previous = start, end
    assert previous[1] == length
    torch.testing.assert_close(total, torch.ones(length * scale))


@pytest.fixture(scope="module")
def vae(data) -> lolrt.CausalVAE:
    return lolrt.load_vae(data / "Wan2.1_VAE_small.pth", lolrt.VAEConfig(dim=8), torch.float32)


def test_a_picture_of_one_tile_is_as_without(vae):
    latents, video = torch.randn(2, 16, 4, 6), torch.rand(5, 3, 32, 48)
    tiled = Tiled(vae, 64)
    assert torch.equal(tiled.decode(latents, {}), vae.decode(latents, {}))
    assert torch.equal(tiled.encode(video, {}), vae.encode(video, {}))


def test_where_tiles_do_not_overlap_they_are_themselves_and_between_they_fade(vae):
    """Tiles of 32 pixels on 7 latent pixels: they cover 0-4 and 3-7, and pixels 24 to 32 belong to both."""
    latents = torch.randn(3, 16, 4, 7, generator=torch.Generator().manual_seed(0))
    left, right = vae.decode(latents[..., :4], {}), vae.decode(latents[..., 3:], {})
    video = Tiled(vae, 32).decode(latents, {})
    assert torch.equal(video[..., :24], left[..., :24]) and torch.equal(video[..., 32:], right[..., 8:])
    share = (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(video[..., 24:32], (1 - share) * left[..., 24:] + share * right[..., :8])


@pytest.mark.whole
@pytest.mark.parametrize("split", [[1, 2, 1], [4]])
def test_streamed_equals_whole_bit_for_bit(split, vae):
    tiled = Tiled(vae, 32)
    latents = torch.randn(4, 16, 7, 9, generator=torch.Generator().manual_seed(1))
    state: dict[str, Tensor] = {}
    assert torch.equal(torch.cat([tiled.decode(part, state) for part in latents.split(split)]), tiled.decode(latents, {}))
    video = torch.rand(9, 3, 56, 72, generator=torch.Generator().manual_seed(2))
    state = {}
    assert torch.equal(torch.cat([tiled.encode(part, state) for part in video.split([1, 8])]), tiled.encode(video, {}))


class PixelCodec:
    """A codec whose pixels do not depend on each other, so that tiles must leave no trace."""

    class config:  # noqa: N801 - stands for an object
        spatial_factor, temporal_factor = 2, 1
        latents: ClassVar[list[tuple[int, ...]]] = []

    def decode(self, latents: Tensor, state: dict[str, Tensor]) -> Tensor:
        previous = state.get("last", torch.zeros_like(latents[:1]))
        state["last"] = latents[-1:].clone()
        video = latents + torch.cat([previous, latents[:-1]])
        self.config.latents.append(tuple(latents.shape))
        return video.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def encode(self, video: Tensor, state: dict[str, Tensor]) -> Tensor:
        return video[:, :, ::2, ::2]


def test_each_tile_has_a_state_of_its_own():
    codec, tiled = PixelCodec(), Tiled(PixelCodec(), 8)
    latents = torch.randn(6, 3, 11, 5)
    state: dict[str, Tensor] = {}
    video = torch.cat([tiled.decode(part, state) for part in latents.split(2)])
    torch.testing.assert_close(video, codec.decode(latents, {}))
    torch.testing.assert_close(tiled.encode(video, {}), codec.encode(video, {}))
    assert max(shape[2] for shape in codec.config.latents[:-1]) == 4


@pytest.mark.parametrize("pixels", [0, 24, 36])
def test_tiles_that_cannot_be_are_told(pixels, vae):
    with pytest.raises(lolrt.Error, match=rf"tiles of {pixels} pixels; expected a multiple of 8, at least 32"):
        Tiled(vae, pixels)
