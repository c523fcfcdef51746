"""The command line. Each command has a file of its own, with `add_command`, which makes its parser, and `run`.

torch, and modules that need it, are imported in `run`, so that `--help` and `--version` are fast.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from lolrt import __version__
from lolrt.cli import bench, completion, convert, encode, generate, info, inspect, lab, serve, synth
from lolrt.cli.standard import standard_streams
from lolrt.errors import Error

OUT_OF_MEMORY = "the memory does not suffice: a smaller window or size takes less, and lolrt info --model counts how much"

GROUPS = {
    "video": (generate, serve),
    "models": (inspect, convert, synth, encode),
    "this machine": (info, bench, completion),
    "research": (lab,),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0; 2, with one line on standard error, for an error that the user can correct; or 128
    plus the number of the signal that ended it (130 for Ctrl-C)."""
    with standard_streams():
        try:
            try:
                run(argv)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()  # here, because an error of the flush at exit could no longer be reported
        except BrokenPipeError:
            return 128 + signal.SIGPIPE
        except Error as error:
            print(f"lolrt: {error}", file=sys.stderr)
            return 2
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            print(f"lolrt: {OUT_OF_MEMORY}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stop:
            print(f"lolrt: {str(stop) or 'interrupted'}", file=sys.stderr)
            return 128 + getattr(stop, "number", signal.SIGINT)
    return 0


def run(argv: Sequence[str] | None) -> None:
    arguments = parser().parse_args(argv)
    arguments.argv = sys.argv[1:] if argv is None else list(argv)
    check_folder()
    check_kernels()
    with warnings.catch_warnings():
        # Commands print the warnings about a model themselves, as notes.
        warnings.filterwarnings("ignore", module=r"lolrt\.cli\.")
        arguments.run(arguments)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out, in Python, NumPy, the core, or torch. On the CPU torch has no exception of its own for
    it."""
    of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return (
        of_system or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    )


def check_folder() -> None:
    try:
        os.getcwd()
    except OSError:
        raise Error("the folder in which lolrt was started is gone, and libraries do not load there: change to another one") from None


def check_kernels() -> None:
    try:
        import torch  # noqa: F401 - before the core, which then computes on torch's threads
    except ImportError as error:
        raise Error(f"torch is missing or does not load ({error}): pip install torch, or see pytorch.org for other builds") from None
    try:
        from lolrt import _core
    except ImportError as error:
        raise Error(f"the kernels are not built or do not load ({error}): pip install . builds them") from None

    if _core.isa() == "none":
        raise Error(f"LOLRT_ISA is {os.environ['LOLRT_ISA']!r}; this build and CPU have {', '.join(_core.isas())}")


def parser() -> argparse.ArgumentParser:
    top = Top(prog="lolrt", description="Endless video from streaming autoregressive diffusion models.")
    top.add_argument("--version", action="version", version=f"lolrt {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser)
    for title, members in GROUPS.items():
        before = len(commands.choices)
        for command in members:
            command.add_command(commands)
        top.groups[title] = list(commands._get_subactions())[before:]
    return top


class Top(argparse.ArgumentParser):
    """The parser of the commands. Its help has them in groups, which argparse knows for options only."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.groups: dict[str, list[argparse.Action]] = {}

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, actions in {**self.groups, "options": self._optionals._group_actions}.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        return formatter.format_help()
