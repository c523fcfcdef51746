"""`lolrt inspect`: describes a checkpoint or a snapshot, and what is missing in it."""

from __future__ import annotations

import argparse
import json

from lolrt.cli.options import Commands, add_weights


def add_command(commands: Commands) -> None:
    inspect = commands.add_parser("inspect", help="what a checkpoint or a snapshot is, and what it lacks")
    inspect.set_defaults(run=run)
    inspect.add_argument("--json", action="store_true", help="the same as JSON")
    add_weights(inspect)
    inspect.add_argument("path", metavar="PATH", help="a folder, a file of weights, a .toml file, or a snapshot")


def run(arguments: argparse.Namespace) -> None:
    import os

    from lolrt.checkpoint.inspect import inspect
    from lolrt.session.snapshot import Snapshot, is_snapshot

    snapshot = os.path.isfile(arguments.path) and is_snapshot(arguments.path)  # reading a device would never end
    found = Snapshot.read(arguments.path) if snapshot else inspect(arguments.path, arguments.weights)
    if arguments.json:
        plain = {"snapshot": found.plain()} if snapshot else found.plain()
        print(json.dumps(plain, indent=2).replace("\x7f", "\\u007f"))  # the one character that a terminal may obey and JSON leaves
    else:
        print("\n".join(found.lines()))
