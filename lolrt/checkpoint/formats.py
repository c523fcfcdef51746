"""What a file holds, recognised from the names of its tensors: never from its own name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from lolrt.checkpoint import names
from lolrt.checkpoint.adapter_names import adapters
from lolrt.checkpoint.names import Kind
from lolrt.errors import CheckpointError

KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES = {"dit": "DiT", "vae": "VAE", "text_encoder": "UMT5 text encoder", "taehv": "TAEHV", "lora": "LoRA of a DiT"}

# Where files keep the weights that are to be used, the first that is there. A file of a training run has others too: the critic's,
# the optimizer's.
AVERAGED = "generator_ema"
GROUPS = ("", AVERAGED, "generator", "model", "generator_lora", "state_dict")

# Names that wrappers of a module leave in the names of its tensors: at the front, and anywhere.
FRONT = ("model", "net", "base_model", "diffusion_model", "transformer")
ANYWHERE = "_fsdp_wrapped_module"

TAEHV = re.compile(r"(encoder|decoder)\.\d+\.((conv|skip|conv\.\d)\.)?(weight|bias)")


@dataclass(frozen=True)
class Component:
    """One part of a model, as a file has it: nothing but names and shapes has been looked at."""

    kind: Kind
    layout: str
    """Whose names the file uses: "Wan", "diffusers", "transformers", "TAEHV" or "its trainer"."""
    group: str
    """The entry of a training checkpoint that it comes from, such as "generator_ema"; "" where there is none."""
    source: Path
    tensors: Mapping[str, Tensor]
    """Under Wan's names (TAEHV's under its own, adapters' as of `adapter_names.adapters`), mapped from the file in its dtype. Unknown names
    stay as they are."""
    wrapped: bool = False
    """Whether wrappers' names were removed from the tensors' names."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The JSON config that lies beside it, as it is; {} where there is none."""

    def __str__(self) -> str:
        wrapped = ", wrappers removed" if self.wrapped else ""
        return f"{TITLES[self.kind]} with {self.layout}'s names{f', from {self.group!r}' if self.group else ''}{wrapped}"


def recognise(content: Mapping[Any, Any], source: Path) -> list[Component]:
    """All parts of models in a file; `content` is what was read from it."""
    found = []
    for group, tensors in _groups(content):
        bare, wrapped = _unwrap(_encoder(tensors), source)
        kind, layout = _kind(bare)
        if kind is not None:
            found.append(Component(kind, layout, group, source, _under_wan_names(kind, layout, bare, source), wrapped))
    return found


def _groups(content: Mapping[Any, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for group, values in [("", content), *((str(key), value) for key, value in content.items() if isinstance(value, dict))]:
        tensors = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
        if tensors:
            yield group, tensors


def _unwrap(tensors: dict[str, Tensor], source: Path) -> tuple[dict[str, Tensor], bool]:
    bare: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = [part for part in name.split(".") if part != ANYWHERE]
        while len(parts) > 1 and parts[0] in FRONT:
            parts = parts[1:]
        if bare.setdefault(".".join(parts), tensor) is not tensor:
            raise CheckpointError(f"{source} has {'.'.join(parts)} twice, as {name} too; it is unclear which one counts")
    return bare, bare.keys() != tensors.keys()


def _encoder(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the encoder needs of a whole UMT5, encoder and decoder."""
    if not any(name.startswith("decoder.block.0.layer.1.EncDecAttention.") for name in tensors):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(("decoder.", "lm_head."))}


def _kind(tensors: dict[str, Tensor]) -> tuple[Kind | None, str]:
    """The kind and layout that know most of these names, and at least half of them."""
    known: dict[tuple[Kind, str], int] = {
        ("taehv", "TAEHV"): sum(TAEHV.fullmatch(name) is not None for name in tensors),
        ("lora", "its trainer"): len(adapters(tensors)),
    }
    for kind in ("dit", "vae", "text_encoder"):
        known[kind, "Wan"] = len(names.to_diffusers(kind, tensors))
        known[kind, "transformers" if kind == "text_encoder" else "diffusers"] = len(names.to_wan(kind, tensors))
    best = max(known, key=lambda candidate: known[candidate])
    return best if 2 * known[best] >= len(tensors) else (None, "")


def _under_wan_names(kind: Kind, layout: str, tensors: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    if layout in ("Wan", "TAEHV"):
        return tensors
    renamed: dict[str, Tensor] = {}
    table = adapters(tensors) if kind == "lora" else names.to_wan(kind, tensors)
    for name, tensor in tensors.items():
        wan = table.get(name, name)
        if wan in renamed and not (kind == "text_encoder" and wan == "token_embedding.weight"):  # tied: its second name is no second tensor
            raise CheckpointError(f"{source} has {wan} twice, as {name} too; it is unclear which one counts")
        renamed.setdefault(wan, tensor)
    return renamed


def choose(components: list[Component], kind: Kind, source: Path, group: str | None = None, averaged: bool = True) -> Component:
    """The part of this kind that is to be used: of `group`, or of the first of GROUPS; unless `averaged`, averaged weights come last.

    Raises `lolrt.CheckpointError`, saying what there is.
    """
    order = tuple(sorted(GROUPS, key=lambda name: not averaged and name == AVERAGED)) if group is None else (group,)
    usable = [component for component in components if component.kind == kind and component.group in order]
    if not usable:
        there = "; ".join(map(str, components)) or "nothing that is known here"
        wanted = f"a {TITLES[kind]}" + (f" in {group!r}" if group else "")
        raise CheckpointError(f"{source} holds {there}; expected {wanted} (`lolrt inspect` shows what a file holds)")
    return min(usable, key=lambda component: order.index(component.group))
