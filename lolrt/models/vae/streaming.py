"""The layers of the VAE's streaming encoder and decoder: with the kernels, and without autograd.

Images are [frames, rows, columns, channels], contiguous. The norm before each convolution writes the convolution's input, with its margin
of zeros. A convolution over time keeps the last two frames of this input in the stream's state.

On the CPU, float32 weights use the convolution of `lolrt.ops`, and bfloat16 weights that of torch. In bfloat16 only oneDNN uses the matrix
units (AMX); in float32 its convolutions with few channels are several times slower than ours. On CUDA all layers are torch's.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lolrt import ops
from lolrt.models.vae.codec import State
from lolrt.models.vae.layers import AttentionBlock, CausalConv3d, ResidualBlock, RMSNorm

# Layers with full-size images work on a few frames at a time: as many as fit into this memory, but at least one. A frame of 480 x 832
# pixels and 96 channels takes 73 MiB in bfloat16.
FULL_SIZE_BYTES = 32 << 20


class Norm:
    def __init__(self, norm: nn.Module, silu: bool = True) -> None:
        norm = cast(RMSNorm, norm)
        self.gamma, self.silu = norm.gamma.detach().float().flatten(), silu
        self.native = not ops.on_cuda(self.gamma.device)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        if not self.native:
            surround(self.in_torch(x), out)
            return out
        return ops.channel_norm(x, self.gamma, out, silu=self.silu)

    def in_torch(self, x: Tensor) -> Tensor:
        """The result of `ops.channel_norm` without rounding, float32."""
        y = F.normalize(x.float(), dim=-1) * (self.gamma * len(self.gamma) ** 0.5)
        return F.silu(y) if self.silu else y


def surround(x: Tensor, out: Tensor) -> None:
    """Writes x to the middle of `out`, and zeros around it."""
    _, rows, columns, _ = x.shape
    margin = (out.shape[1] - rows) // 2
    if margin:
        out.zero_()
    out[:, margin : margin + rows, margin : margin + columns] = x


class Convolution:
    """A `CausalConv3d` with the norm of its input before it and the sum with a residual after it."""

    def __init__(self, conv: nn.Module) -> None:
        conv = cast(CausalConv3d, conv)
        self.slot, self.margin, self.past_frames = conv.slot, conv.kernel_size[2] // 2, conv.kernel_size[0] - 1
        self.out_channels = conv.out_channels
        self.weight, self.bias = weights_of(conv)
        self.native = runs_on_our_kernels(self.weight)
        if self.native:
            self.weight, self.bias = ops.pack_convolution(self.weight, self.bias)
        else:
            self.weight = self.weight.contiguous(memory_format=torch.channels_last_3d)

    def __call__(self, x: Tensor, state: State, norm: Norm | None = None, residual: Tensor | None = None) -> Tensor:
        """x: the new frames. residual: in the shape of the output; with our kernels its memory is overwritten with the output."""
        frames, rows, columns, channels = x.shape
        joined = x.new_empty(self.past_frames + frames, rows + 2 * self.margin, columns + 2 * self.margin, channels)
        new = joined[self.past_frames :]
        (norm or surround)(x, new)
        past = None
        if self.past_frames:
            past = state.get(self.slot)
            if past is None:
                past = state[self.slot] = torch.zeros_like(joined[: self.past_frames])
        if self.native:
            out = x.new_empty(frames, rows, columns, self.out_channels) if residual is None else residual
            ops.conv3d(new, self.weight, self.bias, out, past=past, residual=residual)
        else:
            if past is not None:
                joined[: self.past_frames] = past
            out = F.conv3d(joined.permute(3, 0, 1, 2)[None], self.weight, self.bias)[0].permute(1, 2, 3, 0)
            if not out.is_meta:  # on the meta device torch does not know which layout a kernel would give
                out = out.contiguous()  # some of torch's kernels return channels first for any input
            out = out if residual is None else out.add_(residual)
        if past is not None:
            keep_last(past, new)
        return out


def runs_on_our_kernels(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and not ops.on_cuda(weight.device)


def weights_of(conv: nn.Conv2d | nn.Conv3d) -> tuple[Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight.detach(), conv.bias.detach()


def keep_last(past: Tensor, new: Tensor) -> None:
    """Writes the last frames of `past` and `new` joined to `past`, which keeps its length."""
    coming = min(len(past), len(new))
    if coming < len(past):
        past[:-coming] = past[coming:].clone()
    past[-coming:] = new[-coming:]


class StreamedResidualBlock:
    def __init__(self, block: ResidualBlock) -> None:
        norm1, _, conv1, norm2, _, _, conv2 = block.residual
        self.norm1, self.conv1, self.norm2, self.conv2 = Norm(norm1), Convolution(conv1), Norm(norm2), Convolution(conv2)
        self.shortcut = None if isinstance(block.shortcut, nn.Identity) else Convolution(block.shortcut)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        y = self.conv1(x, state, self.norm1)
        return self.conv2(y, state, self.norm2, residual=x if self.shortcut is None else self.shortcut(x, state))


class StreamedAttentionBlock:
    def __init__(self, block: AttentionBlock) -> None:
        self.norm = Norm(block.norm, silu=False)
        (qkv, qkv_bias), (proj, proj_bias) = weights_of(block.to_qkv), weights_of(block.proj)
        self.to_qkv, self.proj = (qkv.flatten(1), qkv_bias), (proj.flatten(1), proj_bias)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        normed = self.norm(x, torch.empty_like(x)).flatten(1, 2)
        q, k, v = F.linear(normed, *self.to_qkv).chunk(3, dim=2)
        return x + F.linear(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0], *self.proj).view_as(x)


def few_frames(x: Tensor, full_size_frame: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Splits x [frames, ...] for layers with images of the size `full_size_frame` = (rows, columns, channels)."""
    return x.split(max(1, FULL_SIZE_BYTES // (math.prod(full_size_frame) * x.element_size())))
