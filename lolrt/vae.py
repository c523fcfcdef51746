"""Wan2.1's causal 3D VAE as a whole: latents and their statistics, clips, and streams that are decoded latent by latent."""

from __future__ import annotations

import torch
import torch.nn as nn
from torch import Tensor

from lolrt.decoder import State, StreamingDecoder
from lolrt.vae_layers import CausalConv3d, Decoder, Encoder, VAEConfig


class CausalVAE(nn.Module):
    """Encoder and decoder of `VAEConfig`. Source: Wan2.1 `wan/modules/vae.py`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self._streaming: tuple[object, StreamingDecoder] | None = None
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)
        for name, module in self.named_modules():
            if isinstance(module, CausalConv3d):
                module.slot = name

    def normalize(self, latents: Tensor) -> Tensor:
        """Raw latents [batch, z, frames, h, w] to those that the DiT works on: (z - mean) / std per channel."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1)
        return like.new_tensor(self.config.latents_mean).view(shape), like.new_tensor(self.config.latents_std).view(shape)

    def encode_clip(self, video: Tensor) -> Tensor:
        """A whole clip [batch, 3, 1 + 4 k, height, width] in [-1, 1] to the means of its raw latents [batch, z, 1 + k, h, w]."""
        x = self.encoder(video.contiguous(memory_format=torch.channels_last_3d))
        return self.conv1(x)[:, : self.config.z_dim]

    def decode_clip(self, latents: Tensor) -> Tensor:
        """Raw latents [batch, z, 1 + k, h, w] to the whole clip [batch, 3, 1 + 4 k, height, width], not clamped; differentiable."""
        return self.decoder(self.conv2(latents.contiguous(memory_format=torch.channels_last_3d)))

    @torch.inference_mode()
    def decode(self, latents: Tensor, state: State) -> Tensor:
        """Next normalised latents of a stream to its next video frames.

        latents: [frames, z, h, w], any float dtype. state: carried from call to call, `{}` at the start of a stream; updated in place.
        Returns float32 [video frames, 3, height, width] in [-1, 1]; the stream's first latent gives 1 video frame, every other one 4.
        Latents are decoded one at a time, so that the result does not depend on how a stream is split into calls, not by a bit.
        """
        raw = self.denormalize(latents.float().transpose(0, 1)[None]).to(self.conv2.weight.dtype)
        decoder = self._streaming_decoder()
        frames = [decoder(latent, state) for latent in self.conv2(raw)[0].permute(1, 2, 3, 0).split(1)]
        return torch.cat(frames).permute(0, 3, 1, 2).float().clamp_(-1, 1)

    def _streaming_decoder(self) -> StreamingDecoder:
        """Of the weights as they are now: a new one when they have changed since the last call."""
        version = [(p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in self.decoder.parameters()]
        if self._streaming is None or self._streaming[0] != version:
            self._streaming = version, StreamingDecoder(self.decoder)
        return self._streaming[1]
