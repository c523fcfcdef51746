"""What the command line and the laboratory's have in common: kinds of values, and how help is written."""

from __future__ import annotations

import argparse
import math


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the defaults that say something: not those of options that are off or have none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default == []
        return action.help if says_nothing else super()._get_help_string(action)


def positive(kind: type) -> type:
    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse  # type: ignore[return-value]


def frame_size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH in pixels."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} is no size such as 480x832")
    return int(height), int(width)
