"""Describes a checkpoint: its parts, their missing and unexpected tensors, their sizes, and the memory that they need; as JSON or as
text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lolrt.checkpoint.fit import misfits
from lolrt.checkpoint.formats import KINDS, TITLES, Component, choose
from lolrt.checkpoint.lora import LoRA
from lolrt.checkpoint.model_files import ModelFiles, find_files, read_component
from lolrt.checkpoint.names import Kind
from lolrt.checkpoint.packed import Packed, stored
from lolrt.checkpoint.recipes import Sampling, sampling
from lolrt.checkpoint.shapes import dit_config, expected_shapes, faults, taehv_config, text_encoder_config, vae_config
from lolrt.checkpoint.tokenizer import read_tokenizer
from lolrt.errors import CheckpointError, printable

MIB, GIB = 1 << 20, 1 << 30


@dataclass
class Part:
    """The description of a part of a model in a file."""

    file: str
    kind: Kind
    title: str
    """The name of the part, as text."""
    group: str
    """The entry of a training checkpoint that it comes from; "" if there is none."""
    used: bool
    """Whether it would be loaded, if the file has several parts of this kind."""
    tensors: int
    parameters: int
    stored: dict[str, int]
    """The bytes of each dtype."""
    packed: dict[str, int]
    """The number of weights in each packed format."""
    memory: dict[str, int]
    """The bytes of its weights in memory, for each dtype that models run in; empty for adapters, which are merged."""
    holds_tokenizer: bool
    config: dict[str, Any] = field(default_factory=dict)
    """Its sizes; {} if they cannot be found."""
    config_beside: bool = False
    """Whether the sizes come from a JSON file beside it; otherwise they come from its tensors."""
    adapted_layers: int = 0
    adapters: dict[str, int] = field(default_factory=dict)
    """The number of adapters of each kind."""
    wrong: list[str] = field(default_factory=list)
    checked: bool = False
    """Whether it was compared completely with the expected tensors. An adapter is compared if its DiT is there."""

    def lines(self) -> Iterator[str]:
        other = f"; used with --weights {self.group}" if self.kind == "dit" else "; not used"
        yield f"{self.file}: {self.title}" + ("" if self.used else other)
        yield from (f"    {name:10} {text}" for name, text in self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        dtypes = ", ".join(f"{size(count)} of {dtype}" for dtype, count in self.stored.items())
        yield "tensors", f"{self.tensors}, {self.parameters:,} parameters; {dtypes}"
        yield from (("packed", f"{count} in {form}") for form, count in self.packed.items())
        if self.adapted_layers:
            kinds = ", ".join(f"{count} x {kind}" for kind, count in self.adapters.items()) or "none"
            yield "adapters", f"of {self.adapted_layers} layers: {kinds}"
        if self.config:
            sizes = ", ".join(f"{name} {value}" for name, value in self.config.items())
            yield "config", f"{sizes}; {'from the JSON file beside it' if self.config_beside else 'read off the tensors'}"
        yield from (("wrong", clause) for clause in self.wrong)
        if self.checked and not self.wrong:
            adapter = self.kind == "lora"
            yield "complete", "every adapter fits a layer of the DiT" if adapter else "every tensor is there, in its shape, and no other"
        if self.holds_tokenizer:
            yield "tokenizer", "in this file, for where there is no tokenizer.json"
        if self.kind == "taehv":
            yield "used", "by --vae tiny; if it is LightX2V's LightTAE, which no tensor shows: by --vae light"
        if self.memory:
            yield "memory", ", ".join(f"{size(count)} in {dtype}" for dtype, count in self.memory.items())


@dataclass
class Description:
    """The description of everything at a path. Texts from files are not escaped."""

    parts: list[Part]
    sampling: Sampling | None
    """The sampling settings; None if there is no DiT."""
    warnings: list[str]
    tokenizers: list[str]
    vocabulary: str | None
    wrong: list[str]
    """The reasons why the parts cannot be used together."""
    missing: list[str]
    """The parts that a pipeline needs and that are missing."""

    def lines(self) -> Iterator[str]:
        """The description as lines of text, safe for a terminal."""
        return map(printable, self._lines())

    def _lines(self) -> Iterator[str]:
        for part in self.parts:
            yield from part.lines()
        if self.sampling:
            yield f"sampling   {self.sampling}"
        yield from (f"warning    {warning}" for warning in self.warnings)
        yield from (f"{folder}: tokenizer" for folder in self.tokenizers)
        if self.vocabulary:
            yield f"{self.vocabulary}: vocabulary"
        yield from (f"wrong      {clause}" for clause in self.wrong)
        if self.missing:
            yield f"not there, and needed for a pipeline: {', '.join(self.missing)}"
        elif not self.wrong:
            yield "nothing is missing for a pipeline"

    def plain(self) -> dict[str, Any]:
        """The description as a JSON object."""
        return asdict(self)


def inspect(path: str | Path, group: str | None = None) -> Description:
    """Describes everything at `path` (path and group: as in `lolrt.checkpoint.find_files`). Does not read values.

    Raises `lolrt.CheckpointError` if nothing is found, or a file is damaged.
    """
    files = find_files(path, group)
    parts = []
    for file in dict.fromkeys(file for kind in KINDS if (file := getattr(files, kind)) is not None):
        components = files.components(file)
        parts += [_part(component, component is _used(components, component.kind, files), files) for component in components]
    broken = dict.fromkeys(TITLES[part.kind] for part in parts if part.used and part.wrong)
    return Description(
        parts,
        sampling(files.settings, files.recipe) if files.dit else None,
        files.warnings,
        [str(folder) for folder in files.tokenizers],
        str(files.vocabulary) if files.vocabulary else None,
        [f"what is wrong with the {title} keeps it from being used" for title in broken] or [*_misfits(files)],
        [*_missing(files)],
    )


def _missing(files: ModelFiles) -> Iterator[str]:
    yield from (TITLES[kind] for kind in ("dit", "vae") if getattr(files, kind) is None)
    if not files.vocabulary and not files.text_encoder:
        yield TITLES["text_encoder"]
    elif files.text_encoder and not files.vocabulary and not _has_tokenizer(files):
        yield "its tokenizer"


def _misfits(files: ModelFiles) -> Iterator[str]:
    """The reasons why parts that are valid by themselves cannot be used together."""
    try:
        yield from misfits(files, (*KINDS,))
        if files.text_encoder and _has_tokenizer(files) and not files.vocabulary:
            read_tokenizer(read_component(files, "text_encoder"), files.tokenizer)
    except CheckpointError as error:
        yield str(error)


def _has_tokenizer(files: ModelFiles) -> bool:
    """Whether there is a tokenizer, in a folder or in the text encoder's own file."""
    encoder = _used(files.components(files.text_encoder), "text_encoder", files) if files.text_encoder else None
    return bool(files.tokenizers) or (encoder is not None and encoder.tokenizer is not None)


def _used(components: list[Component], kind: Kind, files: ModelFiles) -> Component | None:
    """The part that would be loaded, of several of one kind in a file, such as averaged weights and others."""
    try:
        return choose(components, kind, files.source, files.group if kind == "dit" else None, averaged=files.lora is None)
    except CheckpointError:
        return None


def _part(component: Component, used: bool, files: ModelFiles) -> Part:
    tensors = component.tensors.values()
    elements = sum(found.numel() for found in tensors)
    dtypes: Counter[str] = Counter()
    for tensor in stored(component.tensors).values():
        dtypes[_name(tensor)] += tensor.nbytes
    part = Part(
        str(component.source), component.kind, str(component), component.group, used, len(tensors), elements, dict(dtypes.most_common()),
        dict(Counter(found.form for found in tensors if isinstance(found, Packed)).most_common()),
        {} if component.kind == "lora" else {"bfloat16": 2 * elements, "float32": 4 * elements}, component.tokenizer is not None,
    )  # fmt: skip
    try:
        if component.kind == "lora":
            adapters = LoRA(component)
            part.adapted_layers, part.adapters = len(adapters.layers), adapters.kinds()
            if files.dit:
                adapters.check(expected_shapes(read_component(files, "dit", averaged=False)))
        else:
            part.config, part.config_beside = _config(component), bool(component.config)
            part.wrong = faults(expected_shapes(component), component.tensors)
        part.checked = component.kind != "lora" or files.dit is not None
    except CheckpointError as error:
        part.wrong.append(str(error))
    return part


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _config(component: Component) -> dict[str, Any]:
    of_kind: dict[str, Callable[[Component], Any]] = {
        "dit": dit_config, "vae": vae_config, "text_encoder": text_encoder_config, "taehv": taehv_config
    }  # fmt: skip
    config = asdict(of_kind[component.kind](component))
    shown = {name: value for name, value in config.items() if value is not None and "latents" not in name}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in shown.items()}


def size(count: float) -> str:
    """A number of bytes as text for people."""
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / MIB:.1f} MiB"
