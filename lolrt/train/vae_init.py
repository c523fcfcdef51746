"""The initial weights of the VAE's training: nearly a plain pyramid, whose residual branches add nothing yet."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from lolrt.models.vae.layers import AttentionBlock, Downsample, ResidualBlock, Upsample
from lolrt.models.vae.wan import CausalVAE

NOISE = 0.3  # standard deviation of random weights, in units of 1 / sqrt(inputs)
HAAR = ([[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]])


@torch.no_grad()
def initialize(vae: CausalVAE, seed: int) -> None:
    """Initialises a VAE: residual branches end in zeros, and resampling repeats pixels or takes their Haar sums and differences."""
    torch.manual_seed(seed)
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(last_convolution(module).weight)
            _clear_bias(last_convolution(module))
            if isinstance(module.shortcut, nn.Conv3d):
                _repeat_channels(module.shortcut)
        elif isinstance(module, AttentionBlock):
            nn.init.zeros_(module.proj.weight)
            _clear_bias(module.proj)
        elif isinstance(module, Upsample):
            _repeat_channels(cast(nn.Conv2d, module.resample[1]))
            if module.time_conv is not None:
                _repeat_channels(module.time_conv)
        elif isinstance(module, Downsample):
            _haar_in_space(cast(nn.Conv2d, module.resample[1]))
            if module.time_conv is not None:
                _haar_in_time(module.time_conv)
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def last_convolution(block: ResidualBlock) -> nn.Conv3d:
    return cast(nn.Conv3d, block.residual[-1])


def _clear_bias(conv: nn.Conv2d | nn.Conv3d) -> None:
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _randomize(conv: nn.Conv2d | nn.Conv3d) -> None:
    nn.init.normal_(conv.weight, std=NOISE / conv.weight[0].numel() ** 0.5)
    _clear_bias(conv)


def _repeat_channels(conv: nn.Conv2d | nn.Conv3d) -> None:
    """Output channel i repeats input channel i, modulo their number, at the kernel's centre; in time, at its last frame."""
    _randomize(conv)
    out = torch.arange(conv.out_channels)
    kernel = conv.weight[..., conv.kernel_size[-2] // 2, conv.kernel_size[-1] // 2]
    if kernel.dim() == 3:
        kernel = kernel[..., -1]
    kernel[out, out % conv.in_channels] += 1


def _haar_in_space(conv: nn.Conv2d) -> None:
    """A quarter of the channels averages 2 x 2 pixels, the others take their differences."""
    _randomize(conv)
    quarter = conv.out_channels // 4
    for band, signs in enumerate(HAAR):
        for channel in range(quarter):
            conv.weight[band * quarter + channel, channel, :2, :2] += 0.5 * torch.tensor(signs)


def _haar_in_time(conv: nn.Conv3d) -> None:
    """Half of the channels averages two frames, the other half takes their difference."""
    _randomize(conv)
    channel = torch.arange(conv.out_channels // 2)
    difference = channel + len(channel)
    conv.weight[channel, channel, 1:, 0, 0] += 0.6
    conv.weight[difference, channel, 2, 0, 0] += 0.6
    conv.weight[difference, channel, 1, 0, 0] -= 0.6
