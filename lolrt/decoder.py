"""The VAE's decoder on a stream: one latent frame after another, with the kernels and without autograd.

Images are [frames, rows, columns, channels], contiguous. Each convolution over time gets its input written, with its margin of zeros,
by the norm before it, and keeps the last two frames of that input in the stream's state.

float32 weights run on the convolution of `lolrt.ops`, bfloat16 ones on torch's: oneDNN has the matrix units to itself (AMX), while its
float32 convolutions of few channels are several times slower than ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lolrt import ops
from lolrt.vae_layers import AttentionBlock, CausalConv3d, Decoder, ResidualBlock, RMSNorm, Upsample

# What a stream carries from call to call: the last two input frames of each causal convolution, margins included, by module name.
State = dict[str, Tensor]


class StreamingDecoder:
    """Reads the weights once; a decoder whose weights change needs a new one."""

    def __init__(self, decoder: Decoder) -> None:
        self._in = _Convolution(decoder.conv1)
        self._blocks = [_streamed(block) for block in (*decoder.middle, *decoder.upsamples)]
        norm, _, conv = decoder.head
        self._norm, self._out = _Norm(norm), _Convolution(conv)

    def __call__(self, latent: Tensor, state: State) -> Tensor:
        """[1, rows, columns, z], in the weights' dtype, to [1 or 4, 8 rows, 8 columns, 3]; `state` is updated in place."""
        x = self._in(latent, state)
        for block in self._blocks:
            x = block(x, state)
        return self._out(x, state, self._norm)


def _streamed(block: nn.Module) -> Callable[[Tensor, State], Tensor]:
    match block:
        case ResidualBlock():
            return _ResidualBlock(block)
        case AttentionBlock():
            return _AttentionBlock(block)
        case Upsample():
            return _Upsample(block)
    raise TypeError(f"a decoder has no {type(block).__name__}")


class _Norm:
    def __init__(self, norm: nn.Module, silu: bool = True) -> None:
        norm = cast(RMSNorm, norm)
        self.gamma, self.silu = norm.gamma.detach().float().flatten(), silu

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        return ops.channel_norm(x, self.gamma, out, silu=self.silu)


def _surround(x: Tensor, out: Tensor) -> None:
    """x to the middle of `out`, zeros around it."""
    _, rows, columns, _ = x.shape
    margin = (out.shape[1] - rows) // 2
    if margin:
        out.zero_()
    out[:, margin : margin + rows, margin : margin + columns] = x


class _Convolution:
    """A `CausalConv3d`, with what is done to its input on the way in and the sum with a residual."""

    def __init__(self, conv: nn.Module) -> None:
        conv = cast(CausalConv3d, conv)
        self.slot, self.margin, self.past_frames = conv.slot, conv.kernel_size[2] // 2, conv.kernel_size[0] - 1
        self.out_channels = conv.out_channels
        self.weight, self.bias = _weights(conv)
        self.native = self.weight.dtype == torch.float32
        if self.native:
            self.weight, self.bias = ops.pack_convolution(self.weight, self.bias)
        else:
            self.weight = self.weight.contiguous(memory_format=torch.channels_last_3d)

    def __call__(self, x: Tensor, state: State, norm: _Norm | None = None, residual: Tensor | None = None) -> Tensor:
        """x: the new frames; residual: like the output, and taken for it when the kernels are ours."""
        frames, rows, columns, channels = x.shape
        joined = x.new_empty(self.past_frames + frames, rows + 2 * self.margin, columns + 2 * self.margin, channels)
        new = joined[self.past_frames :]
        (norm or _surround)(x, new)
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
            out = out if residual is None else out.add_(residual)
        if past is not None:
            _keep_last(past, new)
        return out


def _weights(conv: nn.Conv2d | nn.Conv3d) -> tuple[Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight.detach(), conv.bias.detach()


def _keep_last(past: Tensor, new: Tensor) -> None:
    """The last frames of `past` and `new` joined, as many as `past` has, to `past`."""
    coming = min(len(past), len(new))
    if coming < len(past):
        past[:-coming] = past[coming:].clone()
    past[-coming:] = new[-coming:]


class _ResidualBlock:
    def __init__(self, block: ResidualBlock) -> None:
        norm1, _, conv1, norm2, _, _, conv2 = block.residual
        self.norm1, self.conv1, self.norm2, self.conv2 = _Norm(norm1), _Convolution(conv1), _Norm(norm2), _Convolution(conv2)
        self.shortcut = None if isinstance(block.shortcut, nn.Identity) else _Convolution(block.shortcut)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        y = self.conv1(x, state, self.norm1)
        return self.conv2(y, state, self.norm2, residual=x if self.shortcut is None else self.shortcut(x, state))


class _AttentionBlock:
    def __init__(self, block: AttentionBlock) -> None:
        self.norm = _Norm(block.norm, silu=False)
        (qkv, qkv_bias), (proj, proj_bias) = _weights(block.to_qkv), _weights(block.proj)
        self.to_qkv, self.proj = (qkv.flatten(1), qkv_bias), (proj.flatten(1), proj_bias)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        normed = self.norm(x, torch.empty_like(x)).flatten(1, 2)
        q, k, v = F.linear(normed, *self.to_qkv).chunk(3, dim=2)
        return x + F.linear(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0], *self.proj).view_as(x)


class _Upsample:
    def __init__(self, block: Upsample) -> None:
        self.time_conv = None if block.time_conv is None else _Convolution(block.time_conv)
        conv = cast(nn.Conv2d, block.resample[1])
        self.out_channels = conv.out_channels
        self.weight, self.bias = _weights(conv)
        self.native = self.weight.dtype == torch.float32
        if self.native:
            self.phases = [ops.pack_convolution(weight, self.bias) for weight in _doubled_weights(self.weight)]
        else:
            self.weight = self.weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        if self.time_conv is not None:
            # A stream's first frame is one video frame: it skips the convolution and is not among its past frames either.
            if self.time_conv.slot not in state:
                state[self.time_conv.slot] = x.new_zeros(2, *x.shape[1:])
            else:
                # The halves of the channels are successive frames.
                x = self.time_conv(x, state).unflatten(3, (2, -1)).movedim(3, 1).flatten(0, 1)
        if not self.native:
            images = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest-exact")
            return F.conv2d(images, self.weight, self.bias, padding=1).permute(0, 2, 3, 1)
        frames, rows, columns, channels = x.shape
        wide = x.new_empty(frames, rows + 2, columns + 2, channels)
        _surround(x, wide)
        out = x.new_empty(frames, 2 * rows, 2 * columns, self.out_channels)
        for phase, (weight, bias) in enumerate(self.phases):
            i, j = divmod(phase, 2)
            ops.conv3d(wide[:, i : i + rows + 1, j : j + columns + 1], weight, bias, out[:, i::2, j::2])
        return out


def _doubled_weights(weight: Tensor) -> Tensor:
    """A 3 x 3 convolution of an image doubled by repetition, as four 2 x 2 convolutions of the image itself.

    weight: [out, in, 3, 3]; returns [4, out, in, 1, 2, 2], for the output pixels (even, even), (even, odd), (odd, even), (odd, odd).
    Two of three adjacent pixels of the doubled image are the same one: their weights are added, which saves 20 of 36 products.
    """
    merge = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [phase, tap, original tap]
    return torch.einsum("pai,qbj,ocij->pqocab", merge, merge, weight).flatten(0, 1).unsqueeze(3)
