"""`lolrt convert`: any known checkpoint as one folder that loads fast."""

from __future__ import annotations

import argparse

from lolrt.cli.options import Commands, HelpWithDefaults, add_weights


def add_command(commands: Commands) -> None:
    convert = commands.add_parser(
        "convert", help="write any known checkpoint as one folder that loads fast", formatter_class=HelpWithDefaults
    )
    convert.set_defaults(run=run)
    convert.add_argument("source", metavar="SRC", help="a folder, a file of weights, or a .toml file")
    convert.add_argument("destination", metavar="DST", help="a folder that is not there yet")
    add_weights(convert)
    convert.add_argument("--dtype", choices=["bfloat16", "float32"], help="of the weights; by default as they are")


def run(arguments: argparse.Namespace) -> None:
    import torch

    from lolrt.checkpoint.convert import convert

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    print(convert(arguments.source, arguments.destination, dtype, arguments.weights))
