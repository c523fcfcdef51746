"""What a call costs in addition to its kernel, for each way into the library: `python -m bench.bridges`.

The kernel is GELU of two numbers, a few nanoseconds. The ways take turns. Printed is the median over the rounds for each, with
quartiles, in ns per call. Calls of JAX are also measured with a wait for each result.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

import lolrt
from lolrt import _core, ops

ROUNDS, CALLS = 31, 2000


def ways() -> dict[str, Callable[[], object]]:
    """One call for each way that is installed here."""
    tensor, array = torch.zeros(1, 1, 2), np.zeros((1, 1, 2), dtype=np.float32)
    found: dict[str, Callable[[], object]] = {
        "pybind11 (lolrt._core), torch": lambda: _core.gelu(tensor),
        "pybind11 (lolrt._core), NumPy": lambda: _core.gelu(array),
        "lolrt.ops": lambda: ops.gelu(tensor),
        "torch.ops.lolrt": lambda: torch.ops.lolrt.gelu(tensor),
    }
    try:
        import tvm_ffi

        gelu = tvm_ffi.load_module(lolrt.library()).gelu
        found |= {"TVM-FFI, torch": lambda: gelu(tensor), "TVM-FFI, NumPy": lambda: gelu(array)}
    except ImportError:
        pass
    try:
        import jax

        from lolrt.jax import gelu as gelu_of_jax

        jitted, there = jax.jit(gelu_of_jax), jax.numpy.zeros((1, 1, 2))
        found["JAX, jitted"] = lambda: jitted(there).block_until_ready()
    except ImportError:
        pass
    return found


def nanoseconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (time.perf_counter_ns() - begin) / CALLS


def main() -> None:
    lolrt.set_threads(1)
    found = ways()
    with torch.inference_mode():
        for call in found.values():
            call()
        rounds = np.array([[nanoseconds(call) for call in found.values()] for _ in range(ROUNDS)])
    ratios = rounds / rounds[:, :1]
    print("| way | ns a call | times the first |\n|---|---|---|")
    for name, times, ratio in zip(found, rounds.T, ratios.T, strict=True):
        (low, mid, high), (least, half, most) = (np.percentile(of, [25, 50, 75]) for of in (times, ratio))
        print(f"| {name} | {mid:.0f} ({low:.0f}-{high:.0f}) | {half:.2f} ({least:.2f}-{most:.2f}) |")


if __name__ == "__main__":
    main()
