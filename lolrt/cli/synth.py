"""`lolrt synth`: makes a model of any size with random weights."""

from __future__ import annotations

import argparse

from lolrt.cli.options import SEED, Commands, HelpWithDefaults


def add_command(commands: Commands) -> None:
    synth = commands.add_parser(
        "synth", help="write a model of any size with random weights, to try things with", formatter_class=HelpWithDefaults
    )
    synth.set_defaults(run=run)
    synth.add_argument("destination", metavar="DIR", help="a folder that is not there yet")
    synth.add_argument("--config", default="1.3b", help="1.3b, small, or a JSON file such as Wan's config.json")
    synth.add_argument("--seed", type=SEED, default=0, help="of the weights")
    synth.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the weights")


def run(arguments: argparse.Namespace) -> None:
    import torch

    from lolrt.checkpoint.synth import synth

    print(synth(arguments.destination, arguments.config, arguments.seed, getattr(torch, arguments.dtype)))
