"""A policy, the positions and the window of a rollout, as one line of text: its own name, in files and on the command line."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from lolrt.engine.kv_window import Window
from lolrt.errors import Error
from lolrt.positions.rope import Rope
from lolrt.positions.sink_gate import SinkGate


@dataclass(frozen=True)
class Policy:
    """What `name=value` pairs say, separated by commas: fields of `Rope`, `Window` and `SinkGate`, such as "sigma=0.8,sink_frames=1".
    Bases are separated by colons.
    """

    text: str
    rope: Rope
    window: Window

    @classmethod
    def parse(cls, text: str) -> Policy:
        known: dict[str, tuple[type, Any]] = {
            field.name: (kind, field.default) for kind in (Rope, Window, SinkGate) for field in fields(kind) if field.name != "gate"
        }
        given: dict[type, dict[str, Any]] = {Rope: {}, Window: {}, SinkGate: {}}
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            if name not in known:
                raise Error(f"the policy {text!r} sets {name!r}; expected name=value pairs of {', '.join(known)}")
            kind, default = known[name]
            try:
                given[kind][name] = [float(base) for base in value.split(":")] if default is None else type(default)(value)
            except ValueError as error:
                raise Error(f"the policy {text!r} sets {name} to {value!r}; expected a value like {default!r}") from error
        return cls(text, Rope(**given[Rope]), Window(**given[Window], gate=SinkGate(**given[SinkGate])))
