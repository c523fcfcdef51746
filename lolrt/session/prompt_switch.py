"""Prompt switches: from one text to another, at once or over mixtures of the two, while a stream goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt.errors import Error, check_whole

# Which cached frames are run again with a new text, so that their keys and values no longer belong to the old one: the recent frames in
# the window (LongLive's KV re-cache), the sinks as well, or none.
Recache = Literal["window", "sinks", "none"]
RECACHES: tuple[Recache, ...] = get_args(Recache)


@dataclass(frozen=True)
class SwitchLatency:
    """The time until a chunk was made with the new prompt alone. When the picture shows the change depends on the model."""

    chunks: int
    """The number of chunks from the first one after the call to the first one that follows the new prompt alone; 1 without mixtures."""
    recache_ms: float
    """The time spent on encoding the new text for the layers and on running cached frames again, in all these chunks."""
    total_ms: float
    """The time from the call of `set_prompt` (or of `load_state_dict`, in the middle of a switch) until the last of these chunks was
    made."""
    recache: Recache = "window"

    def __str__(self) -> str:
        mixed = "" if self.chunks == 1 else f", mixed in over {self.chunks} chunks"
        recached = {"window": "recent frames re-cached", "sinks": "sinks and recent frames re-cached", "none": "nothing re-cached"}
        return (
            f"the new prompt counts from here on{mixed}; {recached[self.recache]}; {self.total_ms:.0f} ms, "
            f"{self.recache_ms:.0f} ms of it to re-cache"
        )


@dataclass
class PromptSwitch:
    """A switch that is in progress: chunk k of `chunks` is made from (1 - k / chunks) * start + (k / chunks) * target, k = 1 .. chunks."""

    start: Tensor
    """[text_tokens, text_dim]"""
    target: Tensor
    """[text_tokens, text_dim]"""
    chunks: int = 1
    recache: Recache = "window"
    chunks_done: int = 0
    recache_seconds: float = 0.0
    asked_at: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if self.recache not in RECACHES:
            raise Error(f"recache is {self.recache!r}; expected one of {', '.join(RECACHES)}")
        check_whole(over_chunks=self.chunks)
        if self.chunks < 1:
            raise Error(f"a switch over {self.chunks} chunks; expected 1 or more")

    def text(self) -> Tensor:
        """The text of the next chunk, [text_tokens, text_dim]."""
        rows = max(len(self.start), len(self.target))
        start, target = (F.pad(text.float(), (0, 0, 0, rows - len(text))) for text in (self.start, self.target))
        return torch.lerp(start, target, (self.chunks_done + 1) / self.chunks)  # at the end exactly the target

    @property
    def done(self) -> bool:
        return self.chunks_done >= self.chunks

    def latency(self) -> SwitchLatency:
        """The latency of the switch up to now."""
        return SwitchLatency(self.chunks, 1e3 * self.recache_seconds, 1e3 * (time.perf_counter() - self.asked_at), self.recache)

    def state_dict(self) -> dict[str, Tensor]:
        counts = torch.tensor([self.chunks, self.chunks_done, RECACHES.index(self.recache)])
        return {"start": self.start.clone(), "target": self.target.clone(), "counts": counts}

    @staticmethod
    def from_state_dict(state: dict[str, Tensor]) -> PromptSwitch:
        chunks, chunks_done, recache = state["counts"].tolist()
        return PromptSwitch(state["start"].clone(), state["target"].clone(), chunks, RECACHES[recache], chunks_done)
