"""The differentiable forward of the causal DiT over whole clips, for training.

A clip of N latent frames is given twice in a row, [context | noisy]: the context is the clip itself with a little noise, which a
rollout's own history resembles, and every noisy chunk sees the context of the chunks that the runtime would still hold (the sinks
and the recent frames) and itself. So one pass trains all chunks at once, and gives exactly what the runtime computes chunk by
chunk with its cache. Semantics are those of `lolrt.models.dit.CausalDiT`, whose parameters are used by name.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt.models.dit import Block, CausalDiT

CHUNK = 3  # latent frames that are denoised together
SINK_CHUNKS, PAST_CHUNKS = 1, 2  # context a chunk sees: 3 sink frames and the 6 frames before it


class Chunking(NamedTuple):
    """How a clip is cut into chunks, and the context that each of them sees."""

    frames: int = CHUNK
    """Latent frames of a chunk."""
    sinks: int = SINK_CHUNKS
    """First chunks of a clip, which all later ones see."""
    past: int = PAST_CHUNKS
    """Chunks right before a chunk that it sees."""


CHUNKWISE = Chunking()


def rotation(frames: Tensor, height: int, width: int, rope_dims: tuple[int, int, int], bases: Tensor) -> Tensor:
    """cos and sin of RoPE for every token of some frames.

    frames: [batch, F] absolute latent frames. height, width: in tokens. bases: [heads] temporal base of each head; space uses 1e4.
    Returns fp32 [2, batch, heads, F * height * width, pairs].
    """

    def cos_sin(position: Tensor, dim: int, base: Tensor) -> Tensor:  # [2, *position, dim / 2]; base broadcasts over position
        angle = position.double()[..., None] * base.double()[..., None] ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        return torch.stack([angle.cos(), angle.sin()]).float()

    space = torch.tensor([1e4])
    shape = (2, len(frames), len(bases), frames.shape[1], height, width, -1)
    t = cos_sin(frames[:, None], rope_dims[0], bases[:, None])[:, :, :, :, None, None].expand(shape)
    h = cos_sin(torch.arange(height), rope_dims[1], space)[:, None, None, None, :, None].expand(shape)
    w = cos_sin(torch.arange(width), rope_dims[2], space)[:, None, None, None, None, :].expand(shape)
    return torch.cat([t, h, w], -1).flatten(3, 5)


def rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotates the pairs (2 i, 2 i + 1) of x [batch, heads, tokens, head_dim]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos_sin
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-6)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, spelled out: with a mask, its backward is faster on CPUs than that of the fused
    operator.
    """
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return scores.float().softmax(-1).to(v.dtype) @ v


class ChunkWindow:
    """Attention of [context | noisy] chunks: each sees the context of the sinks and of the chunks before it, and itself."""

    def __init__(self, chunks: int, chunk_tokens: int, chunking: Chunking = CHUNKWISE):
        self.chunks, self.chunk_tokens, self.context_chunks = chunks, chunk_tokens, chunking.sinks + chunking.past
        own, sinks = torch.arange(chunks)[:, None], torch.arange(chunking.sinks)[None]
        past = own + torch.arange(-chunking.past, 0)
        self.past = torch.cat([sinks.expand(chunks, -1), past], 1).clamp(min=0)  # [chunks, context chunks]
        seen = torch.cat([sinks < own, past >= chunking.sinks], 1)  # a sink is seen once
        bias = torch.zeros(chunks, self.context_chunks + 1, chunk_tokens)
        bias = bias.masked_fill(~F.pad(seen, (0, 1), value=True)[..., None], -1e4)
        self.bias = bias.flatten(1).repeat(2, 1)[:, None, None, :]  # [2 chunks, 1, 1, keys]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [batch, heads, 2 * chunks * chunk_tokens, head_dim]."""
        batch, heads, tokens, dim = q.shape

        def split(x: Tensor) -> Tensor:  # [batch, 2 chunks, heads, chunk_tokens, dim]
            return x.view(batch, heads, 2 * self.chunks, self.chunk_tokens, dim).transpose(1, 2)

        def keys(x: Tensor) -> Tensor:
            own = split(x)
            past = own[:, self.past.flatten()].unflatten(1, (self.chunks, self.context_chunks)).transpose(2, 3).flatten(3, 4)
            return torch.cat([past.repeat(1, 2, 1, 1, 1), own], 3)

        out = attend(split(q), keys(k), keys(v), self.bias.to(q.dtype))
        return out.transpose(1, 2).reshape(batch, heads, tokens, dim)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[..., tokens, heads * head_dim] to [..., heads, tokens, head_dim]."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _block(block: Block, heads: int, x: Tensor, modulation: Tensor, text: Tensor, cos_sin: Tensor, attention: Callable) -> Tensor:
    """One transformer block. x [batch, tokens, dim]; modulation [batch, frames, 6, dim]; text [batch, 1 or frames,
    text_len, dim]."""
    frames = modulation.shape[1]
    shift, scale, gate, shift2, scale2, gate2 = (m[:, :, None] for m in (block.modulation + modulation).unbind(2))

    def modulated(y: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return (layer_norm(y).unflatten(1, (frames, -1)) * (1 + scale) + shift).flatten(1, 2)

    def gated(y: Tensor, gate: Tensor) -> Tensor:
        return (y.unflatten(1, (frames, -1)) * gate).flatten(1, 2)

    own = block.self_attn
    y = modulated(x, shift, scale)
    v = _heads(own.v(y), heads)
    q = rotate(_heads(rms_norm(own.q(y), own.norm_q.weight), heads), cos_sin).to(v.dtype)
    k = rotate(_heads(rms_norm(own.k(y), own.norm_k.weight), heads), cos_sin).to(v.dtype)
    x = x + gated(own.o(attention(q, k, v).transpose(1, 2).flatten(2)), gate)

    cross = block.cross_attn
    y = layer_norm(x, block.norm3.weight, block.norm3.bias)
    v = _heads(cross.v(text), heads)
    q = _heads(rms_norm(cross.q(y), cross.norm_q.weight).unflatten(1, (text.shape[1], -1)), heads).to(v.dtype)
    k = _heads(rms_norm(cross.k(text), cross.norm_k.weight), heads).to(v.dtype)
    x = x + cross.o(attend(q, k, v).transpose(-3, -2).flatten(-2).flatten(1, 2))

    y = block.ffn[2](F.gelu(block.ffn[0](modulated(x, shift2, scale2)), approximate="tanh"))
    return x + gated(y, gate2)


def time_embedding(model: CausalDiT, timesteps: Tensor, freq_dim: int) -> Tensor:
    """timesteps [batch, frames], 1000 * sigma. Returns [batch, frames, dim]."""
    half = freq_dim // 2
    frequency = torch.exp(-math.log(1e4) * torch.arange(half, dtype=torch.float64) / half)
    angle = timesteps.double()[..., None] * frequency
    return model.time_embedding(torch.cat([angle.cos(), angle.sin()], -1).float()).float()


class TeacherForcing:
    """Runs a CausalDiT over [context | noisy] clips, with gradients.

    model: a `lolrt.models.dit.CausalDiT`. frames, height, width: the clip's size in latent pixels; a clip of one chunk needs no context,
    and what is given as such is left out. bases: temporal RoPE base of each head. compiled: fuses the element-wise work of the
    blocks, twice as fast after a minute of compilation.
    """

    def __init__(
        self, model: CausalDiT, frames: int, height: int, width: int, bases: Tensor | None = None, compiled: bool = False,
        chunking: Chunking = CHUNKWISE,
    ) -> None:  # fmt: skip
        self.model, self.config = model, model.config
        self.block = torch.compile(_block, dynamic=False) if compiled else _block
        self.grid = (height // 2, width // 2)
        self.chunking = chunking
        self.context_frames = 0 if frames == chunking.frames else frames
        self.bases = torch.full((self.config.num_heads,), 1e4) if bases is None else bases
        tokens = chunking.frames * self.grid[0] * self.grid[1]
        self.attention = ChunkWindow(frames // chunking.frames, tokens, chunking) if self.context_frames else attend

    def __call__(
        self, context: Tensor, noisy: Tensor, context_sigma: Tensor, sigma: Tensor, text: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """The predicted flow of the noisy clip.

        context, noisy: [batch, frames, z, h, w]. context_sigma, sigma: [batch, frames] in [0, 1]. text: [batch, text_len,
        text_dim], zero rows for missing words; or one for each frame of [context | noisy], [batch, 2 * frames, text_len, text_dim]
        (with a clip of one chunk, of noisy alone). positions: [batch, frames] absolute latent frames, by default 0, 1, ... Returns
        fp32 [batch, frames, z, h, w].
        """
        model, frames = self.model, noisy.shape[1]
        x = torch.cat([context[:, : self.context_frames], noisy], 1)
        batch, total, channels, height, width = x.shape
        x = x.view(batch, total, channels, *(height // 2, 2, width // 2, 2)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
        x = F.linear(x, model.patch_embedding.weight.flatten(1), model.patch_embedding.bias).float()
        e = time_embedding(model, 1000 * torch.cat([context_sigma[:, : self.context_frames], sigma], 1), self.config.freq_dim)
        modulation = model.time_projection(e).float().unflatten(-1, (6, -1))
        text = model.text_embedding(text if text.dim() == 4 else text[:, None])
        positions = torch.arange(frames)[None] if positions is None else positions
        positions = torch.cat([positions[:, : self.context_frames], positions], 1)
        cos_sin = rotation(positions, *self.grid, self.config.axes, self.bases)
        for block in model.blocks:
            x = self.block(cast(Block, block), self.config.num_heads, x, modulation, text, cos_sin, self.attention)
        x, e = x.unflatten(1, (total, -1))[:, -frames:], e[:, -frames:]  # the context's own prediction is not needed
        shift, scale = (model.head.modulation + e[:, :, None]).unbind(2)
        out = model.head.head(layer_norm(x) * (1 + scale[:, :, None]) + shift[:, :, None]).float()
        out = out.view(batch, frames, *self.grid, 2, 2, channels)  # Wan's patches: the channel runs fastest
        return out.permute(0, 1, 6, 2, 4, 3, 5).reshape(batch, frames, channels, height, width)
