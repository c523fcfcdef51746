"""`lolrt inspect`: what a checkpoint or a snapshot is, and what it lacks."""

from __future__ import annotations

import argparse

from lolrt.cli.options import Commands


def add_command(commands: Commands) -> None:
    inspect = commands.add_parser("inspect", help="what a checkpoint or a snapshot is, and what it lacks")
    inspect.set_defaults(run=run)
    inspect.add_argument("path", metavar="PATH", help="a folder, a file of weights, a .toml file, or a snapshot")


def run(arguments: argparse.Namespace) -> None:
    from lolrt.checkpoint.inspect import inspect
    from lolrt.session.snapshot import Snapshot, is_snapshot

    for line in Snapshot.read(arguments.path).lines() if is_snapshot(arguments.path) else inspect(arguments.path):
        print(line)
