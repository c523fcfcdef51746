"""lolrt: endless video from streaming autoregressive diffusion models.

    import lolrt

    pipe = lolrt.load("tiny")
    for chunk in pipe.stream(pipe.example_prompts[0], seed=7):
        chunk.frames  # uint8 [n, height, width, 3]

Importing this module is cheap: torch and the kernels are loaded with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lolrt.cache import Window as Window
    from lolrt.checkpoint import load_dit as load_dit
    from lolrt.checkpoint import load_taehv as load_taehv
    from lolrt.checkpoint import load_vae as load_vae
    from lolrt.dit import CausalDiT as CausalDiT
    from lolrt.dit import DiTConfig as DiTConfig
    from lolrt.embeddings import EmbeddingFile as EmbeddingFile
    from lolrt.errors import CheckpointError as CheckpointError
    from lolrt.errors import Error as Error
    from lolrt.errors import OutputError as OutputError
    from lolrt.errors import PromptError as PromptError
    from lolrt.gate import SinkGate as SinkGate
    from lolrt.noise import Noise as Noise
    from lolrt.ops import attention as attention
    from lolrt.pipeline import Pipeline as Pipeline
    from lolrt.pipeline import load as load
    from lolrt.pipeline import load_text as load_text
    from lolrt.rope import Rope as Rope
    from lolrt.sampler import Sampler as Sampler
    from lolrt.stream import Chunk as Chunk
    from lolrt.stream import LatentChunk as LatentChunk
    from lolrt.stream import LatentStream as LatentStream
    from lolrt.stream import Stream as Stream
    from lolrt.switch import SwitchLatency as SwitchLatency
    from lolrt.taehv import TAEHV as TAEHV
    from lolrt.threads import set_threads as set_threads
    from lolrt.vae import CausalVAE as CausalVAE
    from lolrt.vae_layers import VAEConfig as VAEConfig
    from lolrt.video import VideoWriter as VideoWriter

__version__ = "0.1.0"

_HOMES = {
    "cache": ("Window",),
    "checkpoint": ("load_dit", "load_taehv", "load_vae"),
    "dit": ("CausalDiT", "DiTConfig"),
    "embeddings": ("EmbeddingFile",),
    "errors": ("CheckpointError", "Error", "OutputError", "PromptError"),
    "gate": ("SinkGate",),
    "noise": ("Noise",),
    "ops": ("attention",),
    "pipeline": ("Pipeline", "load", "load_text"),
    "rope": ("Rope",),
    "sampler": ("Sampler",),
    "stream": ("Chunk", "LatentChunk", "LatentStream", "Stream"),
    "switch": ("SwitchLatency",),
    "taehv": ("TAEHV",),
    "threads": ("set_threads",),
    "vae": ("CausalVAE",),
    "vae_layers": ("VAEConfig",),
    "video": ("VideoWriter",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lolrt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lolrt.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
