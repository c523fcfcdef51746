"""The latent space of an embedded model, in closed form: principal components of 4 x 8 x 8 x RGB groups of pixels.

The VAE's encoder and decoder are both trained towards this space, and the DiT lives in it, so that none of the three waits for
another. Components are scaled by the square root of their standard deviation: between plain PCA, whose details drown in the
diffusion noise, and whitening, which makes noise as important as content.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SPATIAL, TEMPORAL = 8, 4  # pixels a latent pixel, video frames a latent frame


def to_unit(video: Tensor) -> Tensor:
    """uint8 [..., frames, 3, H, W] to float [..., 3, frames, H, W] in [-1, 1]."""
    return video.movedim(-3, -4).float() / 127.5 - 1


def group_pixels(video: Tensor) -> Tensor:
    """Video [batch, 3, 1 + 4 k, H, W] to groups [batch, 1 + k, H / 8, W / 8, 768]; the first frame counts as four equal ones."""
    video = torch.cat([video[:, :, :1].expand(-1, -1, TEMPORAL - 1, -1, -1), video], 2)
    batch, channels, frames, height, width = video.shape
    video = video.reshape(batch, channels, frames // TEMPORAL, TEMPORAL, height // SPATIAL, SPATIAL, width // SPATIAL, SPATIAL)
    return video.permute(0, 2, 4, 6, 3, 1, 5, 7).flatten(4)


@dataclass
class PCACodec:
    """mean [768], basis [768, z] orthonormal, scale [z]: raw latents = (groups - mean) @ basis / scale,
    with an overall standard deviation of 1.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, videos: Tensor, z_dim: int) -> "PCACodec":
        """Fits to videos [batch, 3, 1 + 4 k, H, W] in [-1, 1]."""
        groups = group_pixels(videos).flatten(0, 3)
        mean = groups.mean(0)
        groups = groups - mean
        variance, basis = torch.linalg.eigh((groups.T @ groups / len(groups)).double())
        std = variance.flip(0)[:z_dim].clamp(min=1e-12).sqrt()
        scale = std.sqrt()
        scale = scale * (std / scale).square().mean().sqrt()
        return cls(mean, basis.flip(1)[:, :z_dim].float().contiguous(), scale.float())

    def encode(self, video: Tensor) -> Tensor:
        """Video [batch, 3, 1 + 4 k, H, W] in [-1, 1] to latents [batch, z, 1 + k, H / 8, W / 8]."""
        return ((group_pixels(video) - self.mean) @ self.basis / self.scale).permute(0, 4, 1, 2, 3)

    def psnr(self, video: Tensor) -> float:
        """Peak signal-to-noise ratio, dB, of the projection of a video onto the components."""
        groups = group_pixels(video) - self.mean
        error = (groups @ self.basis @ self.basis.T - groups).square().mean((1, 2, 3, 4))
        return float((-10 * (error / 4).log10()).mean())


def load_codec(work: Path) -> PCACodec:
    return PCACodec(**torch.load(work / "pca.pt"))
