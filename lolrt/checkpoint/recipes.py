"""How published weights are sampled, where the names that they are published under say it: their tensors do not.

Only defaults follow from names. What a model's settings say (model.json, TOML), and options, come first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lolrt.fields import fields_of

FOUR_STEPS = [1000, 750, 500, 250]
NOTHING_SAYS = (
    "; nothing says how it was trained: these are Self-Forcing's defaults, --chunk-frames 1 is for weights that were trained frame by "
    "frame, --timesteps and --first-timesteps for another number of steps"
)
WHOLE_CLIPS = (
    "was trained on whole clips at once, each frame of which sees the later ones too: a stream of it soon falls apart; take causal "
    "weights, such as Self-Forcing's"
)


@dataclass(frozen=True)
class Recipe:
    title: str
    """Whose it is, for people."""
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Of `model_files.SETTINGS`, those that are other than the defaults."""
    weights: str | None = None
    """The entry of a training checkpoint that is used, where it is not the averaged one."""
    causal: bool = True
    """Whether a frame was trained to see nothing of the later ones."""

    def __str__(self) -> str:
        return f"as of {self.title}, which its name says"


def _frame_by_frame(*steps: int) -> dict[str, Any]:
    """Causal-Forcing's and Causal-Forcing++'s configs, causal_forcing_dmd_framewise*.yaml."""
    sampler = {"timesteps": list(steps), **({} if len(steps) > 2 else {"first_timesteps": FOUR_STEPS})}
    return {"chunk_frames": 1, "sampler": sampler}


# In the name of the DiT's file and of its folder, "folder/file", the first that is found counts; None: it is causal, and no more is known.
NAMES: tuple[tuple[str, Recipe | None], ...] = (
    (r"framewise[-_]?1[-_]?step", Recipe("Causal-Forcing++, frame by frame in 1 step", _frame_by_frame(1000))),
    (r"framewise[-_]?2[-_]?step", Recipe("Causal-Forcing++, frame by frame in 2 steps", _frame_by_frame(1000, 500))),
    (r"framewise", Recipe("Causal-Forcing, frame by frame in 4 steps", _frame_by_frame(*FOUR_STEPS))),
    (r"chunkwise|causal[-_]forcing", Recipe("Causal-Forcing, by chunks", weights="generator")),
    (r"longlive", Recipe("LongLive", weights="generator")),
    (r"self[-_]forcing|sfwan", Recipe("Self-Forcing")),
    (r"caus|forcing|stream|krea|real[-_]?time", None),
    (r"fast[-_]?wan", Recipe("FastWan", causal=False)),
    (r"turbo[-_]?wan", Recipe("TurboWan", causal=False)),
    (r"wan[-_]?2[._]?[12][-_](t2v|ti2v)", Recipe("Wan", causal=False)),
)
# In a diffusers folder, the kind of pipeline that model_index.json names.
PIPELINES = {
    "WanPipeline": Recipe("Wan", causal=False),
    "WanDMDPipeline": Recipe("FastWan", causal=False),
    "WanCausalDMDPipeline": Recipe("Self-Forcing"),
}


def recipe_of(dit: Path, pipeline: object) -> Recipe | None:
    """dit: the DiT's file; pipeline: what the model_index.json beside its folder names."""
    folder = dit.parent.parent if dit.parent.name == "transformer" else dit.parent
    name = f"{folder.name}/{dit.name}".lower()
    found = [recipe for pattern, recipe in NAMES if re.search(pattern, name)]
    return found[0] if found else PIPELINES.get(str(pipeline))


def applied(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings, and where these say nothing, the recipe's."""
    sampler = {**recipe.settings.get("sampler", {}), **settings.get("sampler", {})}
    return {**recipe.settings, **settings, **({"sampler": sampler} if sampler else {})}


@dataclass(frozen=True)
class Sampling:
    """What a stream of a model is sampled with, unless options say otherwise."""

    chunk_frames: Any
    timesteps: Any
    first_timesteps: Any
    shift: Any
    because: str
    """What says so, as the rest of a sentence."""

    def __str__(self) -> str:
        first = f" ({_listed(self.first_timesteps)} for the first chunk)" if self.first_timesteps else ""
        frames = f"{self.chunk_frames} frame{'s' if self.chunk_frames != 1 else ''} a chunk"
        return f"{frames}, timesteps {_listed(self.timesteps)}{first}, shift {_listed(self.shift)}{self.because}"


def sampling(settings: Mapping[str, Any], recipe: Recipe | None) -> Sampling:
    sampler = settings.get("sampler", {})
    steps = {name: _plain(sampler.get(name) or _default("Sampler", name)) for name in ("timesteps", "first_timesteps", "shift")}
    if recipe is not None:
        because = f", {recipe}"
    else:
        because = ", as the model's settings say" if sampler or "chunk_frames" in settings else NOTHING_SAYS
    return Sampling(settings.get("chunk_frames", _default("Window", "chunk_frames")), **steps, because=because)


def _default(dataclass: str, name: str) -> Any:
    return next(found.default for found in fields_of(dataclass) if found.name == name)


def _plain(value: Any) -> Any:
    """As JSON takes it: what a model's settings hold is checked when they are used."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or type(value) is int or (type(value) is float and math.isfinite(value)) else str(value)


def _listed(steps: Any) -> str:
    if isinstance(steps, list):
        return ", ".join(map(str, steps))
    return f"{steps:g}" if isinstance(steps, float) else str(steps)
