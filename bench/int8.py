"""Linear layers in 8 bits, their speed and their errors: `python -m bench.int8 [speed] [layers] [rollouts]`, minutes.

Speed is CPU time of one thread, the least of several turns, so that it can be told on a busy machine too. Errors are those against
float64, or of a rollout against that of the model in float32.
"""

from __future__ import annotations

import itertools
import sys
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import lolrt
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
    found = {name: y.double().flatten() for name, y in results.items()}
    return {
        name: (F.cosine_similarity(y, exact, dim=0).item(), ((y - exact).abs().sum() / exact.abs().sum()).item())
        for name, y in found.items()
    }


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


def rollouts() -> None:
    exact = {seed: rollout(lolrt.load("tiny", torch.float32), seed) for seed in SEEDS}
    kinds: list[tuple[torch.dtype, LinearChoice]] = [(torch.bfloat16, "full"), (torch.float32, "int8"), (torch.bfloat16, "int8")]
    for dtype, linear in kinds:
        pipe = lolrt.load("tiny", dtype, linear=linear)
        far = torch.stack([distances(rollout(pipe, seed), exact[seed]) for seed in SEEDS])
        print(f"tiny, {linear}, {dtype}: rms of the difference {far.mean():.4f} ({far.min():.4f} to {far.max():.4f})")


def rollout(pipe: lolrt.Pipeline, seed: int) -> Tensor:
    return torch.cat([chunk.latents for chunk in itertools.islice(pipe.latent_stream(PROMPT, seed=seed), CHUNKS)])


def distances(latents: Tensor, exact: Tensor) -> Tensor:
    """The rms of the difference of each chunk, relative to the rms of its latents."""
    squares = [x.square().mean((1, 2, 3)).view(CHUNKS, -1).mean(1) for x in (latents - exact, exact)]
    return (squares[0] / squares[1]).sqrt()


def main() -> None:
    warnings.filterwarnings("ignore", category=UserWarning)  # torch means to drop quantised tensors, which linear_dynamic takes
    lolrt.set_threads(1)
    parts = {"speed": speed, "layers": layers, "rollouts": rollouts}
    for name in sys.argv[1:] or parts:
        torch.manual_seed(0)
        with torch.no_grad():
            parts[name]()


if __name__ == "__main__":
    main()
