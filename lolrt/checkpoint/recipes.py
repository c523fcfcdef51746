"""Recipes: how published weights are sampled. A model's settings name one, or the names under which its weights are published show it; the
tensors do not.

A recipe sets only defaults. The settings of a model (model.json, TOML), and options, override it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lolrt.fields import fields_of

FOUR_STEPS = [1000, 750, 500, 250]
NOTHING_SAYS = (
    "; nothing says how it was trained: it is taken for causal weights, with Self-Forcing's defaults; those that were trained frame by "
    'frame take a .toml file with recipe = "framewise-2step" (-1step, -4step), or --chunk-frames 1, --timesteps and --first-timesteps'
)
WHOLE_CLIPS = (
    "was trained on whole clips at once, each frame of which sees the later ones too: a stream of it soon falls apart; take causal "
    "weights, such as Self-Forcing's. That it is this model {source}; if the weights are causal ones, or a LoRA makes them so, say so with "
    'recipe = "self-forcing" in a .toml file'
)


@dataclass(frozen=True)
class Recipe:
    title: str
    """The name of the model family, for people."""
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The settings, as in `model_files.SETTINGS`, that differ from the defaults."""
    weights: str | None = None
    """The entry of a training checkpoint to use, if that is not the averaged one."""
    causal: bool = True
    """Whether the model was trained so that no frame sees later ones."""
    source: str = "its name says"
    """How it is known, as the rest of a sentence."""

    def __str__(self) -> str:
        return f"as of {self.title}, which {self.source}"


def _frame_by_frame(*steps: int) -> dict[str, Any]:
    """The settings of Causal-Forcing and Causal-Forcing++, causal_forcing_dmd_framewise*.yaml."""
    sampler = {"timesteps": list(steps), **({} if len(steps) > 2 else {"first_timesteps": FOUR_STEPS})}
    return {"chunk_frames": 1, "sampler": sampler}


# The presets that a model's settings can name (`recipe = "framewise-2step"`).
RECIPES = {
    "framewise-1step": Recipe("Causal-Forcing++, frame by frame in 1 step", _frame_by_frame(1000)),
    "framewise-2step": Recipe("Causal-Forcing++, frame by frame in 2 steps", _frame_by_frame(1000, 500)),
    "framewise-4step": Recipe("Causal-Forcing, frame by frame in 4 steps", _frame_by_frame(*FOUR_STEPS)),
    "chunkwise": Recipe("Causal-Forcing, by chunks", weights="generator"),
    "longlive": Recipe("LongLive", weights="generator"),
    "self-forcing": Recipe("Self-Forcing"),
}
# Patterns for the DiT's folder and file name, "folder/file". The first match counts. None: the model is causal, and nothing else is known.
NAMES: tuple[tuple[str, Recipe | None], ...] = (
    (r"framewise[-_]?1[-_]?step", RECIPES["framewise-1step"]),
    (r"framewise[-_]?2[-_]?step", RECIPES["framewise-2step"]),
    (r"framewise", RECIPES["framewise-4step"]),
    (r"chunkwise|causal[-_]forcing", RECIPES["chunkwise"]),
    (r"longlive", RECIPES["longlive"]),
    (r"self[-_]forcing|sfwan", RECIPES["self-forcing"]),
    (r"caus|forcing|stream|krea|real[-_]?time", None),
    (r"fast[-_]?wan", Recipe("FastWan", causal=False)),
    (r"turbo[-_]?wan", Recipe("TurboWan", causal=False)),
    (r"wan[-_]?2[._]?[12][-_](t2v|ti2v)", Recipe("Wan", causal=False)),
)
# The pipeline class in the model_index.json of a diffusers folder.
_INDEX = "its model_index.json says"
PIPELINES = {
    "WanPipeline": Recipe("Wan", causal=False, source=_INDEX),
    "WanDMDPipeline": Recipe("FastWan", causal=False, source=_INDEX),
    "WanCausalDMDPipeline": replace(RECIPES["self-forcing"], source=_INDEX),
}
# The class of the DiT in its config, if the weights are causal (CausalWanModel, CausalWanTransformer3DModel). The other classes, WanModel
# and WanTransformer3DModel, say nothing: the code of Self-Forcing and its kin keeps Wan's own config beside its weights.
CAUSAL = re.compile(r"Causal\w+")


def recipe_of(dit: Path, pipeline: object, kind: object) -> Recipe | None:
    """The recipe of a model; None if there is none. dit: the file of the DiT. pipeline: the class in the model_index.json beside its
    folder. kind: the class in the DiT's config."""
    folder = dit.parent.parent if dit.parent.name == "transformer" else dit.parent
    if folder.parent.name == "snapshots":  # the hub's cache: models--OWNER--NAME/snapshots/COMMIT
        folder = folder.parent.parent
    name = f"{folder.name}/{dit.name}".lower()
    found = [recipe for pattern, recipe in NAMES if re.search(pattern, name)]
    recipe = found[0] if found else PIPELINES.get(str(pipeline))
    return None if recipe and not recipe.causal and CAUSAL.fullmatch(str(kind)) else recipe


def applied(recipe: Recipe, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings, completed with those of the recipe."""
    sampler = {**recipe.settings.get("sampler", {}), **settings.get("sampler", {})}
    return {**recipe.settings, **settings, **({"sampler": sampler} if sampler else {})}


@dataclass(frozen=True)
class Sampling:
    """The sampling settings of a model, which options can override."""

    chunk_frames: Any
    timesteps: Any
    first_timesteps: Any
    shift: Any
    method: Any
    because: str
    """The source of these settings, as the rest of a sentence."""

    def __str__(self) -> str:
        first = f" ({_listed(self.first_timesteps)} for the first chunk)" if self.first_timesteps else ""
        frames = f"{self.chunk_frames} frame{'s' if self.chunk_frames != 1 else ''} a chunk"
        return f"{frames}, timesteps {_listed(self.timesteps)}{first}, shift {_listed(self.shift)}, {self.method}{self.because}"


def sampling(settings: Mapping[str, Any], recipe: Recipe | None) -> Sampling:
    sampler = settings.get("sampler", {})
    steps = {name: _plain(sampler.get(name) or _default("Sampler", name)) for name in ("timesteps", "first_timesteps", "shift", "method")}
    if recipe is not None:
        because = f", {recipe}"
    else:
        because = ", as the model's settings say" if sampler or "chunk_frames" in settings else NOTHING_SAYS
    return Sampling(settings.get("chunk_frames", _default("Window", "chunk_frames")), **steps, because=because)


def _default(dataclass: str, name: str) -> Any:
    return next(found.default for found in fields_of(dataclass) if found.name == name)


def _plain(value: Any) -> Any:
    """A value for JSON. The settings of a model are checked only when they are used, so it can be anything."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or type(value) is int or (type(value) is float and math.isfinite(value)) else str(value)


def _listed(steps: Any) -> str:
    if isinstance(steps, list):
        return ", ".join(map(str, steps))
    return f"{steps:g}" if isinstance(steps, float) else str(steps)
