"""The folder layout of this project: one safetensors file for each part, and JSON files with all that a pipeline needs to know.

model.json (name, fps, height, width, sampler, example_prompts); config.json and diffusion_pytorch_model.safetensors (the DiT, as Wan
has it); vae_config.json and vae.safetensors; text_encoder.safetensors and tokenizer/, or text.json and text.safetensors;
taehv.safetensors. The tensors of a file are in the order of their use, with q, k and v side by side.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt.checkpoint.names import Kind
from lolrt.checkpoint.quantise import LINEAR, Form, in_8_bits
from lolrt.checkpoint.safetensors_file import write_safetensors, write_tensors
from lolrt.checkpoint.shapes import Shapes
from lolrt.errors import OutputError
from lolrt.files import own_partial, remove_partials, sync
from lolrt.models.dit import DiTConfig
from lolrt.models.vae.layers import VAEConfig

WEIGHTS: dict[Kind, str] = {
    "dit": "diffusion_pytorch_model.safetensors",
    "vae": "vae.safetensors",
    "text_encoder": "text_encoder.safetensors",
    "taehv": "taehv.safetensors",
}

# The defaults of a model of Wan's family.
WAN_SETTINGS: dict[str, Any] = {"fps": 16, "height": 480, "width": 832, "sampler": {}, "example_prompts": []}


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A context manager with a temporary folder to write to. On success it is synced and renamed to `destination`, otherwise it is
    removed. If two processes make the same folder, the first to finish wins. Leftovers of killed processes are removed."""
    if destination.exists():
        raise OutputError(f"{destination} is there already; choose another name, or remove it first")
    folder = own_partial(destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(destination)
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror}") from error
    try:
        yield folder
        for path in [*folder.rglob("*"), folder]:
            sync(path)
        folder.rename(destination)
        sync(destination.parent)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_config(folder: Path, config: DiTConfig | VAEConfig) -> None:
    """Writes the JSON config beside a DiT or a VAE."""
    if isinstance(config, DiTConfig):
        write_json(folder / "config.json", {"_class_name": "WanModel", "model_type": "t2v", **asdict(config)})
    else:
        write_json(folder / "vae_config.json", asdict(config))


def write_weights(
    folder: Path, kind: Kind, shapes: Shapes, dtype: torch.dtype, tensors: Callable[[str], Tensor], form: Form | None = None
) -> None:
    """Writes the weights of a part. tensors: returns each tensor by its name. form: as in `quantise.in_8_bits`."""
    if form is None or kind not in LINEAR:
        write_safetensors(folder / WEIGHTS[kind], shapes, dtype, tensors)
    else:
        write_tensors(folder / WEIGHTS[kind], *in_8_bits(form, kind, shapes, dtype, tensors))


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
