"""What a file holds, recognised from the names of its tensors: never from its own name."""

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

# Kinds, and whose names a file may use for each.
LAYOUTS: tuple[tuple[Kind, str], ...] = (
    ("taehv", "TAEHV"), ("lora", "its trainer"), ("dit", "Wan"), ("dit", "diffusers"), ("vae", "Wan"), ("vae", "diffusers"),
    ("text_encoder", "Wan"), ("text_encoder", "transformers"),
)  # fmt: skip
TAEHV = re.compile(r"(encoder|decoder)\.\d+\.((conv|skip|conv\.\d)\.)?(weight|bias)")

# Without names that begin so, nothing is a part of a model: other models have layers of the same names.
LAYERS = re.compile(r"(blocks|encoder|decoder)\.")


@dataclass(frozen=True)
class Component:
    """One part of a model, as a file has it: nothing but names and shapes has been looked at."""

    kind: Kind
    layout: str
    """Whose names the file uses: "Wan", "diffusers", "transformers", "TAEHV" or "its trainer"."""
    group: str
    """The entry of a training checkpoint that it comes from, such as "generator_ema"; "" where there is none."""
    source: Path
    tensors: Mapping[str, Weight]
    """Under Wan's names (TAEHV's under its own, adapters' as of `adapter_names.adapters`), mapped from the file in its dtype, or packed as
    it is there. Unknown names stay as they are."""
    wrapped: bool = False
    """Whether wrappers' names were removed from the tensors' names."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The JSON config that lies beside it, as it is; {} where there is none."""
    tokenizer: Callable[[], dict[str, Any]] | None = None
    """Where its file holds a tokenizer too, makes what tokenizer.json would say of it. Raises `lolrt.CheckpointError`."""

    def __str__(self) -> str:
        wrapped = ", wrappers removed" if self.wrapped else ""
        return f"{TITLES[self.kind]} with {self.layout}'s names{f', from {self.group!r}' if self.group else ''}{wrapped}"


def recognise(content: Mapping[Any, Any], source: Path) -> list[Component]:
    """All parts of models in a file; `content` is what was read from it."""
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
    """Of tensors with tokenizers, the one nearest above a text encoder; `path` leads to that."""
    for depth in range(len(path), -1, -1):
        model = models.get(".".join((*path[:depth], spiece.NAME)))
        if isinstance(model, Tensor):
            return partial(spiece.tokenizer_of, model, source)
    return None


def _unclear(source: Path, name: str, other: str) -> CheckpointError:
    return CheckpointError(f"{source} has {name} twice, as {other} too; it is unclear which one counts")


def _unwrapped(kind: Kind, layout: str, weights: dict[str, Weight], source: Path) -> dict[str, Weight]:
    """Weights of a part of a model, with single names freed of wrappers that others do not have."""
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
    """What the encoder needs of a whole UMT5, encoder and decoder."""
    if not any(name.startswith("decoder.block.0.layer.1.EncDecAttention.") for name in weights):
        return weights
    return {name: weight for name, weight in weights.items() if not name.startswith(("decoder.", "lm_head."))}


def _known(weights: dict[str, Weight]) -> tuple[Kind, str] | None:
    """The kind and layout that know most of these names, and at least half of them."""
    weights = _encoder(weights)
    known = {layout: _names_of(*layout, weights) for layout in LAYOUTS}
    best = max(known, key=lambda layout: len(known[layout]))
    fits = 2 * len(known[best]) >= len(weights) and (best[0] == "lora" or any(map(LAYERS.match, known[best])))
    return best if fits else None


def _names_of(kind: Kind, layout: str, among: Collection[str]) -> Set[str]:
    """The names that a layout knows."""
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
        if wan in renamed and not (kind == "text_encoder" and wan == "token_embedding.weight"):  # tied: its second name is no second tensor
            raise _unclear(source, wan, name)
        renamed.setdefault(wan, weight)
    return renamed


def choose(components: list[Component], kind: Kind, source: Path, group: str | None = None, averaged: bool = True) -> Component:
    """The part of this kind that is to be used: the one of `group`, else the first by `wrappers.rank`.

    Raises `lolrt.CheckpointError`, saying what there is.
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
