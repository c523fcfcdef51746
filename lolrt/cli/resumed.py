"""What a snapshot knows of the run of `lolrt generate` that saved it, and how another run goes on with it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lolrt.errors import Error

# Options of how a run is watched, not of its video.
WATCHING = {"threads", "quiet", "json", "no_overwrite"}

# Options that may be given anew when a run goes on; all others are those of the run that is gone on with.
FREE = WATCHING | {"resume", "seconds", "frames", "endless", "save_every"}


@dataclass(frozen=True)
class Run:
    """What a snapshot knows of the run that saved it."""

    arguments: dict[str, Any]
    cues: list[list[Any]]
    """Seconds and prompt of each."""
    position: dict[str, int]
    """`lolrt.media.writer.Position` of the video."""
    last_chunk: int
    """Video frame that the newest chunk began at."""
    mass_bytes: int
    """Size of the file of attention mass."""
    latents_bytes: int
    """Size of the file of latents."""


def beside(output: str, kind: str) -> Path:
    """A file of a run, beside its video; of a sequence, beside its folder."""
    path = Path(output)
    return (path.parent if path.suffix.lower() == ".png" else path).with_suffix(f".{kind}")


def recorded(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that a snapshot keeps, as JSON takes them."""
    from lolrt.session.config import to_plain

    names = {action.dest for action in arguments.command._actions} - {"help", "resume"} - WATCHING
    return {name: to_plain(value) for name, value in vars(arguments).items() if name in names}


def resumed_run(arguments: argparse.Namespace) -> Run:
    """The run that a snapshot goes on with; `arguments` get its options. Raises `lolrt.Error` where others are asked for."""
    from lolrt.session.config import to_plain
    from lolrt.session.snapshot import Snapshot

    try:
        found = Run(**Snapshot.read(arguments.resume).run)
    except TypeError:  # it has no run, or another program's
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
    """The options that stand on the command line, by name."""
    absent = object()
    names = {action.dest for action in arguments.command._actions if action.dest != "help"}
    blank = argparse.Namespace(**{**dict.fromkeys(names, absent), "lora": None})  # which is added to
    parsed = arguments.command.parse_args(arguments.argv[arguments.argv.index("generate") + 1 :], blank)
    return {name: value for name, value in vars(parsed).items() if name in names and value is not absent and value not in (None, [])}
