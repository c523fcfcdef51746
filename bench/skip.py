"""Pages that are not worth reading: what `Window.skip` leaves out of `tiny`'s attention, what that saves, and what it changes.

    python -m bench.skip --frames 120 --videos 4      # some minutes of one core; prints Markdown

Latents only, in float32 and on one thread; bfloat16 beside it says how far another rounding leads. Times are CPU times of all calls of the
same rollouts in one run. At the size of the 1.3B model, attention is timed with pages left out as heads of `tiny` leave them out, in a pass
that leaves some out.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

import lolrt
from bench.report import table
from bench.rollouts import rms, run
from lolrt import ops
from lolrt.bench.machine import describe
from lolrt.models.pass_inputs import PassInputs
from lolrt.pipeline import Pipeline

SKIPS = (0.003, 0.01, 0.02, 0.04)
WINDOW = lolrt.Window()


@dataclass
class Rollout:
    latents: Tensor
    attention_seconds: float
    """CPU time of all calls of self-attention."""
    left_out: list[Tensor] = field(default_factory=list)
    """For each pass over a full window, whether a head leaves a page out: bool [layers, pages, heads]."""

    @property
    def share(self) -> float:
        """The share of all pairs of a head and a page that are left out, over the passes with a full window."""
        return float(torch.stack(self.left_out).float().mean())


class Clock:
    seconds = 0.0


@contextlib.contextmanager
def attention_clock() -> Iterator[Clock]:
    """The CPU time of self-attention, whose calls have a rotation."""
    clock, original = Clock(), ops.frame_attention

    def timed(*args: Any, **options: Any) -> Tensor:
        begin = time.process_time()
        out = original(*args, **options)
        if options.get("rotation") is not None:
            clock.seconds += time.process_time() - begin
        return out

    ops.frame_attention = timed
    try:
        yield clock
    finally:
        ops.frame_attention = original


def rollout(pipe: Pipeline, video: int, frames: int, skip: float) -> Rollout:
    window = replace(WINDOW, skip=skip)
    prompts = pipe.example_prompts
    stream = pipe.latent_stream(prompts[video % len(prompts)], seed=video, window=window)
    left_out: list[Tensor] = []
    config = pipe.dit.config
    nothing = torch.zeros(config.num_layers, window.pages, config.num_heads, dtype=torch.bool)
    original = stream.session.pass_inputs

    def noting(*args: Any, **options: Any) -> PassInputs:
        inputs = original(*args, **options)
        if inputs.page_table.shape[1] == window.pages:
            left_out.append(nothing if inputs.bias is None else inputs.bias[:, 0] == -math.inf)
        return inputs

    stream.session.pass_inputs = noting  # type: ignore[method-assign]
    with attention_clock() as clock:
        latents = torch.cat([chunk.latents for chunk in islice(stream, frames // window.chunk_frames)])
    return Rollout(latents, clock.seconds, left_out)


def motion(latents: Tensor) -> float:
    return rms(latents.diff(dim=0))


def at_real_size(patterns: Tensor, dtype: torch.dtype) -> float:
    """CPU time of one frame's attention at the size of the 1.3B model, four of its heads, over a full window with pages left out as in
    `patterns`, bool [n, pages], one for each head in turn, over that of the same call with all pages; the least of three of each, in
    turns."""
    heads, tokens, dim, pairs, frames = 4, 1560, 128, 22, 1
    pages = patterns.shape[1]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, tokens, heads, dim, generator=generator).to(dtype) for n in (frames, pages, pages))
    pool = torch.zeros(pages, ops.page_elements(dtype, tokens, heads, dim), dtype=dtype)
    page_table = torch.arange(pages, dtype=torch.int32)
    ops.kv_write(k, v, pool, page_table)
    rotation = torch.zeros(1, pages, frames, heads, pairs, 2)
    rotation[..., 0] = 1
    chosen = patterns[torch.randperm(len(patterns), generator=generator)[:heads]].T
    bias = torch.zeros(1, pages, heads).masked_fill(chosen, -math.inf)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(3):
        for skipping in (True, False):
            begin = time.process_time()
            ops.frame_attention(q, pool, page_table[None], tokens, rotation=rotation, bias=bias if skipping else torch.zeros_like(bias))
            seconds[skipping].append(time.process_time() - begin)
    return min(seconds[True]) / min(seconds[False])


def measure(frames: int, videos: int) -> Iterator[str]:
    lolrt.set_threads(1)
    about = describe()
    pipe, other = (lolrt.load("tiny", dtype) for dtype in (torch.float32, torch.bfloat16))
    windows = (range(12, 36), range(36, frames))
    plain = [rollout(pipe, video, frames, 0.0) for video in range(videos)]
    names = [f"frames {part.start} to {part.stop - 1}" for part in windows]
    rows = [["", "pairs left out", "attention, CPU", "at 1.3B's size", *(f"rms, {name}" for name in names), "motion"]]

    def distances(others: list[Tensor]) -> list[str]:
        return [
            f"{sum(rms(one.latents[list(part)] - other[list(part)]) for one, other in zip(plain, others, strict=True)) / videos:.4f}"
            for part in windows
        ]

    moving = sum(motion(one.latents) for one in plain)
    latents = [rollout(other, video, frames, 0.0).latents for video in range(videos)]
    scatter = sum(motion(x) for x in latents) / moving
    rows.append(["none, in bfloat16 instead of float32", "0", "", "", *distances(latents), f"{scatter:.3f}"])
    for skip in SKIPS:
        made = [rollout(pipe, video, frames, skip) for video in range(videos)]
        share = sum(one.share for one in made) / videos
        seconds = sum(one.attention_seconds for one in made) / sum(one.attention_seconds for one in plain)
        patterns = torch.cat(
            [one.transpose(1, 2).flatten(0, 1) for run in made for one in run.left_out if one.any()] or [torch.zeros(12, 12)]
        )
        real = at_real_size(patterns.bool(), pipe.dit.dtype)
        rows.append([
            f"skip={skip}", f"{share:.3f}", f"{seconds:.2f}", f"{real:.2f}", *distances([one.latents for one in made]),
            f"{sum(motion(one.latents) for one in made) / moving:.3f}",
        ])  # fmt: skip
    yield (
        f"{about['cpu']}, {about['kernels']}; one thread; {videos} videos of {frames} latent frames; rms of `tiny`'s latents: "
        f"{rms(plain[0].latents):.3f}."
    )
    yield table(rows[0], rows[1:])


if __name__ == "__main__":
    run("skip", "What Window.skip saves and changes.", 120, measure)
