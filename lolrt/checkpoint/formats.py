"""Recognises the parts of models in a file from the names of its tensors, never from the name of the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from lolrt.checkpoint import names, spiece
from lolrt.checkpoint.adapter_names import adapters
from lolrt.checkpoint.assembly import assemble, mark_unscaled
from lolrt.checkpoint.names import Kind
from lolrt.checkpoint.packed import Weight
from lolrt.checkpoint.pickle_file import dictionaries
from lolrt.checkpoint.wrappers import Place, branches, ends_of, rank, told_apart, without_inner
from lolrt.errors import CheckpointError

KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES = {"dit": "DiT", "vae": "VAE", "text_encoder": "UMT5 text encoder", "taehv": "TAEHV", "lora": "LoRA of a DiT"}

# The kinds of parts, and the naming layouts that a file may use for each.
LAYOUTS: tuple[tuple[Kind, str], ...] = (
    ("taehv", "TAEHV"), ("lora", "its trainer"), ("dit", "Wan"), ("dit", "diffusers"), ("vae", "Wan"), ("vae", "diffusers"),
    ("text_encoder", "Wan"), ("text_encoder", "transformers"),
)  # fmt: skip
TAEHV = re.compile(r"(encoder|decoder)\.\d+\.((conv|skip|conv\.\d)\.)?(weight|bias)")

# Every part of a model has names that begin so. Without them it is another model with layers of the same names.
LAYERS = re.compile(r"(blocks|encoder|decoder)\.")


@dataclass(frozen=True)
class Component:
    """One part of a model in a file. Only names and shapes have been read."""

    kind: Kind
    layout: str
    """The naming layout of the file: "Wan", "diffusers", "transformers", "TAEHV" or "its trainer"."""
    group: str
    """The entry of a training checkpoint that it comes from, such as "generator_ema"; "" if there is none."""
    source: Path
    tensors: Mapping[str, Weight]
    """The tensors under Wan's names (those of TAEHV under its own, those of adapters as in `adapter_names.adapters`), mapped from the file
    in their dtype, or packed. Unknown names are unchanged."""
    wrapped: bool = False
    """Whether wrappers' names were removed from the tensors' names."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The unchanged JSON config beside the file; {} if there is none."""
    tokenizer: Callable[[], dict[str, Any]] | None = None
    """If the file also holds a tokenizer: returns its content in the format of tokenizer.json. Raises `lolrt.CheckpointError`."""

    def __str__(self) -> str:
        wrapped = ", wrappers removed" if self.wrapped else ""
        return f"{TITLES[self.kind]} with {self.layout}'s names{f', from {self.group!r}' if self.group else ''}{wrapped}"


def recognise(content: Mapping[Any, Any], source: Path) -> list[Component]:
    """All parts of models in a file. content: the dictionary read from it."""
    places: list[Place] = []
    found: list[Component] = []
    for keys, tensors in dictionaries(content):
        inner, twice = without_inner(tensors)
        tokenizers = {name: inner.pop(name) for name in [*inner] if name.rpartition(".")[2] == spiece.NAME}
        for path, inside, (kind, layout) in branches(assemble(inner, source), _known):
            if twice:
                raise _unclear(source, *twice[0])
            bare = _unwrapped(kind, layout, _encoder(inside), source)
            wrapped = bool(path) or not inner.keys() <= tensors.keys() or bare.keys() != _encoder(inside).keys()
            weights = _under_wan_names(kind, layout, bare, source)
            mark_unscaled(weights.values())
            places.append(Place(keys, path))
            tokenizer = _tokenizer(tokenizers, path, source) if kind == "text_encoder" else None
            found.append(Component(kind, layout, "", source, weights, wrapped, tokenizer=tokenizer))
    groups: dict[int, str] = {}
    for kind in KINDS:
        numbers = [i for i, component in enumerate(found) if component.kind == kind]
        groups |= zip(numbers, told_apart([places[i] for i in numbers]), strict=True)
    return [replace(component, group=groups[i]) for i, component in enumerate(found)]


def _tokenizer(models: Mapping[str, Weight], path: tuple[str, ...], source: Path) -> Callable[[], dict[str, Any]] | None:
    """The tokenizer of the text encoder at `path`: of all tensors with tokenizers, the nearest one above it."""
    for depth in range(len(path), -1, -1):
        model = models.get(".".join((*path[:depth], spiece.NAME)))
        if isinstance(model, Tensor):
            return partial(spiece.tokenizer_of, model, source)
    return None


def _unclear(source: Path, name: str, other: str) -> CheckpointError:
    return CheckpointError(f"{source} has {name} twice, as {other} too; it is unclear which one counts")


def _unwrapped(kind: Kind, layout: str, weights: dict[str, Weight], source: Path) -> dict[str, Weight]:
    """The weights of a part of a model, with wrapper prefixes removed that only some names have."""
    unknown = weights.keys() - _names_of(kind, layout, weights)
    ends = {end for name in unknown for end in ends_of(name)}
    known = _names_of(kind, layout, {*weights, *ends}) & ends
    bare: dict[str, Weight] = {}
    for name, weight in weights.items():
        short = next((end for end in ends_of(name) if end in known), name) if name in unknown else name
        if bare.setdefault(short, weight) is not weight:
            raise _unclear(source, short, name)
    return bare


def _encoder(weights: dict[str, Weight]) -> dict[str, Weight]:
    """The weights of the encoder in a whole UMT5 of encoder and decoder."""
    if not any(name.startswith("decoder.block.0.layer.1.EncDecAttention.") for name in weights):
        return weights
    return {name: weight for name, weight in weights.items() if not name.startswith(("decoder.", "lm_head."))}


def _known(weights: dict[str, Weight]) -> tuple[Kind, str] | None:
    """The kind and layout that know the most of these names, at least half of them; None if there is none."""
    weights = _encoder(weights)
    known = {layout: _names_of(*layout, weights) for layout in LAYOUTS}
    best = max(known, key=lambda layout: len(known[layout]))
    fits = 2 * len(known[best]) >= len(weights) and (best[0] == "lora" or any(map(LAYERS.match, known[best])))
    return best if fits else None


def _names_of(kind: Kind, layout: str, among: Collection[str]) -> Set[str]:
    """The names that a layout knows among these."""
    if kind == "taehv":
        return {name for name in among if TAEHV.fullmatch(name)}
    if kind == "lora":
        return adapters(among).keys()
    return (names.to_diffusers(kind, among) if layout == "Wan" else names.to_wan(kind, among)).keys()


def _under_wan_names(kind: Kind, layout: str, weights: dict[str, Weight], source: Path) -> dict[str, Weight]:
    if layout in ("Wan", "TAEHV"):
        return weights
    renamed: dict[str, Weight] = {}
    table = adapters(weights) if kind == "lora" else names.to_wan(kind, weights)
    for name, weight in weights.items():
        wan = table.get(name, name)
        if wan in renamed and not (kind == "text_encoder" and wan == "token_embedding.weight"):  # tied: one tensor, two names
            raise _unclear(source, wan, name)
        renamed.setdefault(wan, weight)
    return renamed


def choose(components: list[Component], kind: Kind, source: Path, group: str | None = None, averaged: bool = True) -> Component:
    """Chooses the part of this kind to use: the one of `group`, otherwise the first by `wrappers.rank`.

    Raises `lolrt.CheckpointError`, which lists the parts that exist.
    """
    if group is None:
        ranks = {c.group: order for c in components if c.kind == kind and (order := rank(c.group, averaged)) is not None}
        groups = [name for name, order in ranks.items() if order == min(ranks.values())]
    else:
        groups = [group]
    usable = [component for component in components if component.kind == kind and component.group in groups]
    if len(usable) == 1:
        return usable[0]
    there = "; ".join(map(str, components)) or "nothing that is known here"
    wanted = f"expected a {TITLES[kind]}" + (f" in {group!r}" if group else "")
    if usable:
        wanted = f"say which to use, with --weights {usable[0].group}, or weights = {usable[0].group!r} in a .toml file"
    raise CheckpointError(f"{source} holds {there}; {wanted} (`lolrt inspect` shows what a file holds)")
