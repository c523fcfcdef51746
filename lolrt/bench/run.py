"""Runs cases, group by group: the cases of one number of threads, with peaks of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from lolrt import _core
from lolrt.bench.case import Case, Trial, dtype_name
from lolrt.bench.machine import cores, has_compiler, isas
from lolrt.bench.measure import Effort, Race
from lolrt.bench.peaks import Peaks
from lolrt.bench.row import Row
from lolrt.ops.threads import set_threads


def thread_counts(quick: bool) -> list[int]:
    """The numbers of threads to measure: all cores; a full run also measures one thread, first."""
    return [cores()] if quick else sorted({1, cores()})


def compiles(threads: int) -> bool:
    """Whether a full run has peers made by torch.compile: with all threads only, as that takes longer than measuring them, and with the
    best kernels only. Held to AVX2 on a CPU that has more, torch 2.13.0 computes garbage with what it compiled (2026-11-25)."""
    return threads == cores() and _core.isa() == isas()[0] and has_compiler()


def selected(cases: Sequence[Case], *, quick: bool, threads: int, best_isa: bool, only: str = "") -> list[Case]:
    """The cases of a run that belong to a number of threads, with `only` in their names."""
    return [
        case
        for case in cases
        if (case.quick or not quick)
        and (case.every_thread_count or threads == cores())
        and (best_isa or not case.best_isa_only)
        and only in case.name
        and case.runs_here()
    ]


def race(case: Case, trial: Trial) -> Race:
    return Race(trial.ours, trial.peers, case.tolerance)


def measure(cases: Sequence[Case], peaks: Peaks, threads: int, effort: Effort, compiled: bool) -> Iterator[Row]:
    """A row of each case as it comes."""
    set_threads(threads)
    for case in cases:
        print(f"{case.name} {dtype_name(case.dtype)}, {threads} threads", file=sys.stderr)
        contest = race(case, case.make(compiled))
        rounds = effort.rounds(contest.warm_up())
        peak = peaks.before(case)
        contest.run(rounds)
        yield Row.of(case, contest, peak, threads)
