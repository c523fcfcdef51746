"""The whole suite: `python -m bench [--quick] [--isa NAME ...] [-o FILE]`; `make bench` and `make bench-quick` call it.

Each instruction set has a pytest of its own, because it is fixed when the libraries are loaded. Their JSON files become one, in
pytest-benchmark's format, with a row of ours in `extra_info`; the table is printed, and the instruction counts of the built library.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import codegen
from bench.results import Results
from lolrt.bench.machine import environment, isas
from lolrt.bench.row import HEADER, LEFT
from lolrt.bench.table import aligned

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Runs the benchmarks.")
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores: fewer cases and rounds, the best kernels only")
    parser.add_argument("--isa", nargs="+", choices=isas(), default=isas(), help="these kernels only (default: all)")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/bench.json"), metavar="FILE")
    arguments = parser.parse_args()
    runs = []
    failed = False
    for isa in arguments.isa[:1] if arguments.quick else arguments.isa:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "run.json")
            command = [sys.executable, "-m", "pytest", str(HERE), "-q", f"--benchmark-json={path}", "--benchmark-disable-gc"]
            command += ["--benchmark-quiet", "-p", "no:cacheprovider"]
            variables = {**environment(isa), "LOLRT_BENCH_QUICK": str(int(arguments.quick))}
            failed |= subprocess.run(command, env={**os.environ, **variables}).returncode != 0
            if path.exists():
                runs.append(json.loads(path.read_text()))
    if not runs:
        return 1
    some = [] if arguments.isa == isas() else ["--isa", *arguments.isa]
    invocation = " ".join(["python -m bench", *["--quick"] * arguments.quick, *some])
    results = Results.joined(runs, invocation, codegen.counted())
    results.write(arguments.output)
    for name, text in results.machine.items():
        print(f"{name:9} {text}")
    print(f"\n{aligned([HEADER, *(row.cells() for row in results.rows)], LEFT)}")
    if results.codegen:
        print(f"\nInner loops, from the disassembly:\n{aligned(results.codegen, left=(0, 1, 2))}")
    print(f"\n{arguments.output}: `python -m bench.report {arguments.output}` makes docs/benchmarks.md of it")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
