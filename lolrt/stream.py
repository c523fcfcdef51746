"""Endless streams: noise in, chunks of latents (and of video frames) out, in constant memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lolrt.cache import KVCache, Window
from lolrt.decoder import State
from lolrt.dit import CausalDiT
from lolrt.errors import Error
from lolrt.noise import Noise, NoiseSource
from lolrt.rope import Rope, rotation_tables, spatial_rotation
from lolrt.sampler import Sampler
from lolrt.vae import CausalVAE


@dataclass(frozen=True)
class LatentChunk:
    """A few latent frames that were denoised together."""

    first_frame: int
    """Number of the first latent frame, counted from the start of the stream (or from `start_frame`)."""
    latents: Tensor
    """float32 [chunk_frames, channels, height, width], normalised."""
    page_frames: tuple[int, ...]
    """Latent frames that the chunk attended to: sinks, then recent frames, its own last."""
    sink_frames: int
    """How many of them are sinks."""
    mass: Tensor | None = None
    """With the probe on: float32 [layers, heads, chunk_frames, pages], the softmax weight that the last denoise pass spent on each
    page, mean over a frame's queries; pages as in `page_frames`."""

    @property
    def sink_mass(self) -> float | None:
        """Attention mass on the sinks, mean over layers, heads and frames; None without the probe."""
        return None if self.mass is None else self.mass[..., : self.sink_frames].sum(-1).mean().item()


@dataclass(frozen=True, kw_only=True)
class Chunk(LatentChunk):
    """A chunk and its video frames."""

    frames: Tensor
    """uint8 [n, height, width, 3] RGB; n is 9 for the first chunk of a stream and 12 for the others (Wan's VAE, chunks of 3)."""


class LatentStream:
    """An endless iterator of `LatentChunk`.

    dit: the model. prompt_embeds: [text_tokens, text_dim]. height, width: of a latent frame, in latent pixels. noise: see
    `lolrt.noise.NoiseSource`; by default `Noise(seed=0, ...)`. start_frame: the number of the first latent frame.
    Raises `lolrt.Error` when the sizes do not fit the model.
    """

    def __init__(
        self,
        dit: CausalDiT,
        prompt_embeds: Tensor,
        height: int,
        width: int,
        *,
        noise: NoiseSource | None = None,
        rope: Rope = Rope(),
        window: Window = Window(),
        sampler: Sampler = Sampler(),
        start_frame: int = 0,
        probe: bool = False,
    ) -> None:
        config = dit.config
        self.dit, self.rope, self.window, self.sampler, self.probe = dit, rope, window, sampler, probe
        self.next_frame = start_frame
        self.noise = noise or Noise(0, config.in_dim, height, width)
        self._text = dit.encode_text(prompt_embeds)
        self._modulations = dit.modulations(sampler.model_timesteps)
        self._increments = rope.increments(config.num_layers, config.num_heads, config.temporal_pairs)
        _, patch_height, patch_width = config.patch_size
        tokens = dit.tokens_per_frame(height, width)
        row_pairs, column_pairs = (channels // 2 for channels in config.axes[1:])
        self._spatial_rotation = spatial_rotation(height // patch_height, width // patch_width, row_pairs, column_pairs, rope.theta)
        self._cache = KVCache(window, config.num_layers, tokens, config.num_heads, config.head_dim, dit.dtype)

    def __iter__(self) -> LatentStream:
        return self

    @torch.inference_mode()
    def __next__(self) -> LatentChunk:
        config, cache, first_frame, n_frames = self.dit.config, self._cache, self.next_frame, self.window.chunk_frames
        cache.advance(first_frame)
        rotation = rotation_tables(self._increments, self.rope.offsets(cache.frames, n_frames))
        passes = len(self.sampler.timesteps)
        mass = torch.empty(config.num_layers, len(cache.frames), n_frames, config.num_heads) if self.probe else None

        def flow(sample: Tensor, k: int) -> Tensor:
            probed = mass if k == passes - 1 else None
            return self.dit(sample, self._modulations[k], self._text, cache, rotation, self._spatial_rotation, probed)

        latents = self.sampler.denoise(flow, self.noise, first_frame, n_frames)
        # The cache pass: what later chunks see of this one is its clean K and V.
        flow(self.sampler.context(latents, self.noise, first_frame), passes)
        self.next_frame += n_frames
        return LatentChunk(
            first_frame=first_frame,
            latents=latents,
            page_frames=tuple(cache.frames),
            sink_frames=min(self.window.sink_frames, len(cache.frames)),
            mass=None if mass is None else mass.permute(0, 3, 2, 1),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """All that a stream made with the same arguments needs to go on from here, bit for bit; copies, safe to keep."""
        state = {f"cache.{name}": tensor for name, tensor in self._cache.state_dict().items()}
        return {"next_frame": torch.tensor(self.next_frame), **state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state. Raises `lolrt.Error`, with the stream unchanged, when it belongs to another model or size."""
        missing = {"next_frame", "cache.frames", "cache.pages"} - state.keys()
        if missing:
            raise Error(f"this is no saved stream: it lacks {', '.join(sorted(missing))}")
        self._cache.load_state_dict({"frames": state["cache.frames"], "pages": state["cache.pages"]})
        self.next_frame = int(state["next_frame"])


class Stream:
    """An endless iterator of `Chunk`: a latent stream and the VAE that decodes it."""

    def __init__(self, latent_stream: LatentStream, vae: CausalVAE) -> None:
        self.latent_stream = latent_stream
        self.vae = vae
        self._vae_state: State = {}

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        chunk = next(self.latent_stream)
        video = self.vae.decode(chunk.latents, self._vae_state)
        frames = video.add(1).mul_(127.5).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        return Chunk(**vars(chunk), frames=frames)

    def state_dict(self) -> dict[str, Tensor]:
        """See `LatentStream.state_dict`; with the frames that the VAE carries."""
        return {**self.latent_stream.state_dict(), **{f"vae.{slot}": frames.clone() for slot, frames in self._vae_state.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `LatentStream.load_state_dict`."""
        self.latent_stream.load_state_dict(state)
        self._vae_state = {name.removeprefix("vae."): frames.clone() for name, frames in state.items() if name.startswith("vae.")}
