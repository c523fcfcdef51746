"""What the runtime predicts for a clip, chunk by chunk. Training in one pass is compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import lolrt
from lolrt import CausalDiT


def runtime_flow(dit: CausalDiT, context: Tensor, noisy: Tensor, prompts: Mapping[int, Tensor], rope: lolrt.Rope, chunk: int = 3) -> Tensor:
    """The flow for `noisy` [frames, z, h, w] at noise level 0.7 in chunks of so many frames, with `context` as the frames in the cache.

    prompts: each by the frame from which it applies, the first by 0.
    """
    denoised = []

    @dataclass(frozen=True)
    class Scripted(lolrt.Sampler):
        """Records what was denoised, and remembers the clip's own chunk instead."""

        def context(self, latents: Tensor, noise: object, first_frame: int) -> Tensor:
            denoised.append(latents)
            return context[first_frame : first_frame + len(latents)]

    def noise(first_frame: int, n_frames: int, step: int) -> Tensor:
        return noisy[first_frame : first_frame + n_frames]

    sampler = Scripted(timesteps=(700,), shift=1.0, method="euler", context_noise=0.1)
    window = lolrt.Window(chunk_frames=chunk)
    stream = lolrt.LatentStream(dit, prompts[0], *noisy.shape[2:], noise=noise, rope=rope, sampler=sampler, window=window)
    for first in range(0, len(noisy), chunk):
        if first and first in prompts:
            stream.set_prompt(prompts[first])
        next(stream)
    return (noisy - torch.cat(denoised)) / 0.7
