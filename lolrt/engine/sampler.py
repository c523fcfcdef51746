"""Few-step flow matching: from noise to a clean chunk in a handful of passes of the model.

A sample at noise level s is x = (1 - s) * clean + s * noise; the model predicts the flow v = noise - clean.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from lolrt import ops
from lolrt.engine.noise import NoiseSource
from lolrt.errors import Error, check_real

# The published schedule has 1000 training timesteps; noise level 1 is timestep 1000.
TRAIN_TIMESTEPS = 1000
# With more, all noise levels but the last are 1.
MOST_SHIFT = 1000.0


@dataclass(frozen=True)
class Sampler:
    """The denoise passes of one chunk; the defaults are the published ones of Self-Forcing and LongLive.

    Source: Self-Forcing `pipeline/causal_inference.py` and `utils/scheduler.py` (FlowMatchScheduler, `warp_denoising_step`).
    """

    timesteps: tuple[int, ...] = (1000, 750, 500, 250)
    """Timesteps of the unshifted schedule, falling, each in 1 .. 1000."""
    first_timesteps: tuple[int, ...] = ()
    """The same for the first chunk of a stream, which has no earlier frames to follow; by default as for the others. A model that was not
    distilled decides the layout of the picture at high noise, and needs more passes there."""
    shift: float = 5.0
    """Moves the noise levels up: s -> shift * s / (1 + (shift - 1) * s)."""
    method: Literal["renoise", "euler"] = "renoise"
    """"renoise": each pass predicts the clean chunk, and fresh noise brings it to the next level (models distilled to few steps). "euler":
    each pass follows the flow to the next level (models that are not distilled)."""
    context_noise: float = 0.0
    """Noise level of the clean chunk in the pass that writes its final K and V."""

    def __post_init__(self) -> None:
        check_real(shift=self.shift, context_noise=self.context_noise)
        for name, steps in ("timesteps", self.timesteps), ("first_timesteps", self.first_timesteps or self.timesteps):
            known = all(isinstance(t, Real) and 1 <= t <= TRAIN_TIMESTEPS and t % 1 == 0 for t in steps)
            if not steps or not known or any(a <= b for a, b in itertools.pairwise(steps)):
                raise Error(
                    f"{name} are {list(steps)}; expected whole numbers from {TRAIN_TIMESTEPS} down to 1, each less than the one before"
                )
        if self.method not in ("renoise", "euler"):
            raise Error(f'method is {self.method!r}; expected "renoise" or "euler"')
        if not 0 <= self.context_noise < 1:
            raise Error(f"context_noise is {self.context_noise}; expected at least 0 and less than 1")
        if not (0 < self.shift <= MOST_SHIFT and self.noise_levels.isfinite().all()):
            raise Error(f"shift is {self.shift}; expected a number above 0, up to {MOST_SHIFT:g}, such as the default 5")

    @property
    def first(self) -> Sampler:
        """The sampler of a stream's first chunk, if it has passes of its own."""
        return replace(self, timesteps=self.first_timesteps, first_timesteps=())

    @cached_property
    def noise_levels(self) -> Tensor:
        """The noise level before each pass, float32, as the published scheduler computes it."""
        levels = torch.linspace(1.0, 0.0, TRAIN_TIMESTEPS + 1, dtype=torch.float32, device="cpu")[:-1]
        levels = self.shift * levels / (1 + (self.shift - 1) * levels)
        return levels[[TRAIN_TIMESTEPS - t for t in self.timesteps]]

    @property
    def model_timesteps(self) -> Tensor:
        """The timesteps that the model gets, one for each pass and last that of the cache pass: 1000 times the noise level, float32."""
        return torch.cat([self.noise_levels, torch.tensor([self.context_noise], dtype=torch.float32, device="cpu")]) * TRAIN_TIMESTEPS

    @cached_property
    def steps(self) -> Tensor:
        """For each pass how far its flow is followed back, and the level to which fresh noise then brings the sample (0: no noise), as
        `ops.sampler_step` takes them: float64 [passes, 2]."""
        before = self.noise_levels.double()
        after = torch.cat([before[1:], before.new_zeros(1)])
        return torch.stack([before - after, torch.zeros_like(after)] if self.method == "euler" else [before, after], 1)

    def step(self, sample: Tensor, k: int, velocity: Tensor, noise: NoiseSource, first_frame: int) -> Tensor:
        """The sample after pass k, whose flow is `velocity`; after the last pass the clean chunk."""
        level, after = self.steps[k].tolist()
        fresh = noise(first_frame, len(sample), k + 1).float() if after else None
        return ops.sampler_step(sample, level, velocity, after=after, noise=fresh)

    def denoise(self, flow: Callable[[Tensor, int], Tensor], noise: NoiseSource, first_frame: int, n_frames: int) -> Tensor:
        """A clean chunk, float32 [n_frames, channels, height, width]; `flow(sample, k)` runs pass k of the model on it."""
        sample = noise(first_frame, n_frames, 0).float()
        for k in range(len(self.timesteps)):
            sample = self.step(sample, k, flow(sample, k), noise, first_frame)
        return sample

    def context(self, clean: Tensor, noise: NoiseSource, first_frame: int) -> Tensor:
        """The input of the cache pass: the clean chunk at noise level `context_noise`."""
        if not self.context_noise:
            return clean
        fresh = noise(first_frame, clean.shape[0], len(self.timesteps)).float()
        return (1 - self.context_noise) * clean + self.context_noise * fresh
