"""`lolrt inspect`: what a checkpoint or a snapshot is, and what it lacks."""

from __future__ import annotations

import argparse

from lolrt.cli.options import Commands


def add_command(commands: Commands) -> None:
    inspect = commands.add_parser("inspect", help="what a checkpoint or a snapshot is, and what it lacks")
    inspect.set_defaults(run=run)
    inspect.add_argument("path", metavar="PATH", help="a folder, a file of weights, a .toml file, or a snapshot")


def run(arguments: argparse.Namespace) -> None:
    import os

    from lolrt.checkpoint.inspect import inspect
    from lolrt.session.snapshot import Snapshot, is_snapshot

    snapshot = os.path.isfile(arguments.path) and is_snapshot(arguments.path)  # a device would be read to no end
    for line in Snapshot.read(arguments.path).lines() if snapshot else inspect(arguments.path):
        print(line)
