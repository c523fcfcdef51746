"""What a checkpoint is, in words: its parts, what they lack or have too many of, their sizes, and the memory that they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt.checkpoint.fit import misfits
from lolrt.checkpoint.formats import KINDS, TITLES, Component, choose
from lolrt.checkpoint.lora import LoRA
from lolrt.checkpoint.model_files import ModelFiles, find_files, read_component
from lolrt.checkpoint.names import Kind
from lolrt.checkpoint.packed import Packed, stored
from lolrt.checkpoint.recipes import sampling
from lolrt.checkpoint.shapes import dit_config, expected_shapes, faults, taehv_config, text_encoder_config, vae_config
from lolrt.checkpoint.tokenizer import read_tokenizer
from lolrt.errors import CheckpointError, printable

MIB, GIB = 1 << 20, 1 << 30


def inspect(path: str | Path) -> Iterator[str]:
    """Lines about each part of a model that is found at `path` (as of `lolrt.checkpoint.find_files`); values are not looked at.

    Raises `lolrt.CheckpointError` where there is nothing, or a file is damaged.
    """
    return map(printable, _lines(find_files(path)))


def _lines(files: ModelFiles) -> Iterator[str]:
    broken = []
    for file in dict.fromkeys(file for kind in KINDS if (file := getattr(files, kind)) is not None):
        components = files.components(file)
        for component in components:
            used = component is _used(components, component.kind, files)
            yield f"{file}: {component}" + ("" if used else f'; used where a .toml file says weights = "{component.group}"')
            about = list(_about(component, files))
            yield from (f"    {line}" for line in about)
            if used and any(line.startswith("wrong") for line in about):
                broken.append(TITLES[component.kind])
    if files.dit:
        yield f"sampling   {sampling(files.settings, files.recipe)}"
        yield from (f"warning    {warning}" for warning in files.warnings)
    for title, folders in (("tokenizer", files.tokenizers), ("vocabulary", (files.vocabulary,))):
        yield from (f"{folder}: {title}" for folder in folders if folder)
    missing = [TITLES[kind] for kind in ("dit", "vae") if getattr(files, kind) is None]
    if not files.vocabulary:
        missing += [] if files.text_encoder else [TITLES["text_encoder"]]
        missing += ["its tokenizer"] if files.text_encoder and not files.tokenizers and not _holds_tokenizer(files) else []
    wrong = [f"what is wrong with the {title} keeps it from being used" for title in dict.fromkeys(broken)] or [*_misfits(files)]
    yield from (f"wrong      {clause}" for clause in wrong)
    if missing:
        yield f"not there, and needed for a pipeline: {', '.join(missing)}"
    elif not wrong:
        yield "nothing is missing for a pipeline"


def _misfits(files: ModelFiles) -> Iterator[str]:
    """What keeps parts that are sound by themselves from being used together."""
    try:
        yield from misfits(files, (*KINDS,))
        if files.text_encoder and (files.tokenizer or _holds_tokenizer(files)) and not files.vocabulary:
            read_tokenizer(read_component(files, "text_encoder"), files.tokenizer)
    except CheckpointError as error:
        yield str(error)


def _holds_tokenizer(files: ModelFiles) -> bool:
    """Whether there is a tokenizer in the text encoder's own file."""
    used = _used(files.components(files.text_encoder), "text_encoder", files) if files.text_encoder else None
    return used is not None and used.tokenizer is not None


def _used(components: list[Component], kind: Kind, files: ModelFiles) -> Component | None:
    """The one that would be loaded, of several of a kind in one file, such as averaged weights and others."""
    try:
        return choose(components, kind, files.source, files.group if kind == "dit" else None, averaged=files.lora is None)
    except CheckpointError:
        return None


def _about(component: Component, files: ModelFiles) -> Iterator[str]:
    elements = sum(found.numel() for found in component.tensors.values())
    yield f"tensors    {len(component.tensors)}, {elements:,} parameters; {_dtypes(stored(component.tensors).values())}"
    forms = Counter(found.form for found in component.tensors.values() if isinstance(found, Packed))
    yield from (f"packed     {count} in {form}" for form, count in forms.most_common())
    try:
        if component.kind == "lora":
            adapters = LoRA(component)
            yield f"adapters   of {len(adapters.layers)} layers: {adapters.describe()}"
            if files.dit:
                adapters.check(expected_shapes(read_component(files, "dit", averaged=False)))
                yield "complete   every adapter fits a layer of the DiT"
            return
        yield f"config     {_config(component)}; {'from the JSON file beside it' if component.config else 'read off the tensors'}"
        wrong = faults(expected_shapes(component), component.tensors)
        yield from (f"wrong      {clause}" for clause in wrong)
        if not wrong:
            yield "complete   every tensor is there, in its shape, and no other"
        if component.tokenizer:
            yield "tokenizer  in this file, for where there is no tokenizer.json"
        if component.kind == "taehv":
            yield "used       by --vae tiny; if it is LightX2V's LightTAE, which no tensor shows: by --vae light"
    except CheckpointError as error:
        yield f"wrong      {error}"
    yield f"memory     {size(2 * elements)} in bfloat16, {size(4 * elements)} in float32"


def _dtypes(tensors: Iterable[Tensor]) -> str:
    """How many bytes there are of each dtype."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.nbytes
    return ", ".join(f"{size(count)} of {str(dtype).removeprefix('torch.')}" for dtype, count in counts.most_common())


def _config(component: Component) -> str:
    of_kind: dict[str, Callable[[Component], Any]] = {
        "dit": dit_config, "vae": vae_config, "text_encoder": text_encoder_config, "taehv": taehv_config
    }  # fmt: skip
    config = asdict(of_kind[component.kind](component))
    shown = {name: value for name, value in config.items() if value is not None and "latents" not in name}
    return ", ".join(f"{name} {list(value) if isinstance(value, tuple) else value}" for name, value in shown.items())


def size(count: float) -> str:
    """A number of bytes, in words for people."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
