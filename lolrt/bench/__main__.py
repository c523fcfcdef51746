"""Measures the ops with the kernels that LOLRT_ISA names: what `lolrt bench` starts once for each instruction set."""

from __future__ import annotations

import argparse

from lolrt import _core
from lolrt.bench.cases import CASES
from lolrt.bench.machine import describe, isas
from lolrt.bench.measure import FULL, QUICK
from lolrt.bench.peaks import Peaks
from lolrt.bench.row import HEADER, LEFT, Row
from lolrt.bench.run import compiles, measure, selected, thread_counts
from lolrt.bench.table import aligned


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lolrt.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds, all threads only")
    parser.add_argument("--only", metavar="TEXT", default="", help="cases with this in their names")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for threads in thread_counts(arguments.quick):
        cases = selected(CASES, quick=arguments.quick, threads=threads, best_isa=_core.isa() == isas()[0], only=arguments.only)
        compiled = not arguments.quick and compiles(threads)
        rows += measure(cases, Peaks(), threads, QUICK if arguments.quick else FULL, compiled)
    for name, text in describe().items():
        print(f"{name:9} {text}")
    print()
    print(aligned([HEADER, *(row.cells() for row in rows)], LEFT))


if __name__ == "__main__":
    main()
