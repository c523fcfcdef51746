"""One DiT block, and one chunk of a stream, against the same in plain torch as published: ratios, taken in turns in one process.

    python -m bench.block                 # everything: minutes
    python -m bench.block block --dtype bfloat16 --repeats 5
    LOLRT_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python -m bench.block chunk

block: Wan2.1 1.3B, 480 x 832: dim 1536, 12 heads, feed-forward 8960, a chunk of 3 frames of 1560 tokens, a full window of 12 frames, 512
text tokens. The published figure is the block alone, with a cache that needs no rolling; lolrt's is a whole pass of a one-layer model,
which adds the patch embedding, the last norm and the head.
chunk: all passes of a chunk that no window has to grow for, latents only. `tiny` as it ships (6 denoise passes and the cache pass), and two
layers of the 1.3B on latent frames of 30 x 52 (390 tokens; 4 passes and the cache pass).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import lolrt
from bench.published import LayerCache, PublishedDiT, PublishedStream
from lolrt import _core
from lolrt.cache import KVCache
from lolrt.rope import rotation_tables, spatial_rotation

Run = Callable[[], torch.Tensor]

PLAIN = lolrt.Rope(sigma=0.0)


def random_dit(config: lolrt.DiTConfig, dtype: torch.dtype) -> lolrt.CausalDiT:
    """Random weights, small enough that activations stay of order 1."""
    torch.manual_seed(0)
    return lolrt.CausalDiT(config).to(dtype).requires_grad_(False)


def published_twin(dit: lolrt.CausalDiT) -> PublishedDiT:
    """The published model with the same weights."""
    twin = PublishedDiT(dit.config).to(dit.dtype).requires_grad_(False)
    twin.load_state_dict(dit.state_dict())
    return twin


def block(dtype: torch.dtype, rows: int = 30, columns: int = 52) -> tuple[Run, Run]:
    """One block at the 1.3B's sizes: lolrt's and the published one, on frames of rows x columns tokens."""
    config, window, frames, tokens = lolrt.DiTConfig(num_layers=1), lolrt.Window(), 3, rows * columns
    dit = random_dit(config, dtype)
    twin = published_twin(dit)
    chunks = range(0, window.pages, frames)

    cache = KVCache(window, 1, tokens, config.num_heads, config.head_dim, dtype)
    cache.pages.normal_()
    for first_frame in chunks:
        cache.advance(first_frame)
    rotation = rotation_tables(
        PLAIN.increments(1, config.num_heads, config.temporal_pairs),
        PLAIN.offsets(cache.frames, frames),
    )
    spatial = spatial_rotation(rows, columns, config.axes[1] // 2, config.axes[2] // 2)
    text, modulation = dit.encode_text(torch.randn(64, config.text_dim)), dit.modulations(torch.tensor([500.0]))[0]
    sample = torch.randn(frames, config.in_dim, 2 * rows, 2 * columns)

    layer = twin.blocks[0]
    layer_cache = LayerCache(window, tokens, config.num_heads, config.head_dim, dtype)
    for first_frame in chunks:
        keys, values = torch.randn(2, 1, frames * tokens, config.num_heads, config.head_dim).to(dtype)
        layer_cache.write(keys, values, first_frame * tokens)
    place = twin.place((frames, rows, columns), chunks[-1])
    x = torch.randn(1, frames * tokens, config.dim).to(dtype)
    e = torch.randn(1, frames, 6, config.dim).to(dtype)
    with torch.inference_mode():
        (layer_text,) = twin.encode_text(torch.randn(64, config.text_dim))

    return (
        lambda: dit(sample, modulation, text, cache, rotation, spatial),
        lambda: layer(x, e, place, layer_cache, layer_text),
    )


def chunk(dit: lolrt.CausalDiT, height: int, width: int, sampler: lolrt.Sampler) -> tuple[Run, Run]:
    """Chunks of a stream whose window is full: lolrt's and the published one, from the same weights, prompt and noise."""
    prompt = torch.randn(dit.config.text_len, dit.config.text_dim, generator=torch.Generator().manual_seed(1))
    ours = lolrt.LatentStream(dit, prompt, height, width, rope=PLAIN, sampler=sampler)
    published = PublishedStream(published_twin(dit), prompt, height, width, sampler=sampler)
    while ours.next_frame < ours.window.pages:
        next(ours), next(published)
    return lambda: next(ours).latents, lambda: next(published)


def tiny_chunk(dtype: torch.dtype) -> tuple[Run, Run]:
    tiny = lolrt.load("tiny", dtype)
    factor = tiny.vae.config.spatial_factor
    return chunk(tiny.dit, tiny.height // factor, tiny.width // factor, tiny.sampler)


def two_layer_chunk(dtype: torch.dtype) -> tuple[Run, Run]:
    return chunk(random_dit(lolrt.DiTConfig(num_layers=2), dtype), 30, 52, lolrt.Sampler())


def compare(name: str, pair: tuple[Run, Run], repeats: int) -> None:
    """Prints medians of both and of their ratio, run in turns after one warm-up, with the spread of the ratio."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for run, spent in zip(pair, seconds, strict=True):
                start = time.perf_counter()
                run()
                if repeat:
                    spent.append(time.perf_counter() - start)
    ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
    ours, theirs = (statistics.median(spent) for spent in seconds)
    spread = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
    print(f"{name:32} lolrt {ours:8.4f} s   published {theirs:8.4f} s   {statistics.median(ratios):5.2f}x {spread}", flush=True)


CASES = {"block": (block, 3), "tiny": (tiny_chunk, 15), "chunk": (two_layer_chunk, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], action="append")
    parser.add_argument("--repeats", type=int)
    arguments = parser.parse_args()
    print(f"lolrt {_core.isa()}, torch {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    for case in arguments.cases or CASES:
        make, repeats = CASES[case]
        for dtype in arguments.dtype or ["bfloat16", "float32"]:
            compare(f"{case} {dtype}", make(getattr(torch, dtype)), arguments.repeats or repeats)


if __name__ == "__main__":
    main()
