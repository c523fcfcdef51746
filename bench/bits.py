"""Checks whether two commits compute the same bits: compares hashes of streams of `tiny` from this tree and from another commit.

    python -m bench.bits            # the hashes of this tree, a line a stream
    python -m bench.bits COMMIT     # builds COMMIT in build/commits, runs this file there, and names the streams that differ

Only calls that both commits have may be used here.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch

import lolrt
from lolrt import Rope, Sampler, SinkGate, Window

Recache = Literal["window", "sinks", "none"]
RECACHES: tuple[Recache, ...] = get_args(Recache)
CHUNKS = 6  # the window of 12 frames is full from the fourth on

DRAWN, PLAIN = Rope(), Rope(sigma=0)  # set explicitly in every stream, because commits may differ in what the model names
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"rope": PLAIN},
    "jitter": {},  # as all that name no other
    "jitter by layer": {"rope": Rope(scope="layer", spread="stratified")},
    "window positions": {"rope": Rope(positions="window", sigma=0)},
    "anchored, YaRN": {"rope": Rope(positions="anchored", frequencies="yarn", stretch=4)},
    "gate, always": {"window": Window(gate=SinkGate(-2.0))},
    "gate, realigned": {"rope": PLAIN, "window": Window(gate=SinkGate(-torch.inf, "realigned", kernel_level=-1, after_frames=9))},
    "gate, synchronised": {"rope": PLAIN, "window": Window(gate=SinkGate(-torch.inf, "synchronised", head_share=0.1))},
    "recall": {"window": Window(recall_frames=3, store_frames=6)},
    "probe": {"probe": True},
    "no sinks": {"window": Window(sink_frames=0, recent_frames=6)},
    "frame-wise": {"window": Window(recent_frames=6, chunk_frames=1)},
    "renoise": {"sampler": Sampler(timesteps=(1000, 750, 500, 250), method="renoise", context_noise=0.1)},
    "far away": {"start_frame": 10**9},
}


def streams(pipe: lolrt.Pipeline) -> Iterator[tuple[str, lolrt.LatentStream, Callable[[int], None]]]:
    """Name, stream, and what happens before its chunk i."""
    first, second = pipe.example_prompts[:2]
    for name, options in OPTIONS.items():
        yield name, pipe.latent_stream(first, seed=7, **{"rope": DRAWN, **options}), lambda i: None
    for recache in RECACHES:
        stream = pipe.latent_stream(first, seed=7, rope=DRAWN)

        def switch(i: int, stream: lolrt.LatentStream = stream, recache: Recache = recache) -> None:
            if i == 3:
                stream.set_prompt(pipe.encode_text(second), recache=recache, over_chunks=2)

        yield f"prompt switch, recache {recache}", stream, switch
    ramp = torch.arange(pipe.height * pipe.width * 3, dtype=torch.int64).view(pipe.height, pipe.width, 3)
    clip = [((ramp // 7 + 5 * i) % 256).to(torch.uint8) for i in range(14)]
    for name, frames in ("an image", clip[:1]), ("a video", clip):
        yield f"start from {name}", pipe.latent_stream(first, seed=7, rope=DRAWN, start=pipe.encode_video(frames)), lambda i: None


def digest(tensors: list[torch.Tensor]) -> str:
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


def hashes() -> Iterator[tuple[str, str]]:
    lolrt.set_threads(1)  # torch's products may depend on the number of threads
    for dtype in torch.float32, torch.bfloat16:
        pipe = lolrt.load("tiny", dtype)
        few = dtype == torch.bfloat16  # slow on a CPU that does not multiply bfloat16, and on the same code paths
        for name, stream, before in itertools.islice(streams(pipe), 2 if few else None):
            tensors = []
            for i in range(CHUNKS):
                before(i)
                chunk = next(stream)
                tensors += [chunk.latents] if chunk.mass is None else [chunk.latents, chunk.mass]
            yield f"{str(dtype).removeprefix('torch.')}, {name}", digest(tensors)
        video = pipe.stream(pipe.example_prompts[0], seed=7, rope=DRAWN)
        yield f"{str(dtype).removeprefix('torch.')}, video frames", digest([next(video).frames for _ in range(3)])


def hashes_of(commit: str) -> dict[str, str]:
    from bench.commits import built, script_there

    child = script_there(built(commit), Path(__file__))
    lines, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"the hashes of {commit} failed with status {child.returncode}")
    return dict(line.split("  ", 1)[::-1] for line in lines.splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bits", description="Compares the bits that two commits compute.")
    parser.add_argument("commit", metavar="COMMIT", nargs="?", help="what to compare this tree with")
    commit = parser.parse_args().commit
    there = hashes_of(commit) if commit else {}
    alike = True
    for name, value in hashes():
        alike = alike and there.get(name) == value
        verdict = "" if not commit else "  same" if there.get(name) == value else f"  DIFFERS from {there.get(name)}"
        print(f"{value}  {name}{verdict}", flush=True)
    return int(commit is not None and not alike)


if __name__ == "__main__":
    sys.exit(main())
