"""Removes the prefixes and infixes that wrappers add to the names of tensors, and separates the models in a file by them.

A file is a tree. Its branches are keys of dictionaries (a training checkpoint has one for each model), and the dotted parts of names (a
module wrapper adds its own; a file of a whole pipeline has one for each part). A part of a model is a branch in which at least half of the
names are known, and which is not inside another such branch. The path to it is removed from the names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from lolrt.checkpoint.packed import Weight

Known = TypeVar("Known")

# The attributes in which torch's wrappers keep the module: private ones (_orig_mod, _fsdp_wrapped_module), and that of data parallelism.
INSIDE = re.compile(r"_\w+|module")

# Wrappers do not make deeper trees or more branches, and no part of a model has fewer tensors.
MOST_LEVELS = 8
MOST_BRANCHES = 64
FEWEST = 8

# Names that show what the weights are. Those of models that only help to train another one are used only on request.
AVERAGED = re.compile(r"(.*_)?ema(_.*)?")
TRAINERS = re.compile(r"(.*_)?(critic|fake_score|real_score|teacher|discriminator|optimizer)(_.*)?")
OWNERS = re.compile(f"generator|{AVERAGED.pattern}|{TRAINERS.pattern}")
PREFERRED = ("", "generator", "model", "generator_lora", "state_dict")


class Place(NamedTuple):
    """The location of a part of a model in a file: the keys of the dictionary, and the prefix of its names."""

    keys: tuple[str, ...]
    path: tuple[str, ...]


def without_inner(tensors: Mapping[str, Weight]) -> tuple[dict[str, Weight], list[tuple[str, str]]]:
    """The tensors by their names without the infixes of wrappers; and the names that then occur twice, with their second spelling."""
    bare: dict[str, Weight] = {}
    twice = []
    for name, tensor in tensors.items():
        short = ".".join(part for part in name.split(".") if not INSIDE.fullmatch(part)) or name
        if bare.setdefault(short, tensor) is not tensor:
            twice.append((short, name))
    return bare, twice


def branches(
    weights: dict[str, Weight], known: Callable[[dict[str, Weight]], Known | None]
) -> Iterator[tuple[tuple[str, ...], dict[str, Weight], Known]]:
    """The parts of models in a tree of names: the path to each, its weights under their remaining names, and the result of `known`."""
    waiting: list[tuple[tuple[str, ...], dict[str, Weight]]] = [((), weights)]
    for path, inside in waiting:  # grows during the loop
        if (found := known(inside)) is not None:
            yield path, inside, found
        elif len(path) < MOST_LEVELS:
            below: dict[str, dict[str, Weight]] = {}
            for name, weight in inside.items():
                first, _, rest = name.partition(".")
                if rest:
                    below.setdefault(first, {})[rest] = weight
            larger = [((*path, first), branch) for first, branch in below.items() if len(branch) >= FEWEST]
            waiting += larger[: max(0, MOST_BRANCHES - len(waiting))]


def ends_of(name: str) -> list[str]:
    """All possible remainders of a name after wrappers are removed, the longest first."""
    return [name.split(".", i)[-1] for i in range(1, min(name.count("."), MOST_LEVELS) + 1)]


def told_apart(places: Sequence[Place]) -> list[str]:
    """A name for the place of each part of one kind: the first key or name in which the places differ. For a single part, the key or name
    that shows what the weights are."""
    if len(places) == 1:
        keys, path = places[0]
        return [next(filter(OWNERS.fullmatch, (*keys, *path)), "".join(keys[:1]))]
    paths = [(*keys, *path) for keys, path in places]
    shared = 0
    while len({path[shared : shared + 1] for path in paths}) == 1 and shared < MOST_LEVELS * 2:
        shared += 1
    names = ["".join(path[shared : shared + 1]) for path in paths]
    return names if len(set(names)) == len(names) else [".".join(path) for path in paths]


def rank(group: str, averaged: bool) -> int | None:
    """The rank of weights in the default order of choice; None: they are not chosen by default.

    averaged: whether averaged weights come first; otherwise they come last.
    """
    if TRAINERS.fullmatch(group):
        return None
    if AVERAGED.fullmatch(group):
        return 0 if averaged else len(PREFERRED) + 2
    return 1 + (PREFERRED.index(group) if group in PREFERRED else len(PREFERRED))
