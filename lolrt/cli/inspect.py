"""`lolrt inspect`: what a checkpoint is, and what it lacks."""

from __future__ import annotations

import argparse

from lolrt.cli.options import Commands


def add_command(commands: Commands) -> None:
    inspect = commands.add_parser("inspect", help="what a checkpoint is, and what it lacks")
    inspect.set_defaults(run=run)
    inspect.add_argument("path", metavar="PATH", help="a folder, a file of weights, or a .toml file")


def run(arguments: argparse.Namespace) -> None:
    from lolrt.checkpoint.inspect import inspect

    for line in inspect(arguments.path):
        print(line)
