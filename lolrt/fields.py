"""The settings of a stream: the fields of `Rope`, `Window`, `SinkGate` and `Sampler`, read from their source code.

The options of the command line and the names in a policy (`lolrt.lab.policy`) are made from them, so defaults, choices and help are
written only in the dataclasses. The source is parsed, not imported, so that `--help` does not need torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lolrt import _HOME_OF

# Every setting has the name of its field. These have a shorter name as well.
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
    """Converts text to a value."""
    choices: tuple[str, ...]
    """All possible values, if there is a list; otherwise empty."""
    help: str
    """The first sentence of the docstring under the field."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the setting, the short one first, if there is one."""
        return (SHORT[self.name], self.name) if self.name in SHORT else (self.name,)


@cache
def fields_of(dataclass: str) -> tuple[Field, ...]:
    """All fields of a dataclass of the package, except those that hold another dataclass."""
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
    """Parses numbers separated by colons."""
    return [float(number) for number in text.split(":")]


def integers(text: str) -> tuple[int, ...]:
    """Parses integers separated by colons."""
    return tuple(int(number) for number in text.split(":"))


def _choices(annotation: ast.expr) -> tuple[str, ...]:
    if not (isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name) and annotation.value.id == "Literal"):
        return ()
    return ast.literal_eval(annotation.slice)


def _first_sentence(node: ast.stmt | None) -> str:
    """The first sentence of a docstring on one line, without its full stop. It begins with a small letter unless the first word is an
    abbreviation."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)):
        return ""
    text = re.split(r"\.(?=\s+[^\sa-z0-9]|$)", " ".join(node.value.value.split()), maxsplit=1)[0]
    return text if text[1:2].isupper() or text[1:2] == "," else text[:1].lower() + text[1:]
