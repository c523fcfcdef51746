"""Where the time of a chunk goes: its calls are timed where they are made, and each counts once, for the outermost stage that contains
it."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F

import lolrt
from lolrt import ops
from lolrt.media.writer import VideoWriter
from lolrt.models.vae.taehv import TAEHV
from lolrt.ops import int8

# The functions that are replaced, by stage: owner and attribute.
STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "attention": ((ops, "frame_attention"),),
    "norms, packing": ((ops, "normalize_queries"), (ops, "kv_write"), (ops, "modulated_norm")),
    "linear": ((F, "linear"), (int8, "linear")),
    "activation": ((ops, "gelu"),),
    "VAE": ((lolrt.CausalVAE, "decode"), (TAEHV, "decode")),
    "writer": ((VideoWriter, "write"),),
}


class StageClock:
    """Seconds of each stage while `running`; "rest" is the time outside of all of them."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._busy = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        replaced = []
        try:
            for stage, places in STAGES.items():
                for owner, name in places:
                    original = getattr(owner, name)
                    replaced.append((owner, name, original))
                    setattr(owner, name, self._timed(stage, original))
            start = time.perf_counter()
            yield
            self.seconds["rest"] += time.perf_counter() - start - sum(self.seconds.values())
        finally:
            for owner, name, original in replaced:
                setattr(owner, name, original)

    def _timed(self, stage: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return original(*args, **kwargs)
            self._busy = True
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[stage] += time.perf_counter() - start
                self._busy = False

        return call


def of(chunk: Callable[[], object]) -> dict[str, float]:
    """Seconds of each stage during `chunk`."""
    clock = StageClock()
    with clock.running():
        chunk()
    return dict(clock.seconds)
