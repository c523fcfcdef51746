"""`lolrt bench`: measures how fast the ops are on this machine; `lolrt bench serve` measures a server."""

from __future__ import annotations

import argparse
import os
import sys

from lolrt.cli.options import MODEL_HELP, SEED, Commands, HelpWithDefaults, positive
from lolrt.errors import Error


def add_command(commands: Commands) -> None:
    bench = commands.add_parser("bench", help="how fast the ops are on this machine, side by side with torch")
    bench.set_defaults(run=run)
    bench.add_argument("--quick", action="store_true", help="fewer cases and rounds, the best kernels only: about half a minute")
    bench.add_argument("--only", metavar="TEXT", default="", help='cases with this in their names, such as "kv_write" or "tiny"')
    serve = bench.add_subparsers(metavar="serve").add_parser(
        "serve", help="lolrt serve, as its clients see it, beside a server a session", formatter_class=HelpWithDefaults
    )
    serve.set_defaults(run=run_serve)
    serve.add_argument("--model", default="tiny", help=MODEL_HELP)
    serve.add_argument("--sessions", type=positive(int), default=3, help="that arrive in all")
    serve.add_argument("--seconds", type=positive(float), default=20.0, help="that each is watched")
    serve.add_argument("--arrivals", metavar="RATE", type=positive(float), default=0.5, help="sessions a second, at random times")
    serve.add_argument("--viewers", type=positive(int), default=50, help="of one session, for what they cost")
    serve.add_argument("--seed", type=SEED, default=0, help="of the times of arrival")


def run_serve(arguments: argparse.Namespace) -> None:
    from lolrt.bench.machine import describe

    try:
        from lolrt.bench.serve import Plan, measure
    except ImportError as error:
        raise Error(f"lolrt bench serve needs {error.name}: install it with pip install 'lolrt[serve]'") from None
    print("\n".join(f"{name}: {value}" for name, value in describe().items()))
    plan = Plan(arguments.model, arguments.sessions, arguments.seconds, arguments.arrivals, arguments.viewers, arguments.seed)
    print(measure(plan))


def run(arguments: argparse.Namespace) -> None:
    """Prints a table for each kernel set. Each is measured in a process of its own, because torch's libraries choose their instructions
    when they are loaded."""
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
