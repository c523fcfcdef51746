"""The layers of Wan2.1's causal 3D VAE: 8x smaller in space, 4x in time, the first frame alone.

Parameter names are those of `wan/modules/vae.py`, so that published weights load unchanged. The modules work on whole clips and are
differentiable. Every convolution over time looks only backwards, so a stream can be decoded latent by latent, if the last two frames of
each convolution's input are kept (`lolrt.models.vae.streaming`). Tensors are [batch, channels, frames, height, width],
in channels_last_3d memory order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

# The statistics of Wan2.1's latents by channel (constants in `WanVAEWrapper`; checkpoints do not contain them).
WAN_LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of a Wan VAE; the defaults are Wan2.1's."""

    dim: int = 96
    """Channels at full resolution."""
    z_dim: int = 16
    """Latent channels."""
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    """Channels at each resolution, finest first, in units of `dim`."""
    num_res_blocks: int = 2
    """Residual blocks per resolution in the encoder; the decoder has one more."""
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    """Whether each halving of the spatial resolution, finest first, also halves the frame rate."""
    latents_mean: tuple[float, ...] = field(default=WAN_LATENTS_MEAN)
    latents_std: tuple[float, ...] = field(default=WAN_LATENTS_STD)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel, in each direction."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_factor(self) -> int:
        """Video frames per latent frame, after the first one."""
        return 2 ** sum(self.temporal_downsample)


class RMSNorm(nn.Module):
    """x / rms(x) * gamma over the channels of each pixel, in float32."""

    def __init__(self, channels: int, images: bool = False) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *((1, 1) if images else (1, 1, 1))))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return (F.normalize(y, dim=1) * (x.shape[1] ** 0.5 * self.gamma.float())).to(x.dtype)


class CausalConv3d(nn.Conv3d):
    """A convolution over a frame and the frames before it. The two frames before the first one of a clip are zero."""

    slot = ""  # set by CausalVAE: the module's name, the key of its frames in a State

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, (0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Tensor) -> Tensor:
        past_frames = self.kernel_size[0] - 1
        return super().forward(torch.cat([x.new_zeros(*x.shape[:2], past_frames, *x.shape[3:]), x], 2) if past_frames else x)


class ResidualBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(in_channels), nn.SiLU(), CausalConv3d(in_channels, out_channels, (3, 3, 3)),
            RMSNorm(out_channels), nn.SiLU(), nn.Identity(), CausalConv3d(out_channels, out_channels, (3, 3, 3)),
        )  # fmt: skip
        self.shortcut = CausalConv3d(in_channels, out_channels, (1, 1, 1)) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of one frame, with one head. Frames do not see each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, images=True)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = frames_as_batch(x)
        batch, channels, height, width = y.shape
        q, k, v = self.to_qkv(self.norm(y)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        out = self.proj(out.transpose(1, 2).reshape(batch, channels, height, width))
        return x + batch_as_frames(out, x.shape[0])


class Downsample(nn.Module):
    """Halves space; with `temporal`, halves time too: the first frame stays alone, then every two frames become one."""

    slot = ""  # set by CausalVAE, as in CausalConv3d

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor) -> Tensor:
        x = batch_as_frames(self.resample(frames_as_batch(x)), x.shape[0])
        if self.time_conv is not None and x.shape[2] > 1:
            x = torch.cat([x[:, :, :1], self.time_conv(x)], 2)
        return x


class Upsample(nn.Module):
    """Doubles space and halves channels; with `temporal`, doubles time too: the stream's first frame stays alone."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest-exact"), nn.Conv2d(channels, channels // 2, 3, padding=1))
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor) -> Tensor:
        if self.time_conv is not None:
            # The first frame of a clip is one video frame: it skips the convolution, and is not one of the convolution's past frames.
            alone, rest = x[:, :, :1], x[:, :, 1:]
            x = torch.cat([alone, self._double(self.time_conv(rest))], 2) if rest.shape[2] else alone
        return batch_as_frames(self.resample(frames_as_batch(x)), x.shape[0])

    @staticmethod
    def _double(x: Tensor) -> Tensor:
        """[batch, 2 * channels, frames, ...] -> [batch, channels, 2 * frames, ...]: the halves of the channels are successive frames."""
        batch, channels, frames, height, width = x.shape
        return x.view(batch, 2, channels // 2, frames, height, width).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def frames_as_batch(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def batch_as_frames(x: Tensor, batch: int) -> Tensor:
    return x.unflatten(0, (batch, -1)).transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)


class Coder(nn.Module):
    """The base class of encoder and decoder: runs their parts one after another."""

    parts: tuple[str, ...] = ()  # the names of the child modules, in the order in which they run

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = self.get_submodule(part)(x)
        return x


class Encoder(Coder):
    parts = ("conv1", "downsamples", "middle", "head")

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.dim * m for m in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(3, dims[0], (3, 3, 3))
        stages: list[nn.Module] = []
        for level, (channels, out) in enumerate(itertools.pairwise(dims)):
            stages += [ResidualBlock(channels if i == 0 else out, out) for i in range(config.num_res_blocks)]
            if level < len(config.dim_mult) - 1:
                stages.append(Downsample(out, config.temporal_downsample[level]))
        self.downsamples = nn.Sequential(*stages)
        self.middle = nn.Sequential(ResidualBlock(out, out), AttentionBlock(out), ResidualBlock(out, out))
        self.head = nn.Sequential(RMSNorm(out), nn.SiLU(), CausalConv3d(out, 2 * config.z_dim, (3, 3, 3)))


class Decoder(Coder):
    parts = ("conv1", "middle", "upsamples", "head")

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        dims = [config.dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        self.conv1 = CausalConv3d(config.z_dim, dims[0], (3, 3, 3))
        self.middle = nn.Sequential(ResidualBlock(dims[0], dims[0]), AttentionBlock(dims[0]), ResidualBlock(dims[0], dims[0]))
        stages: list[nn.Module] = []
        for level, (channels, out) in enumerate(itertools.pairwise(dims)):
            channels = channels // 2 if level else channels  # each Upsample halves them
            stages += [ResidualBlock(channels if i == 0 else out, out) for i in range(config.num_res_blocks + 1)]
            if level < len(config.dim_mult) - 1:
                stages.append(Upsample(out, tuple(reversed(config.temporal_downsample))[level]))
        self.upsamples = nn.Sequential(*stages)
        self.head = nn.Sequential(RMSNorm(out), nn.SiLU(), CausalConv3d(out, 3, (3, 3, 3)))
