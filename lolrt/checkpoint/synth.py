"""Makes models of any size with random weights, to test a machine and the software before downloading a real model."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lolrt.checkpoint.folder import WAN_SETTINGS, new_folder, write_config, write_json, write_weights
from lolrt.checkpoint.names import Kind
from lolrt.checkpoint.safetensors_file import write_safetensors
from lolrt.checkpoint.shapes import Shapes, dit_shapes, read_json, taehv_shapes, vae_shapes, with_values
from lolrt.errors import Error
from lolrt.models.dit import DiTConfig
from lolrt.models.vae.layers import VAEConfig
from lolrt.models.vae.taehv import TAEHVConfig

# The text part is the vocabulary of the embedded model: a tokenizer like UMT5's cannot be random.
VOCABULARY = Path(__file__).parent.parent / "_embedded" / "tiny"


@dataclass(frozen=True)
class Sizes:
    """The sizes of a whole model; the defaults are those of Wan2.1-T2V-1.3B."""

    dit: DiTConfig = field(default_factory=DiTConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    height: int = 480
    width: int = 832


PRESETS = {
    "1.3b": Sizes(),
    "small": Sizes(DiTConfig(dim=256, ffn_dim=512, text_dim=64, num_heads=2, num_layers=4), VAEConfig(dim=16), height=128, width=192),
}


def sizes(config: str) -> Sizes:
    """The sizes of a preset, or those in a JSON file: the config.json of a Wan DiT, optionally with "vae", "height" and "width"."""
    if config in PRESETS:
        return PRESETS[config]
    path = Path(config)
    if not path.is_file():
        raise Error(f"no config {config!r}: it is neither one of {', '.join(PRESETS)} nor a file")
    values = read_json(path)
    vae, height, width = values.get("vae", {}), values.get("height", 480), values.get("width", 832)
    if not isinstance(vae, dict) or not all(type(size) is int and 0 < size <= 1 << 14 for size in (height, width)):
        raise Error(f"{path}: vae is to be an object, height and width numbers of pixels")
    return Sizes(with_values(DiTConfig(), values, path), with_values(VAEConfig(), vae, path), height, width)


def synth(destination: str | Path, config: str = "1.3b", seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Writes a model folder with random weights, tensor by tensor; the same seed gives the same files. Returns the folder.

    It has a DiT, a VAE, a TAEHV if the VAE has latents like Wan's, and the vocabulary of the embedded model instead of a text encoder.
    Norms are near 1, biases near 0; other weights are normal with a variance that keeps activations of the order of 1. Raises
    `lolrt.Error` for an invalid config, and `lolrt.OutputError` if the folder exists already or cannot be written.
    """
    model = sizes(config)
    with new_folder(Path(destination)) as folder:
        write_config(folder, model.dit)
        write_config(folder, model.vae)
        parts: list[tuple[Kind, Shapes]] = [("dit", dit_shapes(model.dit)), ("vae", vae_shapes(model.vae))]
        taehv = TAEHVConfig(z_dim=model.vae.z_dim)
        if (taehv.spatial_factor, taehv.temporal_factor) == (model.vae.spatial_factor, model.vae.temporal_factor):
            parts.append(("taehv", taehv_shapes(taehv)))
        for kind, shapes in parts:
            write_weights(folder, kind, shapes, dtype, _random(shapes, f"{seed} {kind}"))
        shutil.copyfile(VOCABULARY / "text.json", folder / "text.json")
        words = json.loads((VOCABULARY / "text.json").read_text())["words"]
        table: Shapes = {"embedding.weight": (len(words), model.dit.text_dim)}
        write_safetensors(folder / "text.safetensors", table, dtype, _random(table, f"{seed} text"))
        prompts = read_json(VOCABULARY / "model.json")["example_prompts"]
        name = Path(destination).name
        write_json(
            folder / "model.json", {**WAN_SETTINGS, "name": name, "height": model.height, "width": model.width, "example_prompts": prompts}
        )
    return Path(destination)


def _random(shapes: Shapes, seed: str) -> Callable[[str], Tensor]:
    """A function that returns each tensor by its name. Each has its own random numbers, so the order of the requests does not matter."""

    def tensor(name: str) -> Tensor:
        key = hashlib.sha256(f"{seed} {name}".encode()).digest()
        shape = shapes[name]
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(key[:8], "little")))
        if name.endswith("modulation"):
            return noise.mul_(shape[-1] ** -0.5)
        if name.endswith(("gamma", "norm_q.weight", "norm_k.weight", "norm3.weight")):
            return noise.mul_(0.02).add_(1)
        if len(shape) < 2:
            return noise.mul_(0.02)
        return noise.mul_((noise.numel() / len(noise)) ** -0.5)

    return tensor
