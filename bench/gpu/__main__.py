"""Measures the CUDA kernels, a whole chunk and the VAE on a GPU: `python -m bench.gpu [--only TEXT] [-o FILE]`.

Prints a table and writes the same JSON as the CPU's suite, which `bench.results` reads.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import torch

import lolrt
from bench.gpu.cases import gpu_cases
from bench.results import Results
from lolrt.bench.case import BF16, Case
from lolrt.bench.measure import FULL, Effort, Race, Run
from lolrt.bench.peaks import Peak, flops
from lolrt.bench.row import HEADER, LEFT, Row
from lolrt.bench.table import aligned
from lolrt.errors import Error
from lolrt.ops.device import usable

SCRATCH_BYTES = 256 << 20  # more than the L2 cache of any GPU so far
GEMM_SHAPE = (8192, 8192, 8192)
PROBE_ROUNDS = 5

Timer = Callable[[Run], float]


class ColdTimer:
    """Seconds that a GPU takes for a callable, by events around it, with an L2 cache that holds none of its tensors.

    Scratch memory is overwritten first. While the GPU does that, the kernels of the callable are queued, so their launch costs nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._scratch = torch.empty(SCRATCH_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, run: Run) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._scratch.zero_()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end)


class Peaks:
    """The peak rates of the GPU, as torch's libraries reach them, by the same timer."""

    def __init__(self, timer: Timer, gemm_shape: tuple[int, int, int] = GEMM_SHAPE) -> None:
        self._timer, self._gemm_shape = timer, gemm_shape

    def before(self, case: Case) -> Peak:
        if case.bound == "flops":
            return Peak("bfloat16 GEMM", self._gemm_rate)
        source = torch.ones(round(case.bytes) // 2, dtype=torch.uint8)
        target = torch.empty_like(source)
        return Peak("copy of the same bytes", 2 * source.numel() / self._fastest(lambda: target.copy_(source)))

    @functools.cached_property
    def _gemm_rate(self) -> float:
        rows, inner, columns = self._gemm_shape
        a, b = torch.ones(rows, inner, dtype=BF16), torch.ones(inner, columns, dtype=BF16)
        return flops(self._gemm_shape) / self._fastest(lambda: a @ b)

    def _fastest(self, run: Run) -> float:
        run()
        return min(self._timer(run) for _ in range(PROBE_ROUNDS))


def measure(cases: Sequence[Case], device: torch.device, timer: Timer, peaks: Peaks, effort: Effort, architecture: str) -> Iterator[Row]:
    """One row per case, as it is measured; `isa` is the GPU's architecture, and `threads` 0."""
    for case in cases:
        print(case.name, file=sys.stderr)
        with device, torch.inference_mode():
            trial = case.make(False)
            race = Race(trial.ours, trial.peers, case.tolerance, timer)
            rounds = effort.rounds(race.warm_up())
            peak = peaks.before(case)
            race.run(rounds)
        yield replace(Row.of(case, race, peak, threads=0), isa=architecture)


def results(rows: Sequence[Row], machine: dict[str, str], command: str) -> Results:
    """The JSON of pytest-benchmark and `python -m bench`; times in seconds."""
    benchmarks = []
    for row in rows:
        low, median, high = row.seconds
        stats = {"q1": low, "median": median, "q3": high, "iqr": high - low, "rounds": row.n}
        benchmarks.append({"name": row.name, "group": row.op, "stats": stats, "extra_info": {"row": asdict(row)}})
    run = {"datetime": datetime.now().isoformat(), "machine_info": {"lolrt": machine}, "benchmarks": benchmarks}
    return Results.joined([run], command, [])


def describe(device: torch.device, architecture: str) -> dict[str, str]:
    name, processors = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).multi_processor_count
    return {
        "gpu": f"{name}, {processors} multiprocessors",
        "kernels": architecture,
        "versions": f"lolrt {lolrt.__version__}, torch {torch.__version__}, CUDA {torch.version.cuda}",
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="cases with this in their names")
    parser.add_argument("--device", default="cuda", help="cuda, or a GPU by its number, such as cuda:1")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/gpu.json"), metavar="FILE")
    arguments = parser.parse_args(argv)
    cases = [case for case in gpu_cases() if arguments.only in case.name]
    try:
        if not cases:
            raise Error(f"no case has {arguments.only!r} in its name; there are {', '.join(case.name for case in gpu_cases())}")
        device = usable(arguments.device)
    except Error as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return 2
    torch.cuda.set_device(device)
    architecture = "sm_" + "".join(map(str, torch.cuda.get_device_capability(device)))
    timer = ColdTimer(device)
    rows = list(measure(cases, device, timer, Peaks(timer), FULL, architecture))
    run = results(rows, describe(device, architecture), f"python -m bench.gpu --only '{arguments.only}'")
    run.write(arguments.output)
    for name, text in run.machine.items():
        print(f"{name:9} {text}")
    print(f"\n{aligned([HEADER, *(row.cells() for row in rows)], LEFT)}\n\n{arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
