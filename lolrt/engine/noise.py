"""Noise that depends only on its key, so that any chunk can be made again by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lolrt import _core
from lolrt.errors import Error, check_whole

# (first_frame, n_frames, step) -> float32 [n_frames, channels, height, width]; step 0 is the initial noise, step k the noise that is
# injected before denoise pass k, and the number of denoise passes stands for the noise of the cache pass.
NoiseSource = Callable[[int, int, int], Tensor]


@dataclass(frozen=True)
class Noise:
    """Standard normal noise keyed by (seed, latent frame, step): Philox4x32-10 and Box-Muller, drawn on the CPU."""

    seed: int
    channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        check_whole(seed=self.seed)
        if not 0 <= self.seed < 2**64:
            raise Error(f"seed is {self.seed}; expected a number from 0 to 2^64 - 1")

    def __call__(self, first_frame: int, n_frames: int, step: int) -> Tensor:
        out = torch.empty(n_frames, self.channels, self.height, self.width, dtype=torch.float32, device="cpu")
        for i in range(n_frames):
            _core.normal(self.seed, first_frame + i, step, out[i])
        return out
