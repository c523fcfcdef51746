"""lolrt: endless video from streaming autoregressive diffusion models.

    import lolrt

    pipe = lolrt.load("tiny")
    for chunk in pipe.stream(pipe.example_prompts[0], seed=7):
        chunk.frames  # uint8 [n, height, width, 3]

Importing this module is cheap: torch and the kernels are loaded when a name first needs them. If you import both, import lolrt before
torch. It then makes torch's threads, which it uses too, wait for one another without blocking the cores for other processes
(`lolrt.openmp`).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lolrt.openmp import spin_briefly

if TYPE_CHECKING:
    from lolrt.checkpoint import load_dit as load_dit
    from lolrt.checkpoint import load_taehv as load_taehv
    from lolrt.checkpoint import load_vae as load_vae
    from lolrt.engine.engine import Engine as Engine
    from lolrt.engine.kv_window import Window as Window
    from lolrt.engine.noise import Noise as Noise
    from lolrt.engine.sampler import Sampler as Sampler
    from lolrt.engine.scheduler import EarliestDeadline as EarliestDeadline
    from lolrt.engine.scheduler import RoundRobin as RoundRobin
    from lolrt.errors import CheckpointError as CheckpointError
    from lolrt.errors import Error as Error
    from lolrt.errors import OutputError as OutputError
    from lolrt.errors import PromptError as PromptError
    from lolrt.media.writer import VideoWriter as VideoWriter
    from lolrt.models.dit import CausalDiT as CausalDiT
    from lolrt.models.dit import DiTConfig as DiTConfig
    from lolrt.models.vae.layers import VAEConfig as VAEConfig
    from lolrt.models.vae.taehv import TAEHV as TAEHV
    from lolrt.models.vae.wan import CausalVAE as CausalVAE
    from lolrt.ops import attention as attention
    from lolrt.ops.threads import set_threads as set_threads
    from lolrt.pipeline import Pipeline as Pipeline
    from lolrt.pipeline import load as load
    from lolrt.pipeline import load_text as load_text
    from lolrt.positions.rope import Rope as Rope
    from lolrt.positions.sink_gate import SinkGate as SinkGate
    from lolrt.session.apart import decode_latents as decode_latents
    from lolrt.session.apart import send_latents as send_latents
    from lolrt.session.prompt_switch import SwitchLatency as SwitchLatency
    from lolrt.session.session import LatentChunk as LatentChunk
    from lolrt.session.session import Session as Session
    from lolrt.session.snapshot import Snapshot as Snapshot
    from lolrt.session.stream import Chunk as Chunk
    from lolrt.session.stream import LatentStream as LatentStream
    from lolrt.session.stream import Stream as Stream
    from lolrt.session.stream_engine import StreamEngine as StreamEngine
    from lolrt.text.embeddings import EmbeddingFile as EmbeddingFile

__version__ = "0.1.0"

spin_briefly()

_HOMES = {
    "checkpoint": ("load_dit", "load_taehv", "load_vae"),
    "engine.engine": ("Engine",),
    "engine.kv_window": ("Window",),
    "engine.noise": ("Noise",),
    "engine.sampler": ("Sampler",),
    "engine.scheduler": ("EarliestDeadline", "RoundRobin"),
    "errors": ("CheckpointError", "Error", "OutputError", "PromptError"),
    "media.writer": ("VideoWriter",),
    "models.dit": ("CausalDiT", "DiTConfig"),
    "models.vae.layers": ("VAEConfig",),
    "models.vae.taehv": ("TAEHV",),
    "models.vae.wan": ("CausalVAE",),
    "ops": ("attention",),
    "ops.threads": ("set_threads",),
    "pipeline": ("Pipeline", "load", "load_text"),
    "positions.rope": ("Rope",),
    "positions.sink_gate": ("SinkGate",),
    "session.apart": ("decode_latents", "send_latents"),
    "session.prompt_switch": ("SwitchLatency",),
    "session.session": ("LatentChunk", "Session"),
    "session.snapshot": ("Snapshot",),
    "session.stream": ("Chunk", "LatentStream", "Stream"),
    "session.stream_engine": ("StreamEngine",),
    "text.embeddings": ("EmbeddingFile",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted({*_HOME_OF, "library"})


def library() -> Path:
    """The path of liblolrt.so, on macOS liblolrt.dylib, for programs that load it themselves. Its headers are in the folder `include`
    beside its folder (docs/embedding.md)."""
    return Path(__file__).parent / "lib" / f"liblolrt{'.dylib' if sys.platform == 'darwin' else '.so'}"


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lolrt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lolrt.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
