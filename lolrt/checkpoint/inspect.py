"""What a checkpoint is, in words: its parts, what they lack or have too many of, their sizes, and the memory that they take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt.checkpoint.formats import KINDS, TITLES, Component, choose
from lolrt.checkpoint.lora import LoRA
from lolrt.checkpoint.model_files import ModelFiles, find_files, read_component
from lolrt.checkpoint.names import Kind
from lolrt.checkpoint.shapes import dit_config, expected_shapes, faults, taehv_config, text_encoder_config, vae_config
from lolrt.errors import CheckpointError, printable

MIB, GIB = 1 << 20, 1 << 30


def inspect(path: str | Path) -> Iterator[str]:
    """Lines about each part of a model that is found at `path` (as of `lolrt.checkpoint.find_files`); values are not looked at.

    Raises `lolrt.CheckpointError` where there is nothing, or a file is damaged.
    """
    files = find_files(path)
    for file in dict.fromkeys(file for kind in KINDS if (file := getattr(files, kind)) is not None):
        components = files.components(file)
        for component in components:
            used = component is _used(components, component.kind, files)
            yield printable(f"{file}: {component}" + ("" if used else f'; used where a .toml file says weights = "{component.group}"'))
            yield from (f"    {printable(line)}" for line in _about(component, files))
    for title, folder in (("tokenizer", files.tokenizer), ("vocabulary", files.vocabulary)):
        if folder:
            yield f"{folder}: {title}"
    missing = [TITLES[kind] for kind in ("dit", "vae") if getattr(files, kind) is None]
    missing += [] if files.text_encoder or files.vocabulary else [TITLES["text_encoder"]]
    yield "nothing is missing for a pipeline" if not missing else f"not there, and needed for a pipeline: {', '.join(missing)}"


def _used(components: list[Component], kind: Kind, files: ModelFiles) -> Component | None:
    """The one that would be loaded, of several of a kind in one file, such as averaged weights and others."""
    try:
        return choose(components, kind, files.source, files.group if kind == "dit" else None, averaged=files.lora is None)
    except CheckpointError:
        return None


def _about(component: Component, files: ModelFiles) -> Iterator[str]:
    tensors = component.tensors.values()
    elements = sum(tensor.numel() for tensor in tensors)
    yield f"tensors    {len(component.tensors)}, {elements:,} parameters; {_dtypes(list(tensors))}"
    try:
        if component.kind == "lora":
            adapters = LoRA(component)
            yield f"adapters   of {len(adapters.layers)} layers, {adapters.describe()}"
            if files.dit:
                adapters.check(expected_shapes(read_component(files, "dit", averaged=False)))
                yield "complete   every adapter fits a layer of the DiT"
            return
        yield f"config     {_config(component)}; {'from the JSON file beside it' if component.config else 'read off the tensors'}"
        wrong = faults(expected_shapes(component), component.tensors)
        yield from (f"wrong      {clause}" for clause in wrong)
        if not wrong:
            yield "complete   every tensor is there, in its shape, and no other"
    except CheckpointError as error:
        yield f"wrong      {error}"
    yield f"memory     {size(2 * elements)} in bfloat16, {size(4 * elements)} in float32"


def _dtypes(tensors: list[Tensor]) -> str:
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
    shown = {name: value for name, value in config.items() if value is not None and not name.startswith("latents_")}
    return ", ".join(f"{name} {list(value) if isinstance(value, tuple) else value}" for name, value in shown.items())


def size(count: float) -> str:
    """A number of bytes, in words for people."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
