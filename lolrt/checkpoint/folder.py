"""The layout that this project writes: one folder, a safetensors file a part, with all that a pipeline needs to know in JSON.

model.json (name, fps, height, width, sampler, example_prompts); config.json and diffusion_pytorch_model.safetensors (the DiT, as Wan
has it); vae_config.json and vae.safetensors; text_encoder.safetensors and tokenizer/, or text.json and text.safetensors;
taehv.safetensors. Files are in the order in which they are used, q, k and v side by side: loaded in their dtype, nothing is copied.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt.checkpoint.safetensors_file import write_safetensors
from lolrt.checkpoint.shapes import Shapes, dit_shapes, vae_shapes
from lolrt.errors import OutputError
from lolrt.files import sync
from lolrt.models.dit import DiTConfig
from lolrt.models.vae.layers import VAEConfig

WEIGHTS = {
    "dit": "diffusion_pytorch_model.safetensors",
    "vae": "vae.safetensors",
    "text_encoder": "text_encoder.safetensors",
    "taehv": "taehv.safetensors",
}

# What a model of Wan's family is made for, where nothing says otherwise.
WAN_SETTINGS: dict[str, Any] = {"fps": 16, "height": 480, "width": 832, "sampler": {}, "example_prompts": []}


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder of this process's own to write to, synced, which becomes `destination` when all went well and is not there at all
    otherwise. Of two processes that make the same one, the first to end has it."""
    if destination.exists():
        raise OutputError(f"{destination} is there already; choose another name, or remove it first")
    partial = destination.with_name(f"{destination.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror} ({partial})") from error
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            if not path.is_symlink():
                sync(path)
        partial.rename(destination)
        sync(destination.parent)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {_reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reason(error: OSError) -> str:
    """Why a file could not be written; of a tree of files that could not be copied, the first one's reason, which is text already."""
    if isinstance(error, shutil.Error):
        source, _, why = error.args[0][0]
        return f"{source} could not be copied ({why})"
    return error.strerror or str(error)


def write_dit(folder: Path, config: DiTConfig, dtype: torch.dtype, tensors: Callable[[str], Tensor]) -> None:
    """Writes config and weights of a DiT; `tensors` gives each tensor by its name, of the shape that the config says."""
    write_json(folder / "config.json", {"_class_name": "WanModel", "model_type": "t2v", **asdict(config)})
    write_weights(folder, "dit", dit_shapes(config), dtype, tensors)


def write_vae(folder: Path, config: VAEConfig, dtype: torch.dtype, tensors: Callable[[str], Tensor]) -> None:
    write_json(folder / "vae_config.json", asdict(config))
    write_weights(folder, "vae", vae_shapes(config), dtype, tensors)


def write_weights(folder: Path, kind: str, shapes: Shapes, dtype: torch.dtype, tensors: Callable[[str], Tensor]) -> None:
    write_safetensors(folder / WEIGHTS[kind], shapes, dtype, tensors)


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
