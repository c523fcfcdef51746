"""`lolrt bench`: how fast the ops are on this machine."""

from __future__ import annotations

import argparse
import os
import sys

from lolrt.cli.options import Commands
from lolrt.errors import Error


def add_command(commands: Commands) -> None:
    bench = commands.add_parser("bench", help="how fast the ops are on this machine, side by side with torch")
    bench.set_defaults(run=run)
    bench.add_argument("--quick", action="store_true", help="fewer cases and rounds, the best kernels only: about half a minute")
    bench.add_argument("--only", metavar="TEXT", default="", help='cases with this in their names, such as "kv_write" or "tiny"')


def run(arguments: argparse.Namespace) -> None:
    """A table for each kernel set, from a process of its own: torch's libraries choose their instructions when they are loaded."""
    import subprocess

    from lolrt.bench.cases import CASES
    from lolrt.bench.machine import cores, environment, isas
    from lolrt.bench.run import selected

    if not selected(CASES, quick=arguments.quick, threads=cores(), best_isa=True, only=arguments.only):
        names = dict.fromkeys(case.name for case in CASES if case.quick or not arguments.quick)
        raise Error(f"no case has {arguments.only!r} in its name; there are {', '.join(names)}")
    for isa in isas()[:1] if arguments.quick else isas():
        command = [sys.executable, "-m", "lolrt.bench", f"--only={arguments.only}", *(["--quick"] if arguments.quick else [])]
        done = subprocess.run(command, env={**os.environ, **environment(isa)})
        if done.returncode:
            raise Error(f"the benchmark of the {isa} kernels ended with status {done.returncode}")
