"""The scripts that train the embedded models, from an empty folder to one that loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import lolrt

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "size"), [("tiny", (64, 96)), ("journey", (80, 144))])
def test_the_whole_script_runs_in_miniature_and_ships_a_model_that_loads(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    out = tmp_path / "model"
    command = [sys.executable, "-m", f"lolrt.train.{name}", "--smoke", "--work", str(tmp_path / "work"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert {"README.md", "training.log", "model.json", "text.json", "vae.safetensors"} <= {path.name for path in out.iterdir()}
    pipe = lolrt.load(out)
    chunk = next(pipe.stream(pipe.example_prompts[0]))
    assert chunk.frames.shape == (9, *size, 3)
    assert json.loads((out / "config.json").read_text())["rope_dims"] == [44, 10, 10]
    again = subprocess.run([*command, "--stages", "data", "vae", "dit"], capture_output=True, text=True, timeout=600)
    assert again.returncode == 0 and "step" not in again.stdout, "finished stages are skipped"
