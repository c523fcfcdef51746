"""Runs the command line in a separate process, and reads the files that it leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lolrt", *map(str, arguments)]


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def error_of(*arguments: object, **options: object) -> str:
    """The one line that a failing command prints."""
    done = run(*arguments, **options)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("lolrt: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def decode(path: Path) -> tuple[int, tuple[int, int]]:
    """The number of frames in a video, and the size of the last one."""
    with av.open(str(path)) as container:
        frames = [frame for frame in container.decode(video=0)]
    return len(frames), (frames[-1].width, frames[-1].height)
