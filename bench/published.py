"""The DiT of the Self-Forcing family as its public code computes it, in plain torch: what lolrt is measured against.

The operations and their roundings are those of Self-Forcing's `wan/modules/causal_model.py` and `pipeline/causal_inference.py`: rotary
embedding in complex128 at absolute frames, keys cached rotated in a flat cache that is rolled when it is full, modulation, gates and
residuals in the model's dtype, scaled dot product attention over a slice of the cache, text keys and values cached. Where this is kinder
than the original: the text MLP is not run again on every pass, and the cache's bookkeeping is plain integers.

Parameters have the published names, so that both models can hold the same weights:

    published = PublishedDiT(dit.config).to(dit.dtype)
    published.load_state_dict(dit.state_dict())

One block:   `y = block(x, e, place, cache, text)`, with `place = published.place(...)`, `cache = LayerCache(...)`,
             `text = block.cross_attn.keys_and_values(context)`; shapes are in `PublishedBlock.forward`.
One pass:    `flow = published(sample, timestep, first_frame, caches, text)`.
A stream:    `PublishedStream(published, prompt_embeds, height, width)`: each `next` gives the latents of one chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lolrt.engine.kv_window import Window
from lolrt.engine.noise import Noise, NoiseSource
from lolrt.engine.sampler import Sampler
from lolrt.models.dit import DiTConfig

# The public code's table of positions ends here; a stream of it cannot go on.
POSITIONS = 1024


class LayerCache:
    """Rotated keys and values of one layer, [1, capacity, heads, dim]; sinks first, then the others, the oldest first."""

    def __init__(self, window: Window, tokens: int, heads: int, dim: int, dtype: torch.dtype) -> None:
        self.sink = window.sink_frames * tokens
        self.k, self.v = (torch.zeros(1, window.pages * tokens, heads, dim, dtype=dtype) for _ in range(2))
        self.stream_end = 0  # tokens of the stream that have been written
        self.end = 0  # tokens of the cache in use

    def write(self, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Puts the chunk that starts at token `start` of the stream into the cache; returns all keys and values in use."""
        new = k.shape[1]
        stream_end = start + new
        overflow = self.end + new - self.k.shape[1]
        if stream_end > self.stream_end and overflow > 0:
            kept = self.end - overflow - self.sink
            for cached in (self.k, self.v):
                cached[:, self.sink : self.sink + kept] = cached[:, self.sink + overflow : self.end].clone()
            self.end -= overflow
        self.end += stream_end - self.stream_end
        self.stream_end = stream_end
        self.k[:, self.end - new : self.end] = k
        self.v[:, self.end - new : self.end] = v
        return self.k[:, : self.end], self.v[:, : self.end]


@dataclass(frozen=True)
class Place:
    """Where a chunk lies: its grid of tokens (frames, rows, columns), its first frame, and the table of angles, complex128
    [POSITIONS, dim / 2]."""

    grid: tuple[int, int, int]
    first_frame: int
    table: Tensor
    pairs: tuple[int, int, int]
    """Columns of the table for time, row and column."""


def rope_table(dims: tuple[int, int, int], theta: float = 10000.0) -> Tensor:
    """Unit complex numbers of every position on each axis, complex128 [POSITIONS, sum(dims) / 2]."""
    position = torch.arange(POSITIONS, dtype=torch.float64)
    angles = [torch.outer(position, theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)) for dim in dims]
    return torch.cat([torch.polar(torch.ones_like(angle), angle) for angle in angles], dim=1)


def rope(x: Tensor, place: Place) -> Tensor:
    """Rotary embedding of x [1, frames * rows * columns, heads, dim], computed in complex128."""
    frames, rows, columns = place.grid
    time, row, column = place.table.split(place.pairs, dim=1)
    factors = torch.cat(
        [
            time[place.first_frame : place.first_frame + frames].view(frames, 1, 1, -1).expand(frames, rows, columns, -1),
            row[:rows].view(1, rows, 1, -1).expand(frames, rows, columns, -1),
            column[:columns].view(1, 1, columns, -1).expand(frames, rows, columns, -1),
        ],
        dim=-1,
    ).reshape(frames * rows * columns, 1, -1)
    turned = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2)) * factors
    return torch.view_as_real(turned).flatten(3).type_as(x)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot product attention of [1, tokens, heads, dim]."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


class RMSNorm(nn.Module):
    """Over all heads of a token; normalised in float32, weighted in the model's dtype."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)).type_as(x) * self.weight


class PublishedAttention(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q, self.norm_k = (RMSNorm(config.dim, config.eps) for _ in range(2))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1))


class SelfAttention(PublishedAttention):
    def forward(self, x: Tensor, place: Place, cache: LayerCache) -> Tensor:
        q, k, v = self.split(self.norm_q(self.q(x))), self.split(self.norm_k(self.k(x))), self.split(self.v(x))
        keys, values = cache.write(rope(k, place), v, place.first_frame * math.prod(place.grid[1:]))
        return self.o(attention(rope(q, place), keys, values).flatten(2))


class CrossAttention(PublishedAttention):
    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the text [1, text_len, dim]; the public code keeps them as well."""
        return self.split(self.norm_k(self.k(context))), self.split(self.v(context))

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        return self.o(attention(self.split(self.norm_q(self.q(x))), *text).flatten(2))


class PublishedBlock(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(config.dim, config.eps)
        self.cross_attn = CrossAttention(config)
        self.norm2 = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(config.dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, config.dim))
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim))

    def forward(self, x: Tensor, e: Tensor, place: Place, cache: LayerCache, text: tuple[Tensor, Tensor]) -> Tensor:
        """x: [1, tokens, dim]; e: [1, frames, 6, dim], the timestep's projection; text: keys and values [1, text_len, heads, dim]."""
        frames = e.shape[1]

        def per_frame(y: Tensor) -> Tensor:
            return y.unflatten(1, (frames, -1))

        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation.unsqueeze(1) + e).chunk(6, dim=2)
        y = self.self_attn((per_frame(self.norm1(x)) * (1 + scale) + shift).flatten(1, 2), place, cache)
        x = x + (per_frame(y) * gate).flatten(1, 2)
        x = x + self.cross_attn(self.norm3(x), text)
        y = self.ffn((per_frame(self.norm2(x)) * (1 + ffn_scale) + ffn_shift).flatten(1, 2))
        return x + (per_frame(y) * ffn_gate).flatten(1, 2)


class PublishedHead(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, config.out_dim * math.prod(config.patch_size))
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x: [1, tokens, dim]; e: [1, frames, dim], the timestep's embedding. Returns [1, frames, tokens per frame, patch * channels]."""
        shift, scale = (self.modulation.unsqueeze(1) + e.unsqueeze(2)).chunk(2, dim=2)
        return self.head(self.norm(x).unflatten(1, (e.shape[1], -1)) * (1 + scale) + shift)


class PublishedDiT(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.table = rope_table(config.axes)  # no buffer: it stays complex128 whatever the model's dtype
        self.patch_embedding = nn.Conv3d(config.in_dim, config.dim, config.patch_size, config.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, config.dim), nn.GELU("tanh"), nn.Linear(config.dim, config.dim))
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))
        self.blocks = nn.ModuleList(PublishedBlock(config) for _ in range(config.num_layers))
        self.head = PublishedHead(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    def place(self, grid: tuple[int, int, int], first_frame: int) -> Place:
        """A chunk of grid = (frames, rows, columns) tokens that starts at latent frame `first_frame`."""
        time, row, column = (channels // 2 for channels in self.config.axes)
        return Place(grid, first_frame, self.table, (time, row, column))

    def caches(self, window: Window, tokens: int) -> list[LayerCache]:
        """Empty caches of all layers for frames of `tokens` tokens."""
        config = self.config
        return [LayerCache(window, tokens, config.num_heads, config.head_dim, self.dtype) for _ in range(config.num_layers)]

    def encode_text(self, prompt_embeds: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a prompt [text_tokens, text_dim] for every layer."""
        padding = self.config.text_len - prompt_embeds.shape[0]
        context = self.text_embedding(F.pad(prompt_embeds.to(self.dtype), (0, 0, 0, padding))[None])
        return [cast(PublishedBlock, block).cross_attn.keys_and_values(context) for block in self.blocks]

    def forward(
        self, sample: Tensor, timestep: float, first_frame: int, caches: list[LayerCache], text: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """The flow of one noisy chunk [frames, channels, height, width]; the same shape, in the model's dtype."""
        x = self.patch_embedding(sample.to(self.dtype).transpose(0, 1)[None])
        frames, rows, columns = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        half = self.config.freq_dim // 2
        angle = torch.full((frames, 1), timestep, dtype=torch.float64) * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        e = self.time_embedding(torch.cat([angle.cos(), angle.sin()], dim=1).to(self.dtype))[None]
        projected = self.time_projection(e).unflatten(2, (6, -1))
        place = self.place((frames, rows, columns), first_frame)
        for block, cache, layer_text in zip(self.blocks, caches, text, strict=True):
            x = block(x, projected, place, cache, layer_text)
        patch = self.config.patch_size[1:]
        y = self.head(x, e)[0].view(frames, rows, columns, *patch, self.config.out_dim)
        return torch.einsum("fhwqrc->fchqwr", y).reshape(frames, self.config.out_dim, rows * patch[0], columns * patch[1])


class PublishedStream:
    """Chunks of latents, float32 [chunk_frames, channels, height, width], up to frame POSITIONS; arguments as of `lolrt.LatentStream`."""

    def __init__(
        self,
        dit: PublishedDiT,
        prompt_embeds: Tensor,
        height: int,
        width: int,
        *,
        noise: NoiseSource | None = None,
        window: Window = Window(),
        sampler: Sampler = Sampler(),
    ) -> None:
        self.dit, self.window, self.sampler = dit, window, sampler
        self.noise = noise or Noise(0, dit.config.in_dim, height, width)
        _, patch_height, patch_width = dit.config.patch_size
        with torch.inference_mode():
            self._text = dit.encode_text(prompt_embeds)
        self._caches = dit.caches(window, (height // patch_height) * (width // patch_width))
        self._timesteps = sampler.model_timesteps.tolist()
        self.next_frame = 0

    def __iter__(self) -> PublishedStream:
        return self

    @torch.inference_mode()
    def __next__(self) -> Tensor:
        first_frame, frames = self.next_frame, self.window.chunk_frames

        def flow(sample: Tensor, k: int) -> Tensor:
            return self.dit(sample, self._timesteps[k], first_frame, self._caches, self._text).float()

        latents = self.sampler.denoise(flow, self.noise, first_frame, frames)
        flow(self.sampler.context(latents, self.noise, first_frame), len(self.sampler.timesteps))
        self.next_frame += frames
        return latents
