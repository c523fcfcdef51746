"""Where a chunk's time goes: the calls that make it up are timed where they are made, each counted once, for the outermost it lies in."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F

from lolrt import ops
from lolrt.stream import Stream
from lolrt.video import VideoWriter

# What is replaced, by stage: owner and attribute. A name that the owner lacks is left out.
STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "attention": ((ops, "frame_attention"),),
    "norms, packing": ((ops, "normalize_queries"), (ops, "kv_write"), (ops, "modulated_norm")),
    "linear": ((F, "linear"),),
    "activation": ((F, "gelu"),),
    "writer": ((VideoWriter, "write"),),
}


class StageClock:
    """Seconds of each stage while `running`; "rest" is what none of them covers."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._busy = False

    @contextlib.contextmanager
    def running(self, *stages_of_instances: tuple[str, Any, str]) -> Iterator[None]:
        """`stages_of_instances`: further stages as (name, owner, attribute), such as the decoder of one model."""
        replaced = []
        listed = [(stage, *place) for stage, places in STAGES.items() for place in places]
        try:
            for stage, owner, name in (*listed, *stages_of_instances):
                original = getattr(owner, name, None)
                if original is not None:
                    replaced.append((owner, name, name in vars(owner), original))
                    setattr(owner, name, self._timed(stage, original))
            start = time.perf_counter()
            yield
            self.seconds["rest"] += time.perf_counter() - start - sum(self.seconds.values())
        finally:
            for owner, name, own, original in reversed(replaced):
                if own:
                    setattr(owner, name, original)
                else:
                    delattr(owner, name)

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


def of_chunk(stream: Stream, writer: VideoWriter | None) -> dict[str, float]:
    """Seconds of each stage of the stream's next chunk: latents, video frames, and their way into the file."""
    clock = StageClock()
    with clock.running(("VAE", stream.vae, "decode")):
        frames = next(stream).frames
        if writer is not None:
            writer.write(frames)
    return dict(clock.seconds)
