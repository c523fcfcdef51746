"""A whole model: text encoder, DiT and VAE, loaded together and streamed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt import _core
from lolrt.cache import Window
from lolrt.checkpoint import load_dit, load_vae, read_config, read_json
from lolrt.dit import CausalDiT
from lolrt.errors import Error
from lolrt.noise import Noise
from lolrt.rope import Rope
from lolrt.sampler import Sampler
from lolrt.stream import LatentStream, Stream
from lolrt.text import VocabularyEncoder
from lolrt.vae import CausalVAE
from lolrt.vae_layers import VAEConfig

MODELS = Path(__file__).parent / "models"


def embedded_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in MODELS.glob("*/model.json"))


def load(model: str | Path, dtype: torch.dtype | None = None) -> Pipeline:
    """Loads a pipeline: the name of an embedded model, or a folder of the same layout (model.json says what is in it).

    dtype: torch.bfloat16 or torch.float32, of all weights and activations; by default bfloat16 where the CPU multiplies it, and
    float32 elsewhere, where that is several times as fast. Raises `lolrt.Error` when there is no such model and
    `lolrt.CheckpointError` when its files are not what they should be.
    """
    dtype = dtype or (torch.bfloat16 if _core.isa() in ("amx", "avx512bf16") else torch.float32)
    folder = MODELS / model if model in embedded_models() else Path(model)
    if not folder.exists():
        raise Error(f"no model {str(model)!r}: it is neither an embedded model ({', '.join(embedded_models())}) nor a path that exists")
    if not (folder / "model.json").is_file():
        raise Error(
            f"{folder} has no model.json, so it is not a whole pipeline; load its DiT with lolrt.load_dit(path) "
            "and stream from prompt embeddings with lolrt.LatentStream"
        )
    description = read_json(folder / "model.json")
    sampler: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in description["sampler"].items()}
    unknown = sampler.keys() - {field.name for field in fields(Sampler)}
    if unknown:
        raise Error(f"{folder / 'model.json'} has unknown sampler settings: {', '.join(sorted(unknown))}; a newer lolrt may know them")
    return Pipeline(
        name=description["name"],
        dit=load_dit(folder, dtype),
        vae=load_vae(folder / "vae.safetensors", read_config(folder / "vae_config.json", VAEConfig), dtype),
        encode_text=VocabularyEncoder(folder),
        sampler=Sampler(**sampler),
        fps=description["fps"],
        height=description["height"],
        width=description["width"],
        example_prompts=tuple(description["example_prompts"]),
    )


class Pipeline:
    """Makes streams from prompts. height, width: of the video, in pixels; fps: video frames a second that the model was trained at."""

    def __init__(
        self,
        *,
        name: str,
        dit: CausalDiT,
        vae: CausalVAE,
        encode_text: Callable[[str], Tensor],
        sampler: Sampler,
        fps: int,
        height: int,
        width: int,
        example_prompts: tuple[str, ...] = (),
    ) -> None:
        self.name, self.dit, self.vae, self.encode_text, self.sampler = name, dit, vae, encode_text, sampler
        self.fps, self.height, self.width, self.example_prompts = fps, height, width, example_prompts

    def stream(self, prompt: str, **options: Any) -> Stream:
        """An endless iterator of `lolrt.Chunk`; options as of `latent_stream`."""
        return Stream(self.latent_stream(prompt, **options), self.vae)

    def latent_stream(
        self,
        prompt: str,
        *,
        seed: int = 0,
        rope: Rope = Rope(),
        window: Window = Window(),
        sampler: Sampler | None = None,
        probe: bool = False,
        start_frame: int = 0,
    ) -> LatentStream:
        """An endless iterator of `lolrt.LatentChunk`, not decoded.

        seed: of the noise, 0 .. 2^64 - 1; sampler: by default the model's own; probe: measure the attention mass of each chunk.
        Raises `lolrt.PromptError` for a prompt that the text encoder does not know.
        """
        height, width = self.height // self.vae.config.spatial_factor, self.width // self.vae.config.spatial_factor
        noise = Noise(seed, self.dit.config.in_dim, height, width)
        return LatentStream(
            self.dit, self.encode_text(prompt), height, width,
            noise=noise, rope=rope, window=window, sampler=sampler or self.sampler, start_frame=start_frame, probe=probe,
        )  # fmt: skip
