"""A codec that works on overlapping tiles of the picture, one after another, so that it needs the working memory of only one tile."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from lolrt.errors import Error
from lolrt.models.vae.codec import Codec, CodecConfig, State
from lolrt.ops.device import upload


class Tiled:
    """A `lolrt.models.vae.codec.Codec` that runs another codec on tiles. Where tiles overlap, one fades into the next.

    codec: the other codec. pixels: the side of a tile, a multiple of the codec's spatial factor. Tiles overlap by a quarter of their side,
    or more if the picture is not a whole number of tiles. A tile sees nothing beyond its edges, so the result differs from that of the
    whole picture. The state between calls is kept for each tile, with its overlaps.
    """

    def __init__(self, codec: Codec, pixels: int = 256) -> None:
        factor = codec.config.spatial_factor
        if pixels % factor or pixels < 4 * factor:
            raise Error(f"tiles of {pixels} pixels; expected a multiple of {factor}, at least {4 * factor}")
        self.codec, self._size = codec, pixels // factor  # in latent pixels, like all positions here

    @property
    def config(self) -> CodecConfig:
        return self.codec.config

    @property
    def description(self) -> str:
        return f"{self.codec.description} in tiles of {self._size * self.config.spatial_factor} pixels"

    @property
    def memory_frames(self) -> int:
        return self.codec.memory_frames

    @torch.inference_mode()
    def encode(self, video: Tensor, state: State) -> Tensor:
        """See `lolrt.models.vae.codec.Codec.encode`."""
        return self._in_tiles(self.codec.encode, video, state, self.config.spatial_factor, 1)

    @torch.inference_mode()
    def decode(self, latents: Tensor, state: State) -> Tensor:
        """See `lolrt.models.vae.codec.Codec.decode`."""
        return self._in_tiles(self.codec.decode, latents, state, 1, self.config.spatial_factor)

    def _in_tiles(self, run: Callable[[Tensor, State], Tensor], x: Tensor, state: State, scale_in: int, scale_out: int) -> Tensor:
        """Runs the codec on each tile of x. scale_in, scale_out: the pixels per latent pixel in the input and in the output."""
        height, width = x.shape[2] // scale_in, x.shape[3] // scale_in
        out: Tensor | None = None
        tiles = itertools.product(_tiles(height, self._size, scale_out), _tiles(width, self._size, scale_out))
        for number, ((top, bottom, row_weights), (left, right, column_weights)) in enumerate(tiles):
            prefix = f"{number}."
            own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            part = run(x[:, :, top * scale_in : bottom * scale_in, left * scale_in : right * scale_in], own)
            state.update({prefix + name: tensor for name, tensor in own.items()})
            if out is None:
                out = part.new_zeros(*part.shape[:2], height * scale_out, width * scale_out)
            place = out[:, :, top * scale_out : bottom * scale_out, left * scale_out : right * scale_out]
            place += part * upload(row_weights[:, None] * column_weights, part.device)
        assert out is not None
        return out


def _tiles(length: int, size: int, scale: int) -> list[tuple[int, int, Tensor]]:
    """The start, end and weights [(end - start) * scale] of the tiles that cover `length` along one side. At each position the weights add
    up to 1."""
    size = min(size, length)
    overlap = size // 4
    count = 1 + -(-(length - size) // (size - overlap))
    starts = [round(i * (length - size) / max(1, count - 1)) for i in range(count)]
    ramp = (torch.arange(overlap * scale, dtype=torch.float32) + 0.5) / max(1, overlap * scale)
    weights, total = torch.ones(count, size * scale, dtype=torch.float32), torch.zeros(length * scale, dtype=torch.float32)
    weights[1:, : len(ramp)] *= ramp
    weights[:-1, size * scale - len(ramp) :] *= ramp.flip(0)
    for start, own in zip(starts, weights, strict=True):
        total[start * scale : (start + size) * scale] += own
    return [(start, start + size, own / total[start * scale : (start + size) * scale]) for start, own in zip(starts, weights, strict=True)]
