"""Helpers that the commands share: types of values, the format of the help, and common options."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from lolrt.errors import Error, printable
from lolrt.fields import fields_of

if TYPE_CHECKING:
    import torch

    from lolrt.checkpoint import ModelFiles

MOST_PIXELS = 1 << 14
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
MODEL_HELP = "an embedded model, tiny or journey; or a folder, a file, or a .toml file with the parts of one"


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of options, except of options that are off or have none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default == []
        return action.help if says_nothing else super()._get_help_string(action)


def positive(kind: type, most: int = 10**9) -> Callable[[str], Any]:
    """A parser of numbers above 0. most: by default a number that is larger than anybody's, so that more is a mistake: 30 years in
    seconds."""
    return _parser(kind, lambda value: 0 < value <= most, f"a number above 0, up to {most:,}")


def whole(least: int, most: int) -> Callable[[str], Any]:
    """A parser of whole numbers."""
    return _parser(int, lambda value: least <= value <= most, f"a whole number from {least:,} to {most:,}")


def _parser(kind: type, fits: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if fits(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text:.60} is not {expected}")

    return parse


SEED = whole(0, 2**64 - 1)


def frame_size(text: str) -> tuple[int, int]:
    """Parses HEIGHTxWIDTH, in pixels."""
    height, _, width = text.partition("x")
    if not all(side.isdecimal() and len(side) <= 5 and 0 < int(side) <= MOST_PIXELS for side in (height, width)):
        raise argparse.ArgumentTypeError(f"{text:.60} is no size such as 480x832, up to {MOST_PIXELS} pixels a side")
    return int(height), int(width)


def add_fields(parser: argparse._ActionsContainer, dataclass: str, *, defaults: bool = True) -> None:
    """Adds an option for each field of a dataclass, with its names, choices and help (`lolrt.fields`), and its default unless the model
    has a better one."""
    for field in fields_of(dataclass):
        parser.add_argument(
            *(f"--{name.replace('_', '-')}" for name in field.names),
            dest=field.name,
            default=field.default if defaults else None,
            type=field.kind,
            choices=field.choices or None,
            help=field.help.replace("%", "%%"),
        )


def field_values(arguments: argparse.Namespace, dataclass: str) -> dict[str, Any]:
    """The values of the options of `add_fields`, as arguments of the dataclass; without options that have no value."""
    values = {field.name: getattr(arguments, field.name) for field in fields_of(dataclass)}
    return {name: value for name, value in values.items() if value is not None}


def add_vae(parser: argparse.ArgumentParser) -> None:
    tiny = "tiny: the model's TAEHV, fast and less exact; light: the same, where it is LightX2V's LightTAE"
    parser.add_argument("--vae", choices=["full", "tiny", "light"], default="full", help=tiny)
    parser.add_argument(
        "--vae-tile", metavar="PIXELS", type=positive(int), help="decode in tiles of this size: less working memory, not quite the same"
    )


def add_linear(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--linear",
        choices=["full", "int8"],
        default="full",
        help="of the DiT's layers; int8: in 8 bits, faster and less exact, on CPUs",
    )


def add_lora(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lora", metavar="FILE[:STRENGTH]", action="append",
        help="adapters to merge into the model's weights, such as style.safetensors:0.8; may be given several times",
    )  # fmt: skip


def add_weights(parser: argparse.ArgumentParser) -> None:
    which = "which weights of the DiT's file to use, such as generator, by the names that lolrt inspect lists; by default averaged ones"
    parser.add_argument("--weights", metavar="NAME", help=which)


def tell_warnings(files: ModelFiles) -> None:
    """Prints what makes it likely that a model gives poor results."""
    for warning in files.warnings:
        print(f"note: {printable(warning)}", file=sys.stderr)


def add_kv(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kv", choices=["full", "int8", "fp8"], default="full",
        help="of the KV cache's pages; int8 on the CPU, fp8 on CUDA: 8 bits and scales, half the memory of bfloat16",
    )  # fmt: skip


def kv_dtype(arguments: argparse.Namespace) -> torch.dtype | None:
    import torch

    if arguments.kv == "fp8" and arguments.device == "cpu":
        raise Error("--kv fp8 goes with --device cuda; on the CPU it is --kv int8")
    if arguments.kv == "int8" and arguments.device != "cpu":
        raise Error("--kv int8 goes with --device cpu; on CUDA it is --kv fp8")
    return {"full": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}[arguments.kv]
