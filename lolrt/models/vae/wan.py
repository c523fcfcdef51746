"""Wan2.1's causal 3D VAE as a whole: it encodes and decodes whole clips, and streams latent by latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn as nn
from torch import Tensor

from lolrt.models.vae.codec import State, check_frames
from lolrt.models.vae.decoder import StreamingDecoder
from lolrt.models.vae.encoder import StreamingEncoder
from lolrt.models.vae.layers import CausalConv3d, Coder, Decoder, Downsample, Encoder, VAEConfig
from lolrt.ops.device import upload

CoderT = TypeVar("CoderT", bound=Coder)
StreamingT = TypeVar("StreamingT")


class CausalVAE(nn.Module):
    """Encoder and decoder of `VAEConfig`; a `lolrt.models.vae.codec.Codec`. Source: Wan2.1 `wan/modules/vae.py`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self._streaming: dict[object, tuple[object, Any]] = {}
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1))
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)
        for name, module in self.named_modules():
            if isinstance(module, (CausalConv3d, Downsample)):
                module.slot = name

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles. It leaves out the streaming forms, which are made again when they are needed."""
        return {**self.__dict__, "_streaming": {}}

    @property
    def description(self) -> str:
        return f"a full VAE of {self.config.dim} channels"

    @property
    def memory_frames(self) -> int:
        """See `lolrt.models.vae.codec.Codec.memory_frames`. An upper bound: it counts every convolution over time as if it saw one frame
        per latent frame."""
        return sum(layer.kernel_size[0] - 1 for layer in self.decoder.modules() if isinstance(layer, CausalConv3d))

    def normalize(self, latents: Tensor) -> Tensor:
        """Normalises raw latents [batch, z, frames, h, w] for the DiT: (z - mean) / std for each channel."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values, dtype=like.dtype) for values in (self.config.latents_mean, self.config.latents_std))
        return upload(mean.view(1, -1, 1, 1, 1), like.device), upload(std.view(1, -1, 1, 1, 1), like.device)

    def encode_clip(self, video: Tensor) -> Tensor:
        """Encodes a whole clip [batch, 3, 1 + 4 k, height, width] in [-1, 1] to the means of its raw latents [batch, z, 1 + k, h, w]."""
        x = self.encoder(video.contiguous(memory_format=torch.channels_last_3d))
        return self.conv1(x)[:, : self.config.z_dim]

    def decode_clip(self, latents: Tensor) -> Tensor:
        """Decodes raw latents [batch, z, 1 + k, h, w] to the whole clip [batch, 3, 1 + 4 k, height, width], not clamped; differentiable."""
        return self.decoder(self.conv2(latents.contiguous(memory_format=torch.channels_last_3d)))

    @torch.inference_mode()
    def encode(self, video: Tensor, state: State) -> Tensor:
        """See `lolrt.models.vae.codec.Codec.encode`. The latents are the means of the encoder's distributions."""
        check_frames(video, self.config, first=not state)
        factor, first = self.config.temporal_factor, 0 if state else 1
        encoder = self._current(self.encoder, StreamingEncoder)
        images = video.permute(0, 2, 3, 1)
        parts = [*images[:first].split(1), *images[first:].split(factor)]
        dtype = self.conv1.weight.dtype
        moments = [encoder(part.to(dtype, memory_format=torch.contiguous_format), state) for part in parts if len(part)]
        raw = torch.cat([_pointwise(self.conv1, moment) for moment in moments])[..., : self.config.z_dim]
        return self.normalize(raw.float().permute(3, 0, 1, 2)[None])[0].transpose(0, 1).contiguous()

    @torch.inference_mode()
    def decode(self, latents: Tensor, state: State) -> Tensor:
        """See `lolrt.models.vae.codec.Codec.decode`. Latents are decoded one at a time."""
        return self.decode_by(self._current(self.decoder, StreamingDecoder), latents, state)

    def decode_by(self, decoder: StreamingDecoder, latents: Tensor, state: State) -> Tensor:
        """`decode` by a given streaming form of the decoder."""
        raw = self.denormalize(latents.float().transpose(0, 1)[None]).to(self.conv2.weight.dtype)
        latent_images = raw[0].permute(1, 2, 3, 0).contiguous().split(1)
        frames = [decoder(_pointwise(self.conv2, latent), state) for latent in latent_images]
        return torch.cat(frames).permute(0, 3, 1, 2).float().clamp_(-1, 1)

    def _current(self, coder: CoderT, kind: Callable[[CoderT], StreamingT]) -> StreamingT:
        """The streaming form of the current weights; a new one if the weights have changed since the last call."""
        version = [(p.data_ptr(), p.dtype, 0 if p.is_inference() else p._version) for p in coder.parameters()]
        if kind not in self._streaming or self._streaming[kind][0] != version:
            self._streaming[kind] = version, kind(coder)
        return self._streaming[kind][1]


def _pointwise(conv: CausalConv3d, latent: Tensor) -> Tensor:
    """A 1 x 1 x 1 convolution of one latent frame [1, rows, columns, channels].

    With more frames torch may sum in a different order, and the bits of a stream would depend on how it is split.
    """
    return conv(latent.permute(3, 0, 1, 2)[None])[0].permute(1, 2, 3, 0)
