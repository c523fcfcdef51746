"""Runs build tools; those of the tests' own environment come first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PATH": path} | environment, check=False)


def output_of(*command: object, **environment: str) -> str:
    """The output of a command; if it fails, an error with all of its output."""
    done = run(*command, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
