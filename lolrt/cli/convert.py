"""`lolrt convert`: converts any known checkpoint to one folder that loads fast."""

from __future__ import annotations

import argparse

from lolrt.cli.options import Commands, HelpWithDefaults, add_weights, tell_warnings

FORMS = ("fp8_scaled", "int8")  # `lolrt.checkpoint.quantise.FORMS`, which needs torch
DTYPE_HELP = "of the weights, by default as they are; fp8_scaled, int8: of the linear layers in DiT and text encoder, as ComfyUI reads them"


def add_command(commands: Commands) -> None:
    convert = commands.add_parser(
        "convert", help="write any known checkpoint as one folder that loads fast", formatter_class=HelpWithDefaults
    )
    convert.set_defaults(run=run)
    convert.add_argument("source", metavar="SRC", help="a folder, a file of weights, or a .toml file")
    convert.add_argument("destination", metavar="DST", help="a folder that is not there yet")
    add_weights(convert)
    convert.add_argument("--dtype", choices=["bfloat16", "float32", *FORMS], help=DTYPE_HELP)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from lolrt.checkpoint import find_files
    from lolrt.checkpoint.convert import convert

    form = arguments.dtype if arguments.dtype in FORMS else None
    dtype = getattr(torch, arguments.dtype) if arguments.dtype and not form else None
    files = find_files(arguments.source, arguments.weights)
    tell_warnings(files)
    print(convert(files, arguments.destination, dtype, form=form))
