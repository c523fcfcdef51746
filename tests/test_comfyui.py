"""The nodes for ComfyUI, in ComfyUI: its loader, its checks of a graph, its executor and its cache.

There is no package of ComfyUI. The tests run where the variable COMFYUI names its folder, with the Python of its .venv if it has one.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lolrt

COMFYUI = os.environ.get("COMFYUI")
ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMFYUI is None, reason="the variable COMFYUI names no folder of ComfyUI")]

WORKFLOW: dict[str, Any] = json.loads((ROOT / "examples" / "comfyui" / "workflow.json").read_text())
NOON = "a red balloon over the hills at noon"


def graph(run: int, model: Path, *, chunks: int = 1, **stream: Any) -> dict[str, Any]:
    """The example's, which keeps its frames instead of saving them."""
    changed = json.loads(json.dumps({node: what for node, what in WORKFLOW.items() if what["class_type"] != "SaveImage"}))
    changed["1"]["inputs"]["model"] = str(model)
    changed["2"]["inputs"] |= stream
    changed["3"]["inputs"]["chunks"] = chunks
    return changed | {"keep": {"class_type": "Keep", "inputs": {"frames": ["3", 0], "run": run}}}


@pytest.fixture(scope="module")
def runs(quick_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """In one ComfyUI: two chunks; the next, which the user interrupts in its passes; the same twice more; another seed; a wrong schedule; a
    wrong word in a later prompt. The folder of the frames, and what each run told."""
    output = tmp_path_factory.mktemp("comfyui")
    graphs = [
        (graph(0, quick_model, chunks=2), None),
        (graph(1, quick_model), 2),
        (graph(2, quick_model), None),
        (graph(3, quick_model), None),
        (graph(4, quick_model, seed=8), None),
        (graph(5, quick_model, schedule="noon"), None),
        (graph(6, quick_model, schedule=f"0 {NOON}\n1 a red unicorn"), None),
    ]
    python = Path(str(COMFYUI)) / ".venv" / "bin" / "python"
    words = [
        python if python.exists() else sys.executable,
        ROOT / "tests" / "comfyui_host.py",
        COMFYUI,
        ROOT / "examples" / "comfyui",
        output,
    ]
    lines = "".join(json.dumps(line) + "\n" for line in graphs)
    done = subprocess.run([str(word) for word in words], input=lines, capture_output=True, text=True, cwd=COMFYUI)
    assert done.returncode == 0, done.stderr[-4000:]
    return output, [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"problem"')]


def expected(quick: lolrt.Pipeline, seed: int) -> list[torch.Tensor]:
    """The example's stream, before its second prompt."""
    chunks = [chunk.frames for chunk in itertools.islice(quick.stream(NOON, seed=seed), 4)]
    assert sum(map(len, chunks)) < quick.fps, "the second prompt comes after a second"
    return chunks


def kept(output: Path, run: int) -> torch.Tensor:
    frames = torch.load(output / f"{run}.pt")
    assert frames.dtype == torch.float32 and frames.min() >= 0 and frames.max() <= 1
    return frames.mul(255).round().byte()


def test_runs_go_on_where_the_last_one_ended(runs: tuple[Path, list[dict[str, Any]]], quick: lolrt.Pipeline) -> None:
    output, told = runs
    first, second, third, fourth = expected(quick, 7)
    assert torch.equal(kept(output, 0), torch.cat([first, second]))
    assert told[1]["problem"][0] == "execution_interrupted" and not (output / "1.pt").exists()
    assert torch.equal(kept(output, 2), third), "the chunk that was interrupted, once"
    assert torch.equal(kept(output, 3), fourth), "the same inputs, and other frames: nothing is taken from the cache"
    assert torch.equal(kept(output, 4), expected(quick, 8)[0]), "another seed is another stream"


def test_progress_and_previews_come_with_each_chunk(runs: tuple[Path, list[dict[str, Any]]], quick: lolrt.Pipeline) -> None:
    _, told = runs
    values = [value for value, _ in told[0]["seen"]]
    total = 2 * (len(quick.sampler.timesteps) + 1)
    assert values == sorted(values) and values[-1] == total and {of for _, of in told[0]["seen"]} == {total}
    assert told[0]["previews"] == 2 * [[quick.width, quick.height]]


def test_what_is_wrong_is_told(runs: tuple[Path, list[dict[str, Any]]]) -> None:
    _, told = runs
    assert "schedule, line 1: expected a time and a prompt" in json.dumps(told[5]["problem"])
    assert told[6]["problem"][0] == "execution_error" and "unicorn" in told[6]["problem"][1]
