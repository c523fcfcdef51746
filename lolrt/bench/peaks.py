"""The peak rates of the machine, as reached by torch's libraries. They are measured seconds before the cases that are compared with
them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lolrt import _core
from lolrt.bench.case import FP32, Case, dtype_name
from lolrt.bench.machine import multiplies_bf16

# rows, inner, columns: squares, and the linear layers of the 1.3B model.
GEMM_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4680, 1536, 1536), (1560, 1536, 8960))
REPEATS = 4
# Seconds. Slower matrix products are skipped: they take long and cannot be the peak (bfloat16 if the CPU cannot multiply it).
LONGEST = 0.5
# Seconds after which a rate is measured again: clocks and neighbours change.
STALE = 5.0


@dataclass(frozen=True)
class Peak:
    name: str
    rate: float
    """FLOP/s or bytes/s."""


class Peaks:
    """The peak rates with the current number of threads."""

    def __init__(self) -> None:
        self._gemm: dict[torch.dtype, tuple[float, tuple[int, int, int], float]] = {}  # time of measurement, the best shape, its rate

    def before(self, case: Case) -> Peak:
        """The peak to compare the next case with."""
        if case.bound == "bytes":
            return Peak("copy of the same bytes", copy_rate(round(case.bytes)))
        # If the CPU cannot multiply bfloat16, our kernels and torch's best ones compute in float32.
        dtype = case.dtype if multiplies_bf16(_core.isa()) else FP32
        return Peak(f"{dtype_name(dtype)} GEMM", self._gemm_rate(dtype))

    def _gemm_rate(self, dtype: torch.dtype) -> float:
        when, shape, rate = self._gemm.get(dtype, (float("-inf"), GEMM_SHAPES[0], 0.0))
        if time.monotonic() - when > STALE:
            shape, rate = (shape, gemm_rate(dtype, shape)) if rate else best_gemm(dtype)
            self._gemm[dtype] = (time.monotonic(), shape, rate)
        return rate


def best_gemm(dtype: torch.dtype) -> tuple[tuple[int, int, int], float]:
    """The shape at which torch's matrix product is fastest, and its FLOP/s."""
    best_shape, best_rate = GEMM_SHAPES[0], 0.0
    for shape in GEMM_SHAPES:
        if best_rate and flops(shape) / best_rate > LONGEST:
            continue
        rate = gemm_rate(dtype, shape)
        if rate > best_rate:
            best_shape, best_rate = shape, rate
    return best_shape, best_rate


def flops(shape: tuple[int, int, int]) -> float:
    rows, inner, columns = shape
    return 2.0 * rows * inner * columns


def gemm_rate(dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    return flops(shape) / fastest(functools.partial(torch.mm, a, b.T, out=out))


def copy_rate(size: int) -> float:
    """Bytes/s, read and written, of torch's copy that moves `size` bytes in all."""
    source = torch.ones(max(size // 2, 1), dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / fastest(functools.partial(target.copy_, source))


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, after one to warm up."""
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
