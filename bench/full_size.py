"""A full-size model end to end on this CPU: `python -m bench.full_size [MODEL]`, minutes.

Without a model, one of Wan2.1-T2V-1.3B's sizes with random weights is written to a temporary folder (3 GB): time does not depend on
what the weights say. Runs a stream until its window is full. Its first chunk and the first one over the full window are timed whole,
from noise to frames in a file: all denoise passes, the cache pass, decoding, H.264; the chunks between them are not decoded.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lolrt
from bench import stages
from lolrt.bench.machine import describe
from lolrt.cache import Window
from lolrt.checkpoint.inspect import size
from lolrt.checkpoint.synth import synth
from lolrt.memory import plan_model
from lolrt.pipeline import preferred_dtype
from lolrt.video import VideoWriter

WINDOW = Window()
PROMPT = "a red balloon over the hills at dusk"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.full_size", description="Times whole chunks of a full-size model.")
    parser.add_argument("model", nargs="?", help="as for lolrt generate (default: 1.3B with random weights)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or synth(Path(folder, "model"))
        for line in measure(model, Path(folder, "video.mp4")):
            print(line, flush=True)


def measure(model: str | Path, output: Path) -> list[str]:
    """Lines of Markdown about a model."""
    memory, (height, width) = plan_model(model, None, preferred_dtype(), WINDOW)
    before = peak_bytes()
    loading, pipe = timed(lambda: lolrt.load(model))
    stream = pipe.latent_stream(PROMPT, window=WINDOW)
    state: dict[str, torch.Tensor] = {}
    chunks: dict[str, dict[str, float]] = {}
    with VideoWriter(output, pipe.height, pipe.width, pipe.fps) as writer:

        def whole_chunk() -> None:
            video = pipe.vae.decode(next(stream).latents, state)
            writer.write(video.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous())

        chunks["first chunk"] = stages.of(whole_chunk)
        for _ in range(WINDOW.pages // WINDOW.chunk_frames - 2):
            next(stream)
        chunks["over the full window"] = stages.of(whole_chunk)
    machine = describe()
    rows = [
        f"| {stage} | " + " | ".join(f"{seconds.get(stage, 0.0):.1f} | {seconds.get(stage, 0.0) / sum(seconds.values()):.0%}"
                                    for seconds in chunks.values()) + " |"
        for stage in chunks["first chunk"]
    ]  # fmt: skip
    return [
        f"{pipe.name}, {width} x {height}, {str(pipe.dit.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads; "
        f"{machine['cpu']}; kernels {machine['kernels']}; {machine['versions']}.",
        "",
        "| stage | " + " | ".join(f"{name}, s | share" for name in chunks) + " |",
        "|---" * (1 + 2 * len(chunks)) + "|",
        *rows,
        "| all | " + " | ".join(f"{sum(seconds.values()):.1f} | " for seconds in chunks.values()) + " |",
        "",
        f"Loading took {loading:.1f} s. Planned were {size(memory.total)}; the process grew by {size(peak_bytes() - before)} at most, from "
        f"{size(before)} of Python and torch.",
    ]


def peak_bytes() -> int:
    """The most that this process has held in memory so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
