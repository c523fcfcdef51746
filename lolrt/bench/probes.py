"""What the machine can do at best, as torch's libraries reach it: measured seconds before what is compared with it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

# rows, inner, columns: a square, and the linear layers of the 1.3B model.
GEMM_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4680, 1536, 1536), (1560, 1536, 8960))
REPEATS = 5
# A product that would take longer than this says nothing new, only later (bfloat16 where the CPU cannot multiply it).
LONGEST = 0.5


class Probes:
    """Best rates of the threads now set; each is measured once."""

    @functools.cache  # noqa: B019 - a handful of instances, one a group of rows
    def gemm(self, dtype: torch.dtype) -> float:
        """FLOP/s of torch's best matrix product over `GEMM_SHAPES`."""
        rate = 0.0
        for rows, inner, columns in GEMM_SHAPES:
            flops = 2.0 * rows * inner * columns
            if rate and flops / rate > LONGEST:
                continue
            a, b = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
            out = torch.empty(rows, columns, dtype=dtype)
            rate = max(rate, flops / best(functools.partial(torch.mm, a, b.T, out=out)))
        return rate

    @functools.cache  # noqa: B019
    def copy(self, size: int) -> float:
        """Bytes/s, read and written, of torch's copy that moves `size` bytes in all."""
        source = torch.ones(max(size // 2, 1), dtype=torch.uint8)
        target = torch.empty_like(source)
        return 2 * source.numel() / best(lambda: target.copy_(source))


def best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs after one to warm up; ends early once they have taken long enough to be believed."""
    run()
    fastest, total = float("inf"), 0.0
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        fastest, total = min(fastest, seconds), total + seconds
        if total > 3 * LONGEST:
            break
    return fastest
