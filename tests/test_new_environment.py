"""The source distribution in an environment where nothing of the project is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import output_of, run
from distribution import unpacked_sources


@pytest.mark.slow
def test_it_is_built_with_the_tools_that_it_asks_for(tmp_path: Path) -> None:
    """They come from the package index. Without torch the command reports that torch is missing."""
    output_of(sys.executable, "-m", "venv", tmp_path / "new")
    python = tmp_path / "new" / "bin" / "python"
    output_of(python, "-m", "pip", "install", "--quiet", "--no-deps", unpacked_sources(tmp_path), LOLRT_CUDA="OFF")
    assert "scalar" in output_of(python, "-c", "from lolrt import _core; print(_core.isas())")
    done = run(tmp_path / "new" / "bin" / "lolrt", "info")
    assert done.returncode == 2 and done.stderr.startswith("lolrt: torch is missing") and done.stderr.count("\n") == 1, done.stderr
