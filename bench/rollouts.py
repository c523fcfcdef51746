"""What the experiments on rollouts of `tiny` share: their command line, and the distance of latents."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from torch import Tensor


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def run(name: str, description: str, frames: int, measure: Callable[[int, int], Iterator[str]]) -> None:
    """Prints what `measure` gives for so many latent frames of so many videos, by default `frames` of four."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=description)
    parser.add_argument("--frames", type=int, default=frames, help="latent frames of a video")
    parser.add_argument("--videos", type=int, default=4)
    arguments = parser.parse_args()
    for text in measure(arguments.frames, arguments.videos):
        print(text, flush=True)
