"""The settings of a stream: the fields of `Rope`, `Window`, `SinkGate` and `Sampler`, as their source says them.

The command line makes its options of these, and a policy (`lolrt.lab.policy`) its names; defaults, choices and help stand in the
dataclasses alone. Their source is parsed, not imported, so that help comes without torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lolrt import _HOME_OF

# A setting has the name of its field everywhere; these have a shorter one as well.
SHORT = {
    "anchor_frames": "anchor",
    "length_frames": "length",
    "sink_frames": "sinks",
    "recent_frames": "recent",
    "recall_frames": "recall",
    "store_frames": "store",
    "bias": "sink_bias",
    "when": "gate",
}


class Field(NamedTuple):
    name: str
    default: Any
    kind: Callable[[str], Any]
    """Makes a value of its text."""
    choices: tuple[str, ...]
    """All values, where they can be listed; else empty."""
    help: str
    """The first sentence of the docstring under the field."""

    @property
    def names(self) -> tuple[str, ...]:
        """The short name first, if there is one."""
        return (SHORT[self.name], self.name) if self.name in SHORT else (self.name,)


@cache
def fields_of(dataclass: str) -> tuple[Field, ...]:
    """All fields of a dataclass of the package but those that hold another dataclass."""
    home = Path(__file__).parent / f"{_HOME_OF[dataclass].replace('.', '/')}.py"
    classes = (node for node in ast.parse(home.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))
    body = next(node.body for node in classes if node.name == dataclass)
    found = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.value is None:
            continue
        if isinstance(node.value, ast.Call):
            continue
        name, default = node.target.id, ast.literal_eval(node.value)
        found.append(Field(name, default, _kind(default), _choices(node.annotation), _first_sentence(after)))
    return tuple(found)


def _kind(default: Any) -> Callable[[str], Any]:
    if default is None:
        return floats
    return integers if isinstance(default, tuple) else type(default)


def floats(text: str) -> list[float]:
    """Numbers between colons."""
    return [float(number) for number in text.split(":")]


def integers(text: str) -> tuple[int, ...]:
    """Whole numbers between colons."""
    return tuple(int(number) for number in text.split(":"))


def _choices(annotation: ast.expr) -> tuple[str, ...]:
    if not (isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name) and annotation.value.id == "Literal"):
        return ()
    return ast.literal_eval(annotation.slice)


def _first_sentence(node: ast.stmt | None) -> str:
    """A docstring on one line, without its full stop, and with a small letter unless the word is an abbreviation."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)):
        return ""
    text = re.split(r"\.(?=\s+[^\sa-z0-9]|$)", " ".join(node.value.value.split()), maxsplit=1)[0]
    return text if text[1:2].isupper() or text[1:2] == "," else text[:1].lower() + text[1:]
