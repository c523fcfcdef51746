"""Linear layers and pages in 8 bits, their speed and their errors: `python -m bench.int8 [speed] [layers] [attention] [rollouts]`, minutes.

Speed is of the layers; that of attention is in `lolrt bench`. It is CPU time of one thread, the least of several turns, so that it can be
told on a busy machine too. Errors are those against float64, or against the model in float32.
"""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lolrt
from lolrt import ops
from lolrt.bench import peers
from lolrt.models.dit import LinearChoice
from lolrt.ops import int8, quantize_rows

LAYERS = {"q, k, v": (1536, 4608), "output": (1536, 1536), "feed-forward, up": (1536, 8960), "feed-forward, down": (8960, 1536)}
ROWS, TURNS = 780, 6
PROMPT, SEEDS, CHUNKS = "a red balloon over the hills", (0, 1, 2), 6


def speed() -> None:
    for name, (inputs, outputs) in LAYERS.items():
        runs = contestants(inputs, outputs)
        turns = [{run: cpu(call) for run, call in runs.items()} for _ in range(TURNS)]
        least = {run: min(turn[run] for turn in turns) for run in runs}
        ours = least.pop("ours")
        ratios = ", ".join(f"{run} {seconds / ours:.2f}" for run, seconds in least.items())
        print(f"{name}, {inputs} to {outputs}: {2e-9 * ROWS * inputs * outputs / ours:.0f} G/s; peer's time / ours: {ratios}")


def contestants(inputs: int, outputs: int) -> dict[str, Callable[[], object]]:
    x, weight, bias = torch.randn(1, ROWS, inputs), torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)
    values, scale = peers.quantize_weight(weight)
    packed = int8.pack(values, scale, bias)
    per_channel = torch.quantize_per_channel(weight, scale, torch.zeros(outputs, dtype=torch.int64), 0, torch.qint8)
    dynamic = torch.ops.quantized.linear_prepack(per_channel, bias)
    q, _ = quantize_rows(x)
    return {
        "ours": lambda: int8.linear(x, packed),
        "torch float32": lambda: F.linear(x, weight, bias),
        "linear_dynamic": lambda: torch.ops.quantized.linear_dynamic(x, dynamic),
        "_int_mm": lambda: peers.int8_linear(x, values.t(), scale, bias),
        "product alone": lambda: int8.product(q[0], packed),
    }


def cpu(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def errors(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, tuple[float, float]]:
    """Cosine and relative L1 of a layer in each arithmetic."""
    values, scale = peers.quantize_weight(weight)
    packed = int8.pack(values, scale, bias)
    exact = F.linear(x.double(), weight.double(), bias.double()).flatten()
    results = {
        "int8, float32": int8.linear(x, packed),
        "int8, bfloat16": int8.linear(x.bfloat16(), packed),
        "bfloat16": F.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16()),
    }
    return {name: off(y, exact) for name, y in results.items()}


def layers() -> None:
    for name, (inputs, outputs) in LAYERS.items():
        x = torch.randn(1, 64, inputs)
        x = F.gelu(x, approximate="tanh") if inputs > 1536 else x
        for kind, (cosine, l1) in errors(x, torch.randn(outputs, inputs) / inputs**0.5, torch.zeros(outputs)).items():
            print(f"1.3B, {name}, {kind}: cosine {cosine:.6f}, relative L1 {l1:.4f}")
    found = [errors(*layer) for layer in layers_of_tiny()]
    for kind in found[0]:
        cosines, l1s = zip(*(each[kind] for each in found), strict=True)
        mean = f"mean {sum(cosines) / len(found):.6f}, {sum(l1s) / len(found):.4f}"
        print(f"tiny, {len(found)} layers, {kind}: {mean}; worst {min(cosines):.6f}, {max(l1s):.4f}")


def layers_of_tiny() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Inputs, weights and biases of the layers that int8 would compute, in all passes of the third chunk."""
    pipe = lolrt.load("tiny", torch.float32)
    memory = {x.data_ptr() for block in pipe.dit.blocks for name, x in block.named_parameters() if name.endswith("weight") and x.ndim == 2}
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    original = F.linear

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is not None and weight.data_ptr() in memory:
            seen.append((x, weight, bias))
        return original(x, weight, bias)

    chunks = pipe.latent_stream(PROMPT)
    list(itertools.islice(chunks, 2))
    F.linear = watched  # type: ignore[assignment]
    try:
        next(chunks)
    finally:
        F.linear = original
    return seen


PAGES = {"int8": torch.int8, "bfloat16": torch.bfloat16}


def attention() -> None:
    for name, (q, k, v) in random_attention().items():
        scores = torch.einsum("qd,ptd->qpt", q.double(), k.double()).flatten(1) / q.shape[-1] ** 0.5
        exact = scores.softmax(1) @ v.double().flatten(0, 1)
        table = torch.arange(len(k), dtype=torch.int32)
        for kind, dtype in PAGES.items():
            pages = torch.empty(len(k), ops.page_elements(dtype, k.shape[1], 1, k.shape[2]), dtype=dtype)
            ops.kv_write(k[:, :, None].bfloat16(), v[:, :, None].bfloat16(), pages, table)
            out = ops.frame_attention(q[None, :, None].bfloat16(), pages, table, k.shape[1])
            print(f"{name}, {kind}: {told(out[0, :, 0], exact)}")
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in PAGES}
    attended_by_tiny(lambda kind, out, exact: found[kind].append(off(out, exact)))
    for kind, each in found.items():
        cosines, l1s = zip(*each, strict=True)
        mean = f"mean {sum(cosines) / len(each):.6f}, {sum(l1s) / len(each):.4f}"
        print(f"tiny, {len(each)} layers, {kind}: cosine and relative L1, {mean}; worst {min(cosines):.6f}, {max(l1s):.4f}")


def random_attention() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """q [tokens, dim], k and v [pages, page_tokens, dim] of the 1.3B model's sizes; half of its pages."""
    q, k, v = torch.randn(96, 128), torch.randn(6, 1560, 128), torch.randn(6, 1560, 128)
    heavy = torch.distributions.StudentT(torch.tensor(4.0)).sample((6, 1560, 128))
    sink = k.clone()
    sink[0, 5] = 60 * F.normalize(q.mean(0), dim=0)
    cases = {
        "normal numbers": (q, k, v),
        "scores of 2.5 times the size": (2.5 * q, k, v),
        "keys with channels of their own mean": (q, k + 5 * torch.randn(128), v),
        "keys with heavy tails": (q, heavy, v),
        "one key that many turn to": (q, sink, v),
    }
    return {name: (x.bfloat16().float(), y.bfloat16().float(), z.bfloat16().float()) for name, (x, y, z) in cases.items()}


def attended_by_tiny(see: Callable[[str, Tensor, Tensor], None]) -> None:
    """All attention over frames in the third chunk of `tiny` in float32: `see` gets the kind of pages that it was made over, the output,
    and that over pages of float32."""
    chunks = lolrt.load("tiny", torch.float32).latent_stream(PROMPT)
    write, attend = ops.kv_write, ops.frame_attention
    others: dict[tuple[int, str], Tensor] = {}
    watching = False

    def written(k: Tensor, v: Tensor, pages: Tensor, page_table: Tensor, **options: Any) -> None:
        write(k, v, pages, page_table, **options)
        weight = options.pop("weight", None)
        tokens, heads, dim = k.shape[1:]
        for kind, dtype in PAGES.items():
            elements = ops.page_elements(dtype, tokens, heads, dim)
            other = others.setdefault((pages.data_ptr(), kind), torch.zeros(len(pages), elements, dtype=dtype))
            t = torch.float32 if dtype == torch.int8 else dtype
            write(k.to(t), v.to(t), other, page_table, weight=None if weight is None else weight.to(t), **options)

    def attended(q: Tensor, pages: Tensor, *rest: Any, **options: Any) -> Tensor:
        exact = attend(q, pages, *rest, **options)
        for kind, dtype in PAGES.items() if watching else ():
            if (other := others.get((pages.data_ptr(), kind))) is not None and "rotation" in options:
                see(kind, attend(q if dtype == torch.int8 else q.to(dtype), other, *rest, **options), exact)
        return exact

    ops.kv_write, ops.frame_attention = written, attended  # type: ignore[assignment]
    try:
        list(itertools.islice(chunks, 2))
        watching = True
        next(chunks)
    finally:
        ops.kv_write, ops.frame_attention = write, attend


def off(out: Tensor, exact: Tensor) -> tuple[float, float]:
    """Cosine and relative L1."""
    y, x = out.double().flatten(), exact.double().flatten()
    return F.cosine_similarity(y, x, dim=0).item(), ((y - x).abs().sum() / x.abs().sum()).item()


def told(out: Tensor, exact: Tensor) -> str:
    cosine, l1 = off(out, exact)
    return f"cosine {cosine:.6f}, of the worst row {F.cosine_similarity(out.double(), exact, dim=1).min():.6f}, relative L1 {l1:.4f}"


ROLLOUTS: dict[str, tuple[torch.dtype, LinearChoice, torch.dtype | None]] = {
    "bfloat16": (torch.bfloat16, "full", None),
    "linear layers in int8, float32": (torch.float32, "int8", None),
    "linear layers in int8, bfloat16": (torch.bfloat16, "int8", None),
    "pages of int8, float32": (torch.float32, "full", torch.int8),
    "pages of int8, bfloat16": (torch.bfloat16, "full", torch.int8),
    "both in int8, bfloat16": (torch.bfloat16, "int8", torch.int8),
}


def rollouts() -> None:
    exact = {seed: rollout(lolrt.load("tiny", torch.float32), seed) for seed in SEEDS}
    for name, (dtype, linear, kv_dtype) in ROLLOUTS.items():
        pipe = lolrt.load("tiny", dtype, linear=linear)
        far = torch.stack([distances(rollout(pipe, seed, kv_dtype), exact[seed]) for seed in SEEDS])
        print(f"tiny, {name}: rms of the difference {far.mean():.4f} ({far.min():.4f} to {far.max():.4f})")


def rollout(pipe: lolrt.Pipeline, seed: int, kv_dtype: torch.dtype | None = None) -> Tensor:
    chunks = pipe.latent_stream(PROMPT, seed=seed, kv_dtype=kv_dtype)
    return torch.cat([chunk.latents for chunk in itertools.islice(chunks, CHUNKS)])


def distances(latents: Tensor, exact: Tensor) -> Tensor:
    """The rms of the difference of each chunk, relative to the rms of its latents."""
    squares = [x.square().mean((1, 2, 3)).view(CHUNKS, -1).mean(1) for x in (latents - exact, exact)]
    return (squares[0] / squares[1]).sqrt()


def main() -> None:
    warnings.filterwarnings("ignore", category=UserWarning)  # torch means to drop quantised tensors, which linear_dynamic takes
    lolrt.set_threads(1)
    parts = {"speed": speed, "layers": layers, "attention": attention, "rollouts": rollouts}
    for name in sys.argv[1:] or parts:
        torch.manual_seed(0)
        with torch.no_grad():
            parts[name]()


if __name__ == "__main__":
    main()
