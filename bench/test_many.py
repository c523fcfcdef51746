"""Many streams at a time, snapshots, and going on from one: `bench.many` measures, the report says what was hoped for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bench import many
from bench.conftest import BEST_ISA, QUICK_RUN
from lolrt.bench.machine import cores

pytestmark = pytest.mark.skipif(not BEST_ISA or QUICK_RUN, reason="of the best kernels only, minutes")
STREAMS, CHUNKS, ROUNDS = 8, 5, 3


def spread(values: object) -> list[float]:
    """Quartiles."""
    return np.quantile(np.array(values), (0.25, 0.5, 0.75)).tolist()


def record(benchmark, figure: str, measure: Callable[[], object]) -> None:
    """One round, which the measure times itself."""
    found = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info.update(many=figure, found=found)


def test_one_engine_against_processes(benchmark):
    kinds: dict[str, Callable[[], float]] = {
        "one engine": lambda: many.engine(STREAMS, CHUNKS, False),
        f"{STREAMS} processes of {cores()} threads, as they are by themselves": lambda: many.processes(STREAMS, CHUNKS, cores()),
        f"{STREAMS} processes held to 1 thread": lambda: many.processes(STREAMS, CHUNKS, 1),
        "one engine, `batch_invariant`": lambda: many.engine(STREAMS, CHUNKS, True),
        "one stream alone": lambda: many.engine(1, STREAMS * CHUNKS, False),
    }

    def measure() -> dict[str, object]:
        rates = {name: np.array([0.0] * ROUNDS) for name in kinds}
        for i in range(ROUNDS):
            for name, run in kinds.items():
                rates[name][i] = run()
        return {name: {"rate": spread(found), "ratio": spread(rates["one engine"] / found)} for name, found in rates.items()}

    record(benchmark, "rates", measure)


def test_saving_every_60_frames(benchmark):
    record(benchmark, "saving", lambda: spread(many.saving(60)))


def test_resuming(benchmark):
    record(benchmark, "resuming", lambda: spread([many.resuming() for _ in range(5)]))


def test_memory_of_more_streams(benchmark):
    record(benchmark, "memory", lambda: many.memory(STREAMS))
