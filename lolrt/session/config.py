"""The configuration of a stream in one object: everything except the model, the prompt and the frames that it starts from."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from lolrt.engine.kv_window import Window
from lolrt.engine.sampler import Sampler
from lolrt.errors import Error, check_whole
from lolrt.positions.rope import Rope

Config = TypeVar("Config")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    rope: Rope = Rope()
    window: Window = Window()
    sampler: Sampler = Sampler()
    seed: int | None = 0
    """The key of the noise, 0 .. 2^64 - 1; None: the noise comes from a function given by the caller."""
    start_frame: int = 0
    """The number of the first latent frame."""
    probe: bool = False
    """Whether the attention mass of each chunk is measured."""

    def __post_init__(self) -> None:
        check_whole(start_frame=self.start_frame)
        for name, kind in (("rope", Rope), ("window", Window), ("sampler", Sampler)):
            if not isinstance(getattr(self, name), kind):
                raise Error(f"{name} is {getattr(self, name)!r}; expected a lolrt.{kind.__name__}")


def to_plain(value: Any) -> Any:
    """A dataclass as plain values for JSON. Infinite numbers, which JSON does not have, become text."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):  # bases and seeds that were computed
        return to_plain(value.tolist())
    return str(value) if isinstance(value, float) and value in (float("inf"), float("-inf")) else value


def from_plain(kind: type[Config], plain: dict[str, Any]) -> Config:
    """The dataclass that `to_plain` wrote. Raises `lolrt.Error` for an unknown field, for example one of a newer version."""
    kinds = typing.get_type_hints(kind)
    unknown = sorted(plain.keys() - kinds.keys())
    if unknown:
        raise Error(f"{kind.__name__} has no {', '.join(unknown)}: a newer lolrt may have")
    return kind(**{name: _value(kinds[name], value) for name, value in plain.items()})


def _value(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return from_plain(typing.cast("type[Any]", kind), value)
    if isinstance(value, list):
        return tuple(_value(None, item) for item in value)
    return float(value) if kind is float and isinstance(value, (str, int)) else value


def differences(saved: dict[str, Any], here: dict[str, Any], path: str = "") -> list[str]:
    """The differences between two plain descriptions, one text each: "rope.sigma is 0.8 in the saved one and 0 here"."""
    found = []
    for name in sorted(saved.keys() | here.keys()):
        one, other = saved.get(name), here.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{path}{name}.")
        elif one != other:
            found.append(f"{path}{name} is {one} in the saved one and {other} here")
    return found
