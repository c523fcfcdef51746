"""The decoder of Wan's VAE on a stream: decodes one latent frame after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lolrt import ops
from lolrt.models.vae.codec import State
from lolrt.models.vae.layers import AttentionBlock, Decoder, ResidualBlock, Upsample
from lolrt.models.vae.streaming import (
    Convolution,
    Norm,
    StreamedAttentionBlock,
    StreamedResidualBlock,
    few_frames,
    runs_on_our_kernels,
    surround,
    weights_of,
)


class StreamingDecoder:
    """The streaming form of a decoder. It reads the weights once; if they change, make a new one."""

    def __init__(self, decoder: Decoder) -> None:
        self._in = Convolution(decoder.conv1)
        blocks = [_streamed(block) for block in (*decoder.middle, *decoder.upsamples)]
        # After the last doubling of frames, the rest of the layers can work on a few frames at a time.
        last_doubling = max((i for i, block in enumerate(blocks) if isinstance(block, _Upsample) and block.time_conv), default=-1)
        self._blocks, self._frame_blocks = blocks[: last_doubling + 1], blocks[last_doubling + 1 :]
        self._scale = 2 ** sum(isinstance(block, _Upsample) for block in blocks)
        norm, _, conv = decoder.head
        self._norm, self._out = Norm(norm), Convolution(conv)

    def __call__(self, latent: Tensor, state: State) -> Tensor:
        """Decodes [1, rows, columns, z], in the weights' dtype, to [1 or 4, 8 rows, 8 columns, 3]; `state` is updated in place."""
        x = self._in(latent, state)
        for block in self._blocks:
            x = block(x, state)
        _, rows, columns, _ = latent.shape
        images = []
        for part in few_frames(x, (self._scale * rows, self._scale * columns, len(self._norm.gamma))):
            for block in self._frame_blocks:
                part = block(part, state)
            images.append(self._out(part, state, self._norm))
        return torch.cat(images)


def _streamed(block: nn.Module) -> Callable[[Tensor, State], Tensor]:
    match block:
        case ResidualBlock():
            return StreamedResidualBlock(block)
        case AttentionBlock():
            return StreamedAttentionBlock(block)
        case Upsample():
            return _Upsample(block)
    raise TypeError(f"a decoder has no {type(block).__name__}")


class _Upsample:
    def __init__(self, block: Upsample) -> None:
        self.time_conv = None if block.time_conv is None else Convolution(block.time_conv)
        conv = cast(nn.Conv2d, block.resample[1])
        self.out_channels = conv.out_channels
        self.weight, self.bias = weights_of(conv)
        self.native = runs_on_our_kernels(self.weight)
        if self.native:
            self.phases = [ops.pack_convolution(weight, self.bias) for weight in _doubled_weights(self.weight)]
        else:
            self.weight = self.weight.contiguous(memory_format=torch.channels_last)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        if self.time_conv is not None:
            # A stream's first frame is one video frame: it skips the convolution, and is not one of the convolution's past frames.
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
        surround(x, wide)
        out = x.new_empty(frames, 2 * rows, 2 * columns, self.out_channels)
        for phase, (weight, bias) in enumerate(self.phases):
            i, j = divmod(phase, 2)
            ops.conv3d(wide[:, i : i + rows + 1, j : j + columns + 1], weight, bias, out[:, i::2, j::2])
        return out


def _doubled_weights(weight: Tensor) -> Tensor:
    """A 3 x 3 convolution of an image doubled by repetition, as four 2 x 2 convolutions of the image itself.

    weight: [out, in, 3, 3]; returns [4, out, in, 1, 2, 2], for the output pixels (even, even), (even, odd), (odd, even), (odd, odd).
    Two of three adjacent pixels of the doubled image are equal, so their weights are added. This saves 20 of 36 products.
    """
    merge = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [phase, tap, original tap]
    return torch.einsum("pai,qbj,ocij->pqocab", merge, merge, weight).flatten(0, 1).unsqueeze(3)
