"""TAEHV, the tiny autoencoder for video latents: a few 2D convolutions that also see the frame before.

It uses the same latents as the VAE that it imitates, and decodes them many times as fast but less exactly. Parameter names are those of
`taehv.py` (madebyollin/taehv), so that published weights (taew2_1) load unchanged.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lolrt.errors import Error
from lolrt.models.vae.codec import State, check_frames
from lolrt.models.vae.layers import WAN_LATENTS_MEAN, WAN_LATENTS_STD
from lolrt.ops.device import upload


@dataclass(frozen=True)
class TAEHVConfig:
    """Sizes of a TAEHV; the defaults are those for Wan2.1's latents."""

    z_dim: int = 16
    encoder_width: int = 64
    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    """The channels at each resolution, coarsest first."""
    decoder_growth: tuple[int, int, int] = (1, 2, 2)
    """How many frames the weights can make from one frame at each resolution, coarsest first. If fewer are needed, the last ones are
    used."""
    raw_latents: bool = False
    """Whether it uses the latents of Wan's VAE before normalisation, as LightX2V's LightTAE does, which has the same sizes."""

    @property
    def spatial_factor(self) -> int:
        return 8

    @property
    def temporal_factor(self) -> int:
        return 4


# How many frames the encoder makes into one, finest resolution first, and how many the decoder makes from one, coarsest first.
SHRINK, GROW = (2, 2, 1), (1, 2, 2)


class MemBlock(nn.Module):
    """A residual block whose convolutions see each frame together with the one before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """x: [frames, channels, h, w]; past: the frame before the first of them, [1, channels, h, w]."""
        before = torch.cat([past, x[:-1]]) if len(x) > 1 else past
        return self.conv(torch.cat([x, before], 1)).add_(x).relu_()


class TPool(nn.Module):
    """Makes one frame from every `stride` frames."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(stride * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_channels_last(x.permute(0, 2, 3, 1).unflatten(0, (-1, self.stride)).movedim(1, 3).flatten(3)))


class TGrow(nn.Module):
    """Makes `stride` frames, of twice the height and width, from every frame. If the weights can make more frames, the last ones are used.

    The published order repeats the pixels first. Here a quarter as many are multiplied, with the same result.
    """

    def __init__(self, channels: int, stride: int, saved_stride: int) -> None:
        super().__init__()
        self.outputs = stride * channels
        self.conv = nn.Conv2d(channels, saved_stride * channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        images = F.conv2d(x, self.conv.weight[-self.outputs :]).permute(0, 2, 3, 1)
        images = images.unflatten(3, (-1, x.shape[1])).movedim(3, 1).flatten(0, 1)
        return F.interpolate(_channels_last(images), scale_factor=2, mode="nearest")


def _channels_last(images: Tensor) -> Tensor:
    """[frames, rows, columns, channels] as torch's convolutions take them, without a change of the memory layout: from another layout they
    make copies."""
    return images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


class Limit(nn.Module):
    """Limits latents softly to -3 .. 3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class TAEHV(nn.Module):
    """Encoder and decoder of `TAEHVConfig`; a `lolrt.models.vae.codec.Codec`. Source: madebyollin/taehv, `taehv.py`."""

    def __init__(self, config: TAEHVConfig) -> None:
        """Raises `lolrt.Error` for raw latents that are not Wan2.1's."""
        super().__init__()
        if config.raw_latents and config.z_dim != len(WAN_LATENTS_MEAN):
            raise Error(
                f"a TAEHV of {config.z_dim} latent channels is no LightTAE, which has Wan2.1's {len(WAN_LATENTS_MEAN)}: take --vae tiny"
            )
        self.config = config
        width, widths = config.encoder_width, config.decoder_widths
        encoder: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
        for stride in SHRINK:
            encoder += [TPool(width, stride), nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)]
            encoder += [MemBlock(width) for _ in range(3)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(width, config.z_dim, 3, padding=1))
        decoder: list[nn.Module] = [Limit(), nn.Conv2d(config.z_dim, widths[0], 3, padding=1), nn.ReLU()]
        for (channels, out), stride, saved_stride in zip(itertools.pairwise(widths), GROW, config.decoder_growth, strict=True):
            decoder += [MemBlock(channels) for _ in range(3)]
            decoder += [
                nn.Identity(),  # the published model repeats pixels here
                TGrow(channels, stride, saved_stride),
                nn.Conv2d(channels, out, 3, padding=1, bias=False),
            ]
        self.decoder = nn.Sequential(*decoder, nn.ReLU(), nn.Conv2d(widths[-1], 3, 3, padding=1))

    @property
    def description(self) -> str:
        return f"a {'LightTAE' if self.config.raw_latents else 'TAEHV'} of {self.config.decoder_widths[0]} channels"

    @property
    def memory_frames(self) -> int:
        """See `lolrt.models.vae.codec.Codec.memory_frames`. Each block remembers one frame, and a latent frame makes one frame or more."""
        return sum(isinstance(layer, MemBlock) for layer in self.decoder)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder[1].weight.dtype  # type: ignore[return-value, union-attr]

    @torch.inference_mode()
    def encode(self, video: Tensor, state: State) -> Tensor:
        """See `lolrt.models.vae.codec.Codec.encode`. The first frame is repeated four times; `decode` returns the last of the four."""
        check_frames(video, self.config, first=not state)
        frames = video.add(1).div(2)
        if not state:
            frames = torch.cat([frames[:1].expand(self.config.temporal_factor - 1, -1, -1, -1), frames])
        latents = torch.cat([_run(self.encoder, part.to(self.dtype), state) for part in frames.split(self.config.temporal_factor)]).float()
        if not self.config.raw_latents:
            return latents
        mean, std = _statistics(latents.device)
        return (latents - mean) / std

    @torch.inference_mode()
    def decode(self, latents: Tensor, state: State) -> Tensor:
        """See `lolrt.models.vae.codec.Codec.decode`."""
        first = not state
        if self.config.raw_latents:
            mean, std = _statistics(latents.device)
            latents = latents.float() * std + mean
        video = torch.cat([_run(self.decoder, latent.to(self.dtype), state) for latent in latents.split(1)])
        return video[self.config.temporal_factor - 1 if first else 0 :].float().clamp(0, 1).mul_(2).sub_(1)


def _statistics(device: torch.device) -> list[Tensor]:
    """The mean and standard deviation of Wan's latents by channel, float32 [z, 1, 1]."""
    return [upload(torch.tensor(values, dtype=torch.float32)[:, None, None], device) for values in (WAN_LATENTS_MEAN, WAN_LATENTS_STD)]


def _run(layers: nn.Sequential, x: Tensor, state: State) -> Tensor:
    """Runs the layers on the frames of one latent frame. `state` holds the last input of each `MemBlock`, by the block's index."""
    x = x.contiguous(memory_format=torch.channels_last)
    for name, layer in layers.named_children():
        if isinstance(layer, MemBlock):
            past = state.get(name)
            state[name] = x[-1:].clone()
            x = layer(x, torch.zeros_like(x[:1]) if past is None else past)
        else:
            x = layer(x)
    return x
