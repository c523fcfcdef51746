"""The command line of a simulation: many seeds, and what is wrong in some of them."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable

Outcome = dict[str, int] | str
"""Counts of one simulation, or what went wrong in it."""


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    return parser


def run_all(run: Callable[[int], Outcome], chosen: argparse.Namespace) -> None:
    """Runs the seeds, prints what is wrong and the sums of the counts, and exits with 1 if anything was wrong."""
    begun, totals, wrong = time.monotonic(), dict[str, int](), 0
    with multiprocessing.Pool(chosen.jobs) as pool:
        for found in pool.imap_unordered(run, range(chosen.first, chosen.first + chosen.seeds), 16):
            if isinstance(found, str):
                wrong += 1
                print(found, flush=True)
            else:
                totals = {name: totals.get(name, 0) + count for name, count in found.items()}
    told = ", ".join(f"{count} {name}" for name, count in totals.items())
    print(f"{chosen.seeds} seeds, {wrong} with something wrong; {told}; {time.monotonic() - begun:.0f} s")
    raise SystemExit(bool(wrong))
