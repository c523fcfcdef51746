"""How much is measured of a trained model, and how well its codec shows what the DiT draws."""

from dataclasses import dataclass

import torch

from lolrt.models.vae.wan import CausalVAE
from lolrt.train.codec_pca import PCACodec, to_unit
from lolrt.train.tiny.data import scene_of
from lolrt.train.tiny.scenes import render
from lolrt.train.train_vae import reconstruction_psnr


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    codec_clips: int = 12
    codec_frames: int = 81
    examples: int = 8
    """Example prompts whose videos are looked at where the phases return."""
    short_minutes: int = 10
    short_videos: int = 4
    """Of each policy."""
    long_minutes: int = 60
    long_videos: int = 3
    """Of the model's own policy: one of each kind of object."""
    switches: int = 20
    switch_seconds: float = 45.0
    """That are looked at after a new prompt."""
    training: int = 10_000
    """Pictures that the reader learns from."""
    training_steps: int = 1200
    held_out: int = 1100
    """Pictures that the reader is tried on, a hundred of each kind."""


@torch.no_grad()
def codec_quality(vae: CausalVAE, codec: PCACodec, seed: int, clips: int, frames: int) -> dict[str, float]:
    """PSNR in dB of whole held-out clips, through encoder and decoder and from PCA latents; drift: second half minus first."""
    videos = torch.stack([to_unit(render(scene_of(seed + 2, clip), torch.arange(frames))[0]) for clip in range(clips)])
    dtype = vae.conv2.weight.dtype
    whole = torch.cat([vae.decode_clip(vae.encode_clip(v[None].to(dtype))).float() for v in videos])
    from_pca = torch.cat([vae.decode_clip(codec.encode(v[None]).to(dtype)).float() for v in videos])
    result = dict(zip(("psnr", "psnr_detail"), reconstruction_psnr(videos, whole), strict=True))
    result |= dict(zip(("pca_psnr", "pca_psnr_detail"), reconstruction_psnr(videos, from_pca), strict=True))
    half = frames // 2
    early = reconstruction_psnr(videos[:, :, :half], whole[:, :, :half])[0]
    late = reconstruction_psnr(videos[:, :, half:], whole[:, :, half:])[0]
    return {**result, "drift": late - early}
