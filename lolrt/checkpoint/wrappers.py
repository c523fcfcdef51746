"""What stands before and inside the names of a model's tensors, taken off by rule, and the weights of a file told apart by it.

A file is a tree: its branches are keys of dictionaries (a training checkpoint has one for each model), and what stands between the dots of
names (a wrapper of modules adds its own; a file of a whole pipeline has one for each part). A part of a model is a branch of which at least
half is known, and which lies in no other such branch; all that leads to it is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from lolrt.checkpoint.packed import Weight

Known = TypeVar("Known")

# Attributes of torch's wrappers in which they keep the module: private ones (_orig_mod, _fsdp_wrapped_module), and data parallelism's.
INSIDE = re.compile(r"_\w+|module")

# A tree that is deeper, or has more branches, is none of wrappers; a branch of fewer tensors is no part of a model.
MOST_LEVELS = 8
MOST_BRANCHES = 64
FEWEST = 8

# Whose weights they are, where names say so. Those of models that only train another one are used where they are asked for alone.
AVERAGED = re.compile(r"(.*_)?ema(_.*)?")
TRAINERS = re.compile(r"(.*_)?(critic|fake_score|real_score|teacher|discriminator|optimizer)(_.*)?")
OWNERS = re.compile(f"generator|{AVERAGED.pattern}|{TRAINERS.pattern}")
PREFERRED = ("", "generator", "model", "generator_lora", "state_dict")


class Place(NamedTuple):
    """Where a part of a model lies in a file: the keys of the dictionary, and what stands before its names."""

    keys: tuple[str, ...]
    path: tuple[str, ...]


def without_inner(tensors: Mapping[str, Weight]) -> tuple[dict[str, Weight], list[tuple[str, str]]]:
    """Tensors by their names without what wrappers add inside; and the names that then come twice, with their second spelling."""
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
    """The parts of models in a tree of names: what leads to each, its weights by what remains of their names, and what `known` says."""
    waiting: list[tuple[tuple[str, ...], dict[str, Weight]]] = [((), weights)]
    for path, inside in waiting:  # which grows
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
    """What may remain of a name when wrappers are taken off, the longest first."""
    return [name.split(".", i)[-1] for i in range(1, min(name.count("."), MOST_LEVELS) + 1)]


def told_apart(places: Sequence[Place]) -> list[str]:
    """A name for each place of parts of one kind: the first key or name in which the places differ; for one alone, whose it says it is."""
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
    """The place of weights in the order in which they are used where nothing else is said; None: they are not.

    averaged: whether averaged ones come first, else last.
    """
    if TRAINERS.fullmatch(group):
        return None
    if AVERAGED.fullmatch(group):
        return 0 if averaged else len(PREFERRED) + 2
    return 1 + (PREFERRED.index(group) if group in PREFERRED else len(PREFERRED))
