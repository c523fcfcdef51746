"""What a stream needs of a VAE: frames to latents and back, a few at a time, for ever."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lolrt.errors import Error

# What a stream carries from call to call: frames of some layers' inputs, by name.
State = dict[str, Tensor]


class CodecConfig(Protocol):
    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel, in each direction."""

    @property
    def temporal_factor(self) -> int:
        """Video frames per latent frame after the first, which is one video frame."""


class Codec(Protocol):
    @property
    def config(self) -> CodecConfig: ...

    @property
    def description(self) -> str:
        """In a few words; what one codec carries from call to call is nothing to a codec that is described otherwise."""

    @property
    def memory_frames(self) -> int:
        """Latent frames of the past after which what decoding carries has forgotten all before them, to the bit; at most so many."""

    def encode(self, video: Tensor, state: State) -> Tensor:
        """Next video frames of a stream to its next normalised latents.

        video: [frames, 3, height, width] in [-1, 1], any float dtype; 1 + k * temporal_factor frames in a stream's first call, multiples
        of temporal_factor in every other one. state: carried from call to call, `{}` at the start of a stream; updated in place.
        Returns float32 [latent frames, z, h, w].
        """

    def decode(self, latents: Tensor, state: State) -> Tensor:
        """Next normalised latents of a stream to its next video frames.

        latents: [frames, z, h, w], any float dtype. state: as in `encode`, one of its own. Returns float32 [video frames, 3, height,
        width] in [-1, 1]. The result does not depend on how a stream is split into calls, not by a bit.
        """


def check_frames(video: Tensor, config: CodecConfig, first: bool) -> None:
    """Raises `lolrt.Error` unless these frames make whole latents; `first`: they begin a stream."""
    frames, _, height, width = video.shape
    alone = 1 if first else 0
    if frames < alone or (frames - alone) % config.temporal_factor:
        raise Error(f"{frames} frames to encode; expected a multiple of {config.temporal_factor}" + (" and one more" if first else ""))
    if height % config.spatial_factor or width % config.spatial_factor:
        raise Error(f"frames of {height} x {width} pixels; expected multiples of {config.spatial_factor}")
