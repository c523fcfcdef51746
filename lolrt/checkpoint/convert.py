"""Converts any known checkpoint to one folder that loads fast (`lolrt.checkpoint.folder`)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from lolrt.checkpoint.folder import WAN_SETTINGS, WEIGHTS, new_folder, write_config, write_json, write_weights
from lolrt.checkpoint.formats import KINDS, Component
from lolrt.checkpoint.load import read_dit, weight
from lolrt.checkpoint.lora import Adapters
from lolrt.checkpoint.mapped import check_whole_file
from lolrt.checkpoint.model_files import TOKENIZER, ModelFiles, find_files, read_component
from lolrt.checkpoint.names import Kind
from lolrt.checkpoint.packed import Packed, give_back
from lolrt.checkpoint.quantise import Form, is_quantised
from lolrt.checkpoint.safetensors_file import write_safetensors
from lolrt.checkpoint.shapes import WEIGHT_DTYPES, Shapes, dit_config, expected_shapes, faults, read_json, vae_config
from lolrt.checkpoint.tokenizer import read_tokenizer
from lolrt.checkpoint.vocabulary import ROWS, read_rows
from lolrt.errors import CheckpointError, OutputError
from lolrt.models.dit import DiTConfig
from lolrt.models.vae.layers import VAEConfig

CONFIGS: dict[Kind, Callable[[Component], DiTConfig | VAEConfig]] = {"dit": dit_config, "vae": vae_config}


def convert(
    source: str | Path | ModelFiles,
    destination: str | Path,
    dtype: torch.dtype | None = None,
    group: str | None = None,
    form: Form | None = None,
) -> Path:
    """Writes all parts of a model in `source` to the new folder `destination`, with adapters merged. Returns the folder.

    dtype: the dtype of the weights; by default each part keeps its own (the widest in its file; bfloat16 for weights of 8 bits or less; a
    merged DiT has the DiT's). group: as in `lolrt.load_dit`. form: "fp8_scaled" or "int8" quantises the linear layers of DiT and text
    encoder. Only one tensor at a time is in memory.
    Raises `lolrt.CheckpointError` if there are no weights, if there are adapters without their DiT, and for everything that
    `lolrt.load_dit` refuses; `lolrt.OutputError` if the folder exists already or cannot be written. In these cases nothing is left behind.
    """
    files, destination = find_files(source, group), Path(destination)
    if files.source.is_dir() and files.source.resolve() in destination.resolve().parents:
        raise OutputError(f"{destination} lies in {files.source}, which would then hold two models; choose a place outside of it")
    if files.lora and not files.dit:
        raise CheckpointError(f"{files.source} has adapters ({files.lora}) and not the DiT that they are for; name both in a .toml file")
    if not any(getattr(files, kind) for kind in KINDS):
        raise CheckpointError(f"{files.source} holds no weights that are known here; nothing was written")
    with new_folder(destination) as folder:
        for kind in WEIGHTS:
            if getattr(files, kind):
                part, adapters = read_dit(files) if kind == "dit" else (read_component(files, kind), None)
                shapes, own = expected_shapes(part), dtype or own_dtype(part)
                if kind in CONFIGS:
                    write_config(folder, CONFIGS[kind](part))
                write_weights(folder, kind, shapes, own, _checked(part, shapes, own, adapters, form), form)
        if files.tokenizer:
            (folder / "tokenizer").mkdir()
            _copy_json(files.tokenizer / TOKENIZER, folder / "tokenizer" / TOKENIZER, "model")
        elif files.text_encoder and (encoder := read_component(files, "text_encoder")).tokenizer:
            (folder / "tokenizer").mkdir()
            write_json(folder / "tokenizer" / TOKENIZER, read_tokenizer(encoder, None))
        if files.vocabulary:
            _copy_json(files.vocabulary / "text.json", folder / "text.json", "words")
            rows = read_rows(files.vocabulary)
            write_safetensors(folder / "text.safetensors", {ROWS: tuple(rows.shape)}, rows.dtype, lambda _: rows)
        if files.dit:
            write_json(folder / "model.json", {"name": destination.name, **WAN_SETTINGS, **files.settings})
    return destination


def _copy_json(source: Path, destination: Path, field: str) -> None:
    """Copies a JSON file, if it has this field. The check is there because the file may be a link to anything, and people publish the
    result."""
    if field not in read_json(source):
        raise CheckpointError(f"{source} lacks {field!r}; fetch the file again")
    shutil.copyfile(source, destination)


def own_dtype(component: Component) -> torch.dtype:
    """The narrowest dtype of weights that holds all tensors of a part; bfloat16 if some are packed."""
    if any(isinstance(found, Packed) for found in component.tensors.values()):
        return torch.bfloat16
    dtypes = {found.dtype for found in component.tensors.values() if isinstance(found, Tensor)} & set(WEIGHT_DTYPES)
    return reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def _checked(component: Component, shapes: Shapes, dtype: torch.dtype, lora: Adapters | None, form: Form | None) -> Callable[[str], Tensor]:
    """A function that returns the tensors of a part by name, after the same checks as in loading; in this dtype, or in float32 if they are
    to be quantised."""
    if wrong := faults(shapes, component.tensors):
        raise CheckpointError(f"{component.source} does not hold this model's tensors; {'; '.join(wrong)}")
    if lora:
        lora.check(shapes)

    def tensor(name: str) -> Tensor:
        exact = form is not None and is_quantised(component.kind, name)
        converted = weight(component.tensors[name], torch.float32 if exact else dtype, name, lora)
        check_whole_file(component.source)
        if converted is None:
            raise CheckpointError(f"{component.source} has values that are not finite, in {name}; fetch the file again")
        give_back([component.tensors[name]])
        return converted

    return tensor
