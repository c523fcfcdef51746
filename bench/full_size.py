"""A full-size model end to end on this CPU: `python -m bench.full_size [MODEL] [--linear int8] [--kv int8] [--vae tiny]`, takes minutes.

Without MODEL, a model of Wan2.1-T2V-1.3B's sizes with random weights is written to a temporary folder (3 GB); the time does not depend
on the values of weights. One chunk over the full window is timed, from noise to frames in a file: all denoise passes, the cache pass,
decoding, H.264. The frames before it are given, as for a video that the stream continues.
"""

from __future__ import annotations

import argparse
import json
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
from lolrt.checkpoint.inspect import size
from lolrt.checkpoint.recipes import RECIPES
from lolrt.checkpoint.synth import synth
from lolrt.cli.options import add_kv, add_linear, add_vae, kv_dtype
from lolrt.media.writer import VideoWriter
from lolrt.memory_plan import plan_model
from lolrt.pipeline import preferred_dtype

PROMPT = "a red balloon over the hills at dusk"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.full_size", description="Times a whole chunk of a full-size model.")
    parser.add_argument("model", nargs="?", help="as for lolrt generate (default: 1.3B with random weights)")
    parser.add_argument("--recipe", choices=RECIPES, help="how the random weights are sampled (default: Self-Forcing's way)")
    add_linear(parser)
    add_kv(parser)
    add_vae(parser)
    parser.set_defaults(device="cpu")
    return parser


def main() -> None:
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or synth(Path(folder, "1.3B-random"))
        if arguments.recipe:
            settings = Path(model, "model.json")
            settings.write_text(json.dumps(json.loads(settings.read_text()) | {"recipe": arguments.recipe}))
        for line in measure(model, arguments, Path(folder, "video.mp4")):
            print(line, flush=True)


def measure(model: str | Path, options: argparse.Namespace, output: Path) -> list[str]:
    """Lines of Markdown about a model."""
    parts: dict[str, Any] = {"vae": options.vae, "vae_tile": options.vae_tile, "linear": options.linear}
    before = peak_bytes()
    loading, pipe = timed(lambda: lolrt.load(model, **parts))
    window = pipe.window
    memory, (height, width) = plan_model(model, None, preferred_dtype(), window, kv_dtype=kv_dtype(options), **parts)
    config, factor = pipe.dit.config, pipe.vae.config.spatial_factor
    given = torch.randn(window.recent_frames, config.in_dim, height // factor, width // factor)
    stream = pipe.latent_stream(PROMPT, start=given, kv_dtype=kv_dtype(options))
    for _ in range(window.recent_frames // window.chunk_frames):
        next(stream)
    state: dict[str, torch.Tensor] = {}
    pipe.vae.decode(given[:1], state)  # the first frame of a video is unlike all others
    with VideoWriter(output, pipe.height, pipe.width, pipe.fps) as writer:

        def whole_chunk() -> None:
            video = pipe.vae.decode(next(stream).latents, state)
            writer.write(video.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous())

        seconds = stages.of(whole_chunk)
    whole, machine = sum(seconds.values()), describe()
    return [
        f"{pipe.name}, {width} x {height}, chunk of {window.chunk_frames}, {len(pipe.sampler.timesteps)} steps, "
        f"{str(pipe.dit.dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads, "
        f"linear layers {options.linear}, pages {options.kv}, VAE {options.vae}; {machine['cpu']}; kernels {machine['kernels']}; "
        f"{machine['versions']}.",
        "",
        "| stage | s | share |",
        "|---|---|---|",
        *(f"| {stage} | {part:.1f} | {part / whole:.0%} |" for stage, part in seconds.items()),
        f"| all | {whole:.1f} | |",
        "",
        f"Loading took {loading:.1f} s. Planned were {size(memory.total)}; the process grew by {size(peak_bytes() - before)} at most, from "
        f"{size(before)} of Python and torch.",
    ]


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
