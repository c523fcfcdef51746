"""The cache pass, which runs each clean chunk once more for the K and V that later chunks attend to, against doing without it.

    python -m bench.cache_pass --frames 240 --videos 4      # some minutes of one core; prints Markdown

Without it, the pages keep what the last denoise pass wrote, from a sample that still had noise. In between, it runs for the first layers
only. Latents only, of `tiny` in float32; every row is compared with all passes on the same prompts and noise, and bfloat16 says how far
another rounding leads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import lolrt
from bench.report import table
from bench.rollouts import rms, run
from lolrt.bench.machine import describe
from lolrt.checkpoint.recipes import RECIPES
from lolrt.pipeline import Pipeline

WINDOW = lolrt.Window()


@torch.inference_mode()
def rollout(pipe: Pipeline, video: int, frames: int, layers: int) -> Tensor:
    """Latents [frames, ...] of a stream whose cache pass writes the pages of the first `layers` layers only; the others keep what the last
    denoise pass wrote."""
    prompts = pipe.example_prompts
    session = pipe.latent_stream(prompts[video % len(prompts)], seed=video, window=WINDOW).session
    dit, made = pipe.dit, list[Tensor]()
    while len(made) * WINDOW.chunk_frames < frames:
        inputs = session.pending()
        passes = session.config.sampler if made else session.config.sampler.first
        if session.passes_done < len(passes.timesteps):
            chunk = session.passed(dit(inputs))
        elif layers == 0:
            chunk = session.passed(torch.zeros_like(inputs.sample, dtype=torch.float32))
        else:
            own = inputs.write_table.long()
            kept = [pages[own].clone() for pages in inputs.layer_pages[layers:]]
            flow = dit(inputs)
            for pages, before in zip(inputs.layer_pages[layers:], kept, strict=True):
                pages[own] = before
            chunk = session.passed(flow)
        if chunk is not None:
            made.append(chunk.latents)
    return torch.cat(made)


def measure(frames: int, videos: int) -> Iterator[str]:
    lolrt.set_threads(1)
    about = describe()
    pipe, other = (lolrt.load("tiny", dtype) for dtype in (torch.float32, torch.bfloat16))
    depth = pipe.dit.config.num_layers
    parts = [slice(12, 36), slice(frames // 2, frames)]
    plain = [rollout(pipe, video, frames, depth) for video in range(videos)]

    def row(name: str, made: list[Tensor]) -> list[str]:
        pairs = list(zip(made, plain, strict=True))
        far = [f"{sum(rms(x[part] - y[part]) for x, y in pairs) / videos:.3f}" for part in parts]
        size = sum(rms(x[parts[1]]) for x in made) / sum(rms(x[parts[1]]) for x in plain)
        moving = sum(rms(x[parts[1]].diff(dim=0)) for x in made) / sum(rms(x[parts[1]].diff(dim=0)) for x in plain)
        return [name, *far, f"{size:.3f}", f"{moving:.3f}"]

    rows = [row("all, in bfloat16", [rollout(other, video, frames, depth) for video in range(videos)])]
    for layers in sorted({depth // 2, 0}, reverse=True):
        rows.append(
            row(f"the first {layers} of {depth} layers" if layers else "none", [rollout(pipe, v, frames, layers) for v in range(videos)])
        )
    passes = len(pipe.sampler.timesteps) + 1
    level = pipe.sampler.noise_levels[-1].item()
    yield (
        f"{about['cpu']}, {about['kernels']}; {videos} videos of {frames} latent frames of `tiny`; one pass in {passes} is the cache pass; "
        "the last denoise pass "
        f"has a noise level of {level:.2f}, the cache pass one of {pipe.sampler.context_noise:g}."
    )
    header = ["cache pass", *(f"rms, frames {part.start} to {part.stop - 1}" for part in parts), "size of latents", "motion"]
    yield table(header, rows)
    yield "The noise level of the sample from which K and V would be, by recipe:"
    yield table(["recipe", "passes a chunk", "noise level"], [levels(name) for name in RECIPES])


def levels(recipe: str) -> list[str]:
    steps = RECIPES[recipe].settings.get("sampler", {}).get("timesteps", lolrt.Sampler().timesteps)
    sampler = lolrt.Sampler(timesteps=tuple(steps))
    return [recipe, str(len(steps) + 1), f"{sampler.noise_levels[-1].item():.3f}"]


if __name__ == "__main__":
    run("cache_pass", "The cache pass against doing without it.", 240, measure)
