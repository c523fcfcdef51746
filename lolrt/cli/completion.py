"""`lolrt completion`: completes commands, options and files in a shell."""

from __future__ import annotations

import argparse

from lolrt.cli.options import Commands

SHELLS = ("bash", "zsh", "tcsh")  # those of shtab
FOLDERS = {"DIR", "DST"}
FILES = {"FILE", "FILE[:STRENGTH]", "SNAPSHOT", "SRC", "PATH", "MODEL"}


def add_command(commands: Commands) -> None:
    completion = commands.add_parser(
        "completion", help="write a script that completes lolrt's commands and options in a shell",
        description="In bash: eval \"$(lolrt completion bash)\"; in zsh: lolrt completion zsh > \"${fpath[1]}/_lolrt\"",
    )  # fmt: skip
    completion.set_defaults(run=run)
    completion.add_argument("shell", choices=SHELLS, help="that reads the script")


def run(arguments: argparse.Namespace) -> None:
    import shtab

    from lolrt.cli import parser

    top = parser()
    _name_files(top)
    print(shtab.complete(top, arguments.shell))


def _name_files(parser: argparse.ArgumentParser) -> None:
    """Tells shtab which values are files and folders: those that the help calls so."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _name_files(command)
        name = action.metavar or action.dest.upper()
        if name in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif name in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
