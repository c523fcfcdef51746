"""Schemas of the requests. They limit texts, numbers and names; the model's own checks decide whether the values make sense."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from lolrt.engine.kv_window import Window
from lolrt.positions.rope import Rope
from lolrt.serve.errors import RequestError

MOST_PROMPT = 2000
MOST_IMAGE = 8_000_000
MOST_LEASE_SECONDS = 7 * 86400.0

# An image in base64.
Image = Annotated[str, Field(max_length=MOST_IMAGE)]
Prompt = Annotated[str, Field(min_length=1, max_length=MOST_PROMPT)]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
EventId = Annotated[str, Field(min_length=1, max_length=128)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
LeaseSeconds = Annotated[float, Field(ge=1, le=MOST_LEASE_SECONDS)]
Chunks = Annotated[int, Field(ge=0, le=1000)]
Sequence = Annotated[int, Field(ge=0, lt=2**53)]


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Adapter(Schema):
    """Adapters that the server offers by a name."""

    name: Id
    scale: Annotated[float, Field(ge=-10, le=10)] = 1.0


Adapters = Annotated[list[Adapter], Field(min_length=1, max_length=8)]


def options_of(kind: Any) -> type[Schema]:
    """A schema with the fields of a dataclass, all optional. Fields that hold another dataclass are treated the same way."""
    fields: dict[str, Any] = {}
    for name, annotation in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(annotation):
            annotation = options_of(annotation)
        fields[name] = (annotation | None, None)
    return create_model(f"{kind.__name__}Options", __base__=Schema, **fields)


def with_options(base: Any, options: BaseModel | None) -> Any:
    """The dataclass `base` with the fields that `options` sets. Raises `lolrt.Error` if the result makes no sense."""
    if options is None:
        return base
    given = {name: getattr(options, name) for name in options.model_fields_set if getattr(options, name) is not None}
    changed = {name: with_options(getattr(base, name), value) if isinstance(value, BaseModel) else value for name, value in given.items()}
    return dataclasses.replace(base, **changed)


RopeOptions = options_of(Rope)
WindowOptions = options_of(Window)


class Stream(Schema):
    """The options of a session."""

    prompt: Prompt
    seed: Seed = 0
    rope: RopeOptions | None = None  # type: ignore[valid-type]
    window: WindowOptions | None = None  # type: ignore[valid-type]
    lora: Adapters | None = None
    probe: bool = False
    session_id: Id | None = None
    lease_seconds: LeaseSeconds | None = None


class NewSession(Stream):
    start: Image | None = None


class Branch(Schema):
    session_id: Id | None = None
    lease_seconds: LeaseSeconds | None = None


class InteractionEvent(Schema):
    prompt: Prompt
    negative_prompt: None = None
    multi_modal_data: None = None


class Interact(Schema):
    event: InteractionEvent
    event_id: EventId | None = None
    transition_chunks: Chunks | None = None
    sequence: Sequence | None = None


class Clip(BaseModel):
    """The request for a video of a given length, here and in `session.start`. Unknown fields are ignored: other servers have them."""

    model: str | None = None
    prompt: Prompt
    width: int | None = None
    height: int | None = None
    size: Annotated[str, Field(max_length=32)] | None = None
    fps: float | None = None
    num_frames: Annotated[int, Field(ge=1, lt=2**40)] | None = None
    seconds: Annotated[float, Field(gt=0, lt=2**30)] | None = None
    seed: Seed | None = None
    rope: RopeOptions | None = None  # type: ignore[valid-type]
    window: WindowOptions | None = None  # type: ignore[valid-type]
    lora: Adapter | Adapters | None = None

    def adapters(self) -> list[Adapter] | None:
        return [self.lora] if isinstance(self.lora, Adapter) else self.lora

    def check(self, model: str, width: int, height: int, fps: int) -> None:
        """Raises `RequestError` if the request asks for another model, size or frame rate."""
        if self.model not in (None, model):
            raise RequestError(f"{self.model!r} was asked for, and this server has {model!r}", "model_mismatch")
        asked = (self.width or width, self.height or height)
        if asked != (width, height) or self.size not in (None, f"{width}x{height}"):
            wanted = self.size or f"{asked[0]}x{asked[1]}"
            raise RequestError(f"{wanted} was asked for, and this model makes {width}x{height}", "unsupported_size")
        if self.fps not in (None, fps):
            raise RequestError(f"{self.fps:g} frames/s were asked for, and this model makes {fps}", "unsupported_fps")

    def frames(self, fps: int) -> int | None:
        """The length in video frames; None: the request does not say."""
        return self.num_frames or (None if self.seconds is None else max(1, round(self.seconds * fps)))


class NewClip(Clip):
    start: Image | None = None


class Start(Clip):
    """The message `session.start`."""

    type: Literal["session.start"]
    prompt: Prompt | None = None  # type: ignore[assignment]
    format: str = "m4s"
    probe: bool = False
    session_id: Id | None = None
    resume_from: Sequence | None = None
    lease_seconds: LeaseSeconds | None = None


class InteractMessage(BaseModel):
    """The message `session.interaction`."""

    interaction: Interact
