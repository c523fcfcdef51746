"""Fixtures of the suite: the effort of a run, and a recorder that turns a race into pytest-benchmark's statistics and our row."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict

import pytest

from bench.models import MODEL_CASES
from lolrt import _core
from lolrt.bench.case import Case
from lolrt.bench.cases import CASES
from lolrt.bench.machine import describe, isas
from lolrt.bench.measure import FULL, QUICK
from lolrt.bench.peaks import Peaks
from lolrt.bench.row import Row
from lolrt.bench.run import compiles, race, selected, thread_counts
from lolrt.ops.threads import set_threads

# Set by `python -m bench`, together with the variables of an instruction set.
QUICK_RUN = os.environ.get("LOLRT_BENCH_QUICK") == "1"
BEST_ISA = _core.isa() == isas()[0]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs each test that takes a case and threads for all of them, one number of threads after the other."""
    if "case" not in metafunc.fixturenames:
        return
    pairs = [
        (threads, case)
        for threads in thread_counts(QUICK_RUN)
        for case in selected((*CASES, *MODEL_CASES), quick=QUICK_RUN, threads=threads, best_isa=BEST_ISA)
    ]
    ids = [f"{case.name}-{str(case.dtype).removeprefix('torch.')}-{threads}" for threads, case in pairs]
    metafunc.parametrize(("threads", "case"), pairs, ids=ids)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    machine_info["lolrt"] = describe()


@pytest.fixture(scope="session")
def peaks() -> Callable[[int], Peaks]:
    """The peaks for a number of threads, measured when its first case needs them."""
    made: dict[int, Peaks] = {}
    return lambda threads: made.setdefault(threads, Peaks())


@pytest.fixture
def measured(benchmark, peaks) -> Callable[[Case, int], Row]:
    """Races a case against its peers: pytest-benchmark times ours, and the peers run before each of its rounds."""

    def measure(case: Case, threads: int) -> Row:
        set_threads(threads)
        contest = race(case, case.make(not QUICK_RUN and compiles(threads)))
        rounds = (QUICK if QUICK_RUN else FULL).rounds(contest.warm_up())
        peak = peaks(threads).before(case)
        benchmark.pedantic(contest.ours, setup=contest.peers_turn, rounds=rounds)
        contest.times += benchmark.stats.stats.data
        row = Row.of(case, contest, peak, threads)
        benchmark.group = case.op
        benchmark.extra_info["row"] = asdict(row)
        return row

    return measure
