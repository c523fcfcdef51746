"""Resuming a run of `lolrt generate`: the data that a snapshot keeps about the run that saved it, and how another run continues."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lolrt.errors import Error

# Options that do not change the video.
WATCHING = {"threads", "quiet", "progress", "json", "no_overwrite"}

# The options that may be given again when a run is resumed. All others come from its snapshot.
FREE = WATCHING | {"resume", "seconds", "frames", "endless", "save_every"}


@dataclass(frozen=True)
class Run:
    """The data about a run that its snapshot keeps."""

    arguments: dict[str, Any]
    cues: list[list[Any]]
    """The seconds and the prompt of each cue."""
    position: dict[str, int]
    """The `lolrt.media.writer.Position` of the video."""
    last_chunk: int
    """The video frame at which the newest chunk began."""
    mass_bytes: int
    """The size of the file of attention mass."""
    latents_bytes: int
    """The size of the file of latents."""


def beside(output: str, kind: str) -> Path:
    """The path of a file of a run: beside its video, or beside the folder of a sequence."""
    path = Path(output)
    return (path.parent if path.suffix.lower() == ".png" else path).with_suffix(f".{kind}")


def recorded(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that a snapshot keeps, as plain values for JSON."""
    from lolrt.session.config import to_plain

    names = {action.dest for action in arguments.command._actions} - {"help", "resume"} - WATCHING
    return {name: to_plain(value) for name, value in vars(arguments).items() if name in names}


def resumed_run(arguments: argparse.Namespace) -> Run:
    """The run to resume; sets its options in `arguments`. Raises `lolrt.Error` if the command line asks for different ones."""
    from lolrt.session.config import to_plain
    from lolrt.session.snapshot import Snapshot

    try:
        found = Run(**Snapshot.read(arguments.resume).run)
    except TypeError:  # no run, or that of another program
        told = f"{arguments.resume} was not saved by lolrt generate; go on with it in Python: pipe.resume({arguments.resume!r})"
        raise Error(told) from None
    given = given_options(arguments)
    differ = [
        f"{name} is {found.arguments.get(name)} in the snapshot and {to_plain(value)} here"
        for name, value in given.items()
        if name not in FREE and to_plain(value) != found.arguments.get(name)
    ]
    if differ:
        raise Error(f"{arguments.resume} is of another run: {'; '.join(differ)}; leave these options out, or begin a new video")
    length = given.keys() & {"seconds", "frames", "endless"}
    for name, value in found.arguments.items():
        if name not in given and not (length and name in ("seconds", "frames", "endless")):
            setattr(arguments, name, value)
    return found


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given on the command line, by name."""
    absent = object()
    names = {action.dest for action in arguments.command._actions if action.dest != "help"}
    blank = argparse.Namespace(**{**dict.fromkeys(names, absent), "lora": None})  # --lora appends to a list
    parsed = arguments.command.parse_args(arguments.argv[arguments.argv.index("generate") + 1 :], blank)
    return {name: value for name, value in vars(parsed).items() if name in names and value is not absent and value not in (None, [])}
