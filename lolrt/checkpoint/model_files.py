"""Finds the files of a model, and the part that each holds: in a folder of any known layout, in one file, or at the paths in a small TOML
file."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lolrt.checkpoint import formats
from lolrt.checkpoint.assembly import with_header
from lolrt.checkpoint.foreign import open_file
from lolrt.checkpoint.formats import Component, recognise
from lolrt.checkpoint.gguf_file import MAGIC, read_gguf
from lolrt.checkpoint.gguf_tokenizer import has_tokenizer, tokenizer_of
from lolrt.checkpoint.names import Kind
from lolrt.checkpoint.pickle_file import read_pickle
from lolrt.checkpoint.recipes import RECIPES, WHOLE_CLIPS, Recipe, applied, recipe_of
from lolrt.checkpoint.safetensors_file import read_all, read_metadata
from lolrt.checkpoint.shapes import read_json, read_text
from lolrt.errors import CheckpointError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

INDEX = (".safetensors.index.json", ".bin.index.json")
SUFFIXES = (".safetensors", ".pt", ".pth", ".gguf", INDEX[0])
HUB_PICKLES = re.compile(r"(diffusion_)?pytorch_model.*\.bin(\.index\.json)?")  # the names of transformers' and diffusers' pickles
MODEL = "model.json"
TOKENIZER = "tokenizer.json"
VOCABULARY = "text.json"  # its rows are in text.safetensors
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(?P<suffix>safetensors|bin)")

ADAPTER_METADATA = "lora_adapter_metadata"

# The settings of a whole model: the type of each, and a check of its value.
SETTINGS: dict[str, tuple[type, Callable[[Any], bool]]] = {
    "name": (str, bool),
    "fps": (int, lambda fps: 0 < fps <= 1000),
    "height": (int, lambda pixels: 0 < pixels <= 1 << 14),
    "width": (int, lambda pixels: 0 < pixels <= 1 << 14),
    "sampler": (dict, lambda sampler: True),
    "example_prompts": (list, lambda prompts: all(isinstance(prompt, str) for prompt in prompts)),
    "chunk_frames": (int, lambda frames: 0 < frames <= 1000),
    "rope": (dict, lambda rope: True),
    "recipe": (str, bool),
}

# For each kind of part: the JSON files that may describe it, and fields that identify a config of this kind.
CONFIGS: dict[Kind, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dit": (("config.json",), ("d_model", "z_dim")),  # these, however, show that it is a config of another kind
    "vae": (("vae_config.json", "config.json"), ("z_dim",)),
    "text_encoder": (("config.json",), ("d_model",)),
    "lora": (("adapter_config.json",), ()),
    "taehv": ((), ()),
}


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model; None for a part that does not exist. Each path is a file of weights, or the index of weights in several files.

    Functions that take the path of a model take this object as well, so that a folder is searched, and a file recognised, only once.
    """

    source: Path
    dit: Path | None = None
    lora: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    taehv: Path | None = None
    tokenizers: tuple[Path, ...] = ()
    """The folders with a tokenizer.json."""
    vocabulary: Path | None = None
    """A folder with text.json and text.safetensors, the text side of small models."""
    group: str | None = None
    """Which weights of a training checkpoint to use, such as "generator"; None: the default choice."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The settings of the whole model, with the names in `SETTINGS` (from model.json, or TOML; otherwise from the recipe)."""
    recipe: Recipe | None = None
    """How the DiT was trained and is sampled, if its settings or the names under which it is published say so."""
    _recognised: dict[Path, list[Component]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tokenizer(self) -> Path | None:
        """The folder of UMT5's tokenizer; None if the encoder's file should hold it.

        Raises `lolrt.CheckpointError` if there is more than one candidate.
        """
        if len(self.tokenizers) > 1:
            raise CheckpointError(
                f"{self.source} holds more than one tokenizer: {', '.join(map(str, self.tokenizers))}; write a .toml file with a line for "
                'each part, tokenizer = "..." among them'
            )
        return next(iter(self.tokenizers), None)

    @property
    def warnings(self) -> list[str]:
        """Warnings: properties of the model that allow its use, but probably give poor results."""
        recipe = self.recipe
        return [f"{self.dit}: {recipe.title} {WHOLE_CLIPS.format(source=recipe.source)}"] if recipe and not recipe.causal else []

    def components(self, file: Path) -> list[Component]:
        """All parts of models in one of these files; see `components_of`."""
        if file not in self._recognised:
            self._recognised[file] = components_of(file)
        return self._recognised[file]


def find_files(model: str | Path | ModelFiles, group: str | None = None) -> ModelFiles:
    """Finds the files of a model: in a folder (of Wan, diffusers or this project), a file of weights, or a TOML file
    (docs/checkpoints.md). A `ModelFiles` is returned as it is. group: which weights of a training checkpoint are the DiT; it overrides the
    model's own choice.

    Raises `lolrt.CheckpointError` if nothing is found, if a file is damaged or does not hold the part that it is named as, if two files
    are of the same kind, and if there is no such group.
    """
    files = model if isinstance(model, ModelFiles) else _with_recipe(_found(Path(model)))
    if group is None:
        return files
    read_component(files, "dit", group)
    return replace(files, group=group)


def _with_recipe(files: ModelFiles) -> ModelFiles:
    """The same files with the recipe of the DiT: the one that the settings name, or else that of its names, unless there is a model.json,
    which would say everything."""
    settings = dict(files.settings)
    named = settings.pop("recipe", None)
    if named is not None and named not in RECIPES:
        raise CheckpointError(f"{files.source}: recipe is {named[:60]!r}; expected one of {', '.join(RECIPES)}")
    if files.dit is None or (named is None and (files.source / MODEL).is_file()):
        return replace(files, settings=settings)
    parts = [component for component in files.components(files.dit) if component.kind == "dit"]
    if named is not None:
        recipe = replace(RECIPES[named], source="its settings say")
    else:
        index = files.dit.parent.parent / "model_index.json"
        pipeline = read_json(index).get("_class_name") if index.is_file() else None
        known = recipe_of(files.dit, pipeline, parts[0].config.get("_class_name"))
        if known is None:
            return files
        recipe = known
    group = files.group or (recipe.weights if recipe.weights in {part.group for part in parts} else None)
    return replace(files, group=group, settings=applied(recipe, settings), recipe=recipe)


def _found(path: Path) -> ModelFiles:
    if path.suffix == ".toml":
        return _from_toml(path)
    if os.path.isdir(path):  # Path's methods raise for names that are too long and for folders without permission
        return _in_folder(path)
    if not os.path.exists(path):
        raise CheckpointError(
            f"{path} does not exist; expected a folder, a .safetensors, .pt or .pth file, or a .toml that names the parts"
        )
    components = components_of(path)
    if not components:
        raise CheckpointError(f"{path} holds no part of a model that is known here, under names such as {_some_names(path)}{_kind(path)}")
    found: dict[str, Any] = {component.kind: path for component in components}
    return ModelFiles(path, **found, _recognised={path: components})


def _from_toml(path: Path) -> ModelFiles:
    try:
        values = tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable TOML: {error}") from error
    names = ("dit", "lora", "vae", "text_encoder", "taehv", "tokenizer", "vocabulary")
    unknown = values.keys() - {*names, *SETTINGS, "weights"}
    if unknown:
        raise CheckpointError(f"{path} names {', '.join(sorted(unknown))}; expected some of {', '.join((*names, 'weights', *SETTINGS))}")
    if not all(isinstance(values[name], str) for name in (*names, "weights") if name in values):
        raise CheckpointError(f"{path}: {', '.join(names)} and weights are texts in quotes")
    found: dict[str, Any] = {name: path.parent / values[name] for name in names if name in values}
    missing = [str(file) for file in found.values() if not os.path.exists(file)]
    if missing:
        raise CheckpointError(f"{path} names {', '.join(missing)}, which is not there")
    recognised: dict[Path, list[Component]] = {}
    for kind in formats.KINDS:
        if kind in found and found[kind].is_dir():
            inside = _in_folder(found[kind])
            recognised |= inside._recognised
            found[kind] = getattr(inside, kind)
            if found[kind] is None:
                raise CheckpointError(f"{inside.source} holds no {formats.TITLES[kind]}")
        elif kind in found:
            file = found[kind]
            recognised[file] = recognised.get(file) or components_of(file)
            formats.choose(recognised[file], kind, file, values.get("weights") if kind == "dit" else None)
    for name, file in (("tokenizer", TOKENIZER), ("vocabulary", VOCABULARY)):
        if name in found and not (found[name] / file).is_file():
            raise CheckpointError(f"{path}: {name} is {found[name]}; expected a folder with {file}")
    settings = _settings({name: values[name] for name in SETTINGS if name in values}, path)
    tokenizers = (found.pop("tokenizer"),) if "tokenizer" in found else ()
    return ModelFiles(path, **found, tokenizers=tokenizers, group=values.get("weights"), settings=settings, _recognised=recognised)


def _settings(values: dict[str, Any], source: Path) -> dict[str, Any]:
    """The settings, after a check of their names, types and ranges."""
    if unknown := values.keys() - SETTINGS.keys():
        raise CheckpointError(f"{source} has {', '.join(sorted(unknown))}, which is no setting; a newer lolrt may know it")
    for name, value in values.items():
        kind, fits = SETTINGS[name]
        if not isinstance(value, kind) or isinstance(value, bool) or not fits(value):
            raise CheckpointError(f"{source}: {name} is {str(value)[:60]!r}, which makes no sense there")
    return values


def _in_folder(folder: Path) -> ModelFiles:
    found: dict[str, Any] = {}
    recognised: dict[Path, list[Component]] = {}
    for path in _weights(folder):
        recognised[path] = components_of(path)
        for kind in dict.fromkeys(component.kind for component in recognised[path]):
            if kind in found:
                raise CheckpointError(
                    f"{folder} holds more than one {formats.TITLES[kind]}: {found[kind]} and {path}; name the one to use, "
                    f'or write a .toml file with a line {kind} = "..." for each part'
                )
            found[kind] = path
    tokenizers = sorted(path.parent for path in folder.glob(f"**/{TOKENIZER}") if path.is_file() and not _is_hidden(path, folder))
    return ModelFiles(
        folder,
        **found,
        tokenizers=tuple(tokenizers),
        vocabulary=folder if (folder / VOCABULARY).is_file() else None,
        settings=_settings(read_json(folder / MODEL), folder / MODEL) if (folder / MODEL).is_file() else {},
        _recognised=recognised,
    )


def _weights(folder: Path) -> Iterator[Path]:
    """The files of weights in a folder and its direct subfolders. An index stands for the files that it lists.

    Hidden files are left out: systems and editors keep them beside other files. transformers' and diffusers' pickles count only if there
    are no safetensors beside them, because hubs keep the same weights in both.
    """
    everything = sorted(
        path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file() and not _is_hidden(path, folder)
    )
    safe = {path.parent for path in everything if path.suffix == ".safetensors"}
    files = [path for path in everything if path.name.endswith(SUFFIXES) or (HUB_PICKLES.fullmatch(path.name) and path.parent not in safe)]
    listed = {path.parent / name for path in files if path.name.endswith(INDEX) for name in _weight_map(path).values()}
    words = {path.with_suffix(".safetensors") for path in everything if path.name == VOCABULARY}
    return (path for path in files if path not in listed | words)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def components_of(path: Path) -> list[Component]:
    """All parts of models in a file, with the configs beside it. Other contents of the file are ignored."""
    shard = SHARD.fullmatch(path.name)
    if shard and int(shard["count"]) > 1:
        raise CheckpointError(
            f"{path} is shard {int(shard['number'])} of {int(shard['count'])}, and no index beside it lists it; fetch all of them, and "
            f"{shard['stem']}.{shard['suffix']}.index.json, and name that or the folder"
        )
    found = recognise(_read(path), path)
    return [replace(part, config=_config(part.kind, path), tokenizer=part.tokenizer or _tokenizer_in(path, part.kind)) for part in found]


def _tokenizer_in(path: Path, kind: Kind) -> Callable[[], dict[str, Any]] | None:
    """For a GGUF file of a text encoder that also holds the tokenizer: the function that returns it in the format of tokenizer.json."""
    if kind != "text_encoder" or not _is_gguf(path) or not has_tokenizer(fields := read_gguf(path).fields):
        return None
    return partial(tokenizer_of, fields, path)


def _read(path: Path) -> Mapping[Any, Any]:
    if path.name.endswith(INDEX):
        return _read_index(path)
    content, metadata = _read_file(path)
    return with_header(content, metadata, path)


def _read_file(path: Path) -> tuple[Mapping[Any, Any], Mapping[str, str]]:
    """The contents of a file, and its metadata."""
    if _is_safetensors(path):
        return read_all(path)
    return (read_gguf(path).tensors if _is_gguf(path) else read_pickle(path)), {}


def _some_names(path: Path) -> str:
    content = _read(path)
    inner = [f"{group}: {name}" for group, values in content.items() if isinstance(values, dict) for name in list(values)[:3]]
    return ", ".join([*inner, *map(str, content)][:5])[:300] or "none"


def _kind(path: Path) -> str:
    """The architecture that a GGUF file names."""
    if not _is_gguf(path):
        return ""
    return f": it is a GGUF file of architecture {read_gguf(path).architecture[:60]!r}"


def _is_safetensors(path: Path) -> bool:
    """Whether a file is in the safetensors format, by its content: a pickle is a zip archive or begins with an opcode; the header of
    safetensors is JSON."""
    return path.suffix == ".safetensors" or _beginning(path)[8:] == b"{"


def _is_gguf(path: Path) -> bool:
    """Whether a file is in the GGUF format, by its content."""
    return not path.name.endswith((".safetensors", *INDEX)) and _beginning(path).startswith(MAGIC)


def _beginning(path: Path) -> bytes:
    try:
        with open_file(path) as file:
            return file.read(9)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist, and the model cannot be read without it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _weight_map(index: Path) -> dict[str, str]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) and _is_plain(name) for name in table.values()):
        raise CheckpointError(f"{index} has no weight_map of tensors to files beside it; fetch it again")
    return table


def _is_plain(name: str) -> bool:
    """Whether a name is a plain file name, in the same folder."""
    return Path(name).name == name and name not in ("", "..") and name.isprintable()


def weight_files(path: Path) -> list[Path]:
    """The files that hold the tensors: the file itself; or the index, and the files that it lists."""
    return [path, *(path.parent / name for name in sorted(set(_weight_map(path).values())))] if path.name.endswith(INDEX) else [path]


def _read_index(index: Path) -> dict[str, Tensor]:
    table = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(table.values())):
        shard, metadata = _read_file(index.parent / name)
        listed = {tensor for tensor, file in table.items() if file == name}
        if listed != shard.keys():
            differ = ", ".join(sorted(map(str, listed ^ shard.keys())))
            raise CheckpointError(f"{index.parent / name} and {index.name} differ in {differ}; they belong to different models")
        tensors |= with_header(shard, metadata, index.parent / name)
    return tensors


def _config(kind: Kind, file: Path) -> dict[str, Any]:
    """The config beside a file of weights; for adapters without one, the config that diffusers writes into the file."""
    names, marks = CONFIGS[kind]
    for path in (file.parent / name for name in names):
        if path.is_file():
            values = read_json(path)
            theirs = any(mark in values for mark in marks)
            if kind == "lora" or path.name == "vae_config.json" or (theirs is not (kind == "dit")):
                return values
    if kind == "lora" and _is_safetensors(file) and (text := read_metadata(file).get(ADAPTER_METADATA)):
        return _adapter_config(text, file)
    return {}


def _adapter_config(text: str, file: Path) -> dict[str, Any]:
    """The config in the file's metadata. Fields of a part of the pipeline have the part's name as prefix, "transformer.lora_alpha"."""
    try:
        values = json.loads(text)
        return {name.removeprefix("transformer."): value for name, value in values.items()}
    except (ValueError, RecursionError, AttributeError) as error:
        raise CheckpointError(f"{file} has {ADAPTER_METADATA} that are no JSON object; fetch it again") from error


def read_component(path: str | Path | ModelFiles, kind: Kind, group: str | None = None, averaged: bool = True) -> Component:
    """One part of a model, its tensors under Wan's names, mapped and not yet read.

    path: as in `find_files`. group: which weights of a training checkpoint, such as "generator"; by default the averaged ones. With
    averaged=False these are used only if there are no others.
    Raises `lolrt.CheckpointError` when there is no such part, or more than one.
    """
    files = find_files(path)
    file: Path | None = getattr(files, kind)
    if file is None:
        there = ", ".join(formats.TITLES[other] for other in formats.KINDS if getattr(files, other) is not None)
        raise CheckpointError(f"{files.source} holds no {formats.TITLES[kind]}; it holds {there or 'nothing that is known here'}")
    return formats.choose(files.components(file), kind, file, group or (files.group if kind == "dit" else None), averaged)
