"""The interface of a VAE on a stream: it converts frames to latents and back, a few at a time, without end."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lolrt.errors import Error

# The state of a stream between calls: past frames of some layers' inputs, by name.
State = dict[str, Tensor]


class CodecConfig(Protocol):
    @property
    def spatial_factor(self) -> int:
        """Pixels per latent pixel, in each direction."""

    @property
    def temporal_factor(self) -> int:
        """Video frames per latent frame. The first latent frame is a single video frame."""


class Codec(Protocol):
    @property
    def config(self) -> CodecConfig: ...

    @property
    def description(self) -> str:
        """A short description. A codec can use only the state of a codec with the same description."""

    @property
    def memory_frames(self) -> int:
        """An upper bound of the past latent frames that the decoder's state depends on. Decoding these again gives the same state, bit for
        bit."""

    def encode(self, video: Tensor, state: State) -> Tensor:
        """Encodes the next video frames of a stream to its next normalised latents.

        video: [frames, 3, height, width] in [-1, 1], any float dtype; 1 + k * temporal_factor frames in a stream's first call, multiples
        of temporal_factor in every other one. state: the state between calls, `{}` at the start of a stream; updated in place.
        Returns float32 [latent frames, z, h, w].
        """

    def decode(self, latents: Tensor, state: State) -> Tensor:
        """Decodes the next normalised latents of a stream to its next video frames.

        latents: [frames, z, h, w], any float dtype. state: as in `encode`, but a separate one. Returns float32 [video frames, 3, height,
        width] in [-1, 1]. The result does not depend on how a stream is split into calls, bit for bit.
        """


def check_frames(video: Tensor, config: CodecConfig, first: bool) -> None:
    """Raises `lolrt.Error` unless these frames make whole latents. first: they begin a stream."""
    frames, _, height, width = video.shape
    alone = 1 if first else 0
    if frames < alone or (frames - alone) % config.temporal_factor:
        raise Error(f"{frames} frames to encode; expected a multiple of {config.temporal_factor}" + (" and one more" if first else ""))
    if height % config.spatial_factor or width % config.spatial_factor:
        raise Error(f"frames of {height} x {width} pixels; expected multiples of {config.spatial_factor}")
