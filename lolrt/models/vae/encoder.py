"""The encoder of Wan's VAE on a stream: the first frame alone, then the frames of one latent frame at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lolrt.models.vae.codec import State
from lolrt.models.vae.layers import AttentionBlock, Downsample, Encoder, ResidualBlock
from lolrt.models.vae.streaming import Convolution, Norm, StreamedAttentionBlock, StreamedResidualBlock, few_frames, weights_of


class StreamingEncoder:
    """The streaming form of an encoder. It reads the weights once; if they change, make a new one."""

    def __init__(self, encoder: Encoder) -> None:
        self._in = Convolution(encoder.conv1)
        blocks = [_streamed(block) for block in (*encoder.downsamples, *encoder.middle)]
        # Before the first halving of frames, the layers can work on a few frames at a time.
        first_halving = next((i for i, block in enumerate(blocks) if isinstance(block, _Downsample) and block.time_conv), len(blocks))
        self._frame_blocks, self._blocks = blocks[:first_halving], blocks[first_halving:]
        norm, _, conv = encoder.head
        self._norm, self._out = Norm(norm), Convolution(conv)

    def __call__(self, images: Tensor, state: State) -> Tensor:
        """Encodes [1 or 4, 8 rows, 8 columns, 3], in the weights' dtype, to [1, rows, columns, 2 z]; `state` is updated in place."""
        _, rows, columns, _ = images.shape
        parts = []
        for part in few_frames(images, (rows, columns, self._in.out_channels)):
            part = self._in(part, state)
            for block in self._frame_blocks:
                part = block(part, state)
            parts.append(part)
        x = torch.cat(parts)
        for block in self._blocks:
            x = block(x, state)
        return self._out(x, state, self._norm)


def _streamed(block: nn.Module) -> Callable[[Tensor, State], Tensor]:
    match block:
        case ResidualBlock():
            return StreamedResidualBlock(block)
        case AttentionBlock():
            return StreamedAttentionBlock(block)
        case Downsample():
            return _Downsample(block)
    raise TypeError(f"an encoder has no {type(block).__name__}")


class _Downsample:
    """A `Downsample` on a stream. Over time, each output frame except the first is made from its own two frames and the one before them."""

    def __init__(self, block: Downsample) -> None:
        self.slot = block.slot
        weight, self.bias = weights_of(cast(nn.Conv2d, block.resample[1]))
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.time_conv = None if block.time_conv is None else weights_of(block.time_conv)

    def __call__(self, x: Tensor, state: State) -> Tensor:
        # One frame at a time: torch may sum in a different order for several frames, and the bits would depend on their number.
        images = F.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1)).split(1)
        x = torch.cat([F.conv2d(image, self.weight, self.bias, stride=2) for image in images]).permute(0, 2, 3, 1)
        if self.time_conv is None:
            return x.contiguous()
        past = state.get(self.slot)
        state[self.slot] = x[-1:].clone()
        if past is None:
            return x.contiguous()
        joined = torch.cat([past, x]).permute(3, 0, 1, 2)[None]
        return F.conv3d(joined, *self.time_conv, stride=(2, 1, 1))[0].permute(1, 2, 3, 0).contiguous()
