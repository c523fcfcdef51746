"""A policy, that is, the positions and the window of a rollout, as one line of text. The text is also its name, in files and on the
command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lolrt.engine.kv_window import Window
from lolrt.errors import Error
from lolrt.fields import fields_of
from lolrt.positions.rope import Rope


@dataclass(frozen=True)
class Policy:
    """A policy from `name=value` pairs, separated by commas: fields of `Rope`, `Window` and `SinkGate`, such as "sigma=0.8,sink_frames=1".
    The names of the options of `lolrt generate` can be used too ("sinks=1"). Bases are separated by colons. What is not said of the
    window is as in `window`, the model's own; of the positions, as in `Rope()`.
    """

    text: str
    rope: Rope
    window: Window

    @classmethod
    def parse(cls, text: str, window: Window = Window()) -> Policy:
        given: dict[str, dict[str, Any]] = {"Rope": {}, "Window": {}, "SinkGate": {}}
        fields = [(owner, field) for owner in given for field in fields_of(owner)]
        known = {name: (owner, field) for owner, field in fields for name in field.names}
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            if name not in known:
                names = ", ".join(field.name for _, field in fields)
                raise Error(f"the policy {text!r} sets {name!r}; expected name=value pairs of {names}")
            owner, field = known[name]
            try:
                given[owner][field.name] = field.kind(value)
            except ValueError as error:
                raise Error(f"the policy {text!r} sets {name} to {value!r}; expected a value like {field.default!r}") from error
        gate = replace(window.gate, **given["SinkGate"])
        return cls(text, Rope(**given["Rope"]), replace(window, **given["Window"], gate=gate))
