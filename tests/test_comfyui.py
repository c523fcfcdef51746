"""The nodes for ComfyUI: with a stand-in for the two things of ComfyUI that they call, and in its own server.

There is no package of ComfyUI. Its server is tested where the variable COMFYUI names the folder of its source, with the Python of its .venv
if it has one.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import lolrt
from tests.comfyui_server import NODES, ComfyUI

COMFYUI = os.environ.get("COMFYUI")
WORKFLOW: dict[str, Any] = json.loads((NODES / "workflow.json").read_text())
NOON, NIGHT = "a red balloon over the hills at noon", "a red balloon over the hills at night"


class Interrupted(Exception):  # noqa: N818
    """What ComfyUI raises in a node."""


class Host(ModuleType):
    """Stands for comfy.utils and comfy.model_management. As ComfyUI does, it looks for an interruption before it takes a report."""

    interrupt_at: int | None = None
    """The report that is not taken any more."""

    def __init__(self) -> None:
        super().__init__("comfy")
        self.seen: list[tuple[int, int]] = []
        self.utils, self.model_management = self, self

    def ProgressBar(self, total: int) -> Host:  # noqa: N802  # as ComfyUI has it
        self.total = total
        return self

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        if len(self.seen) == self.interrupt_at:
            self.interrupt_at = None
            raise Interrupted
        self.seen.append((value, self.total))

    def throw_exception_if_processing_interrupted(self) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host()
    for name in ("comfy", "comfy.utils", "comfy.model_management"):
        monkeypatch.setitem(sys.modules, name, host)
    yield host
    sys.modules.pop("lolrt.comfyui", None)


def by_hand(pipe: lolrt.Pipeline, seed: int, chunks: int, night_from: int) -> list[torch.Tensor]:
    """The frames of a stream that nobody interrupts; chunk `night_from` is the first of the second prompt."""
    stream, made = pipe.stream(NOON, seed=seed), []
    for number in range(chunks):
        if number == night_from:
            stream.set_prompt(NIGHT)
        made.append(next(stream).frames)
    return made


@pytest.mark.whole
@pytest.mark.parametrize("report", range(9))
def test_an_interrupted_run_loses_nothing(host: Host, quick: lolrt.Pipeline, report: int) -> None:
    """At each of its reports of progress: those of three chunks of two passes, and of each when it is made."""
    nodes = importlib.import_module("lolrt.comfyui")
    schedule = f"0 {NOON}\n{10 / quick.fps} {NIGHT}"  # chunks begin at frames 0, 9, 21, 33
    (reel,) = nodes.BeginStream().begin(quick, schedule, 7, "")
    host.interrupt_at = report
    with pytest.raises(Interrupted):
        nodes.NextChunks().sample(reel, 3)
    frames = torch.cat([nodes.NextChunks().sample(reel, chunks)[0] for chunks in (1, 3)])
    assert torch.equal(frames.mul(255).round().byte(), torch.cat(by_hand(quick, 7, 4, 2)))


@pytest.mark.whole
def test_each_pass_is_progress(host: Host, tiny: lolrt.Pipeline) -> None:
    """The first chunk of tiny has more passes than the others."""
    nodes = importlib.import_module("lolrt.comfyui")
    nodes.NextChunks().sample(*nodes.BeginStream().begin(tiny, f"0 {NOON}", 7, ""), 2)
    values = [value for value, _ in host.seen]
    assert len(values) == len(tiny.sampler.first_timesteps) + len(tiny.sampler.timesteps) + 2
    assert values == sorted(set(values)) and host.seen[-1] == (200, 200)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    if COMFYUI is None:
        pytest.skip("the variable COMFYUI names no folder of ComfyUI")
    comfyui = ComfyUI(Path(COMFYUI).resolve(), tmp_path_factory.mktemp("comfyui") / "base")
    yield comfyui
    comfyui.close()


@pytest.fixture(scope="module")
def expected(server: ComfyUI, quick_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    """Streams that ComfyUI has no part in, by the torch that it has."""
    path = tmp_path_factory.mktemp("expected") / "chunks.pt"
    script = (
        f"import sys, torch, lolrt\nNOON, NIGHT = {NOON!r}, {NIGHT!r}\n{inspect.getsource(by_hand)}\npipe = lolrt.load(sys.argv[1])\n"
        "torch.save({'7': by_hand(pipe, 7, 7, 5), '8': by_hand(pipe, 8, 1, 5)}, sys.argv[2])"
    )
    subprocess.run([server.python, "-c", script, str(quick_model), str(path)], check=True, cwd=NODES.parents[1])
    return {seed: [chunk.numpy() for chunk in chunks] for seed, chunks in torch.load(path).items()}


def graph(model: Path, *, chunks: int = 1, **stream: Any) -> dict[str, Any]:
    """The example's."""
    changed = json.loads(json.dumps(WORKFLOW))
    changed["1"]["inputs"]["model"] = str(model)
    changed["2"]["inputs"] |= stream
    changed["3"]["inputs"]["chunks"] = chunks
    return changed


@pytest.mark.slow
def test_a_server_goes_on_where_the_last_run_ended(server: ComfyUI, quick_model: Path, expected: dict[str, list[np.ndarray]]) -> None:
    """And passes the second prompt of the schedule, which comes with the sixth chunk."""
    made = expected["7"]
    runs = [server.run(graph(quick_model, chunks=chunks)) for chunks in (3, 1)]
    assert [run.status for run in runs] == ["success", "success"], runs
    assert np.array_equal(runs[0].frames, np.concatenate(made[:3]))
    assert np.array_equal(runs[1].frames, made[3]), "the same inputs, and other frames: nothing is taken from the cache"

    interrupted = server.run(graph(quick_model, chunks=1000), interrupt=True)
    assert interrupted.frames is None and "execution_interrupted" in interrupted.messages, interrupted
    after = server.run(graph(quick_model, chunks=3))
    assert np.array_equal(after.frames, np.concatenate(made[4:7]))

    another = server.run(graph(quick_model, seed=8))
    assert np.array_equal(another.frames, expected["8"][0]), "another seed is another stream"


@pytest.mark.slow
def test_a_server_shows_progress_and_a_picture_of_each_chunk(server: ComfyUI, quick_model: Path, quick: lolrt.Pipeline) -> None:
    run = server.run(graph(quick_model, chunks=3, seed=9))
    told = [(value, total) for node, value, total in run.progress if node == "3"]
    assert [value for value, _ in told] == sorted(value for value, _ in told) and told[-1] == (300, 300)
    last = list(itertools.accumulate([9, 12, 12]))
    assert len(run.previews) == 3
    for preview, end in zip(run.previews, last, strict=True):
        assert preview.shape == (quick.height, quick.width, 3)
        others = [np.abs(preview.astype(int) - frame).mean() for frame in run.frames]
        assert min(others) < 8, "it is a JPEG of the chunk's last frame"
        assert others[end - 1] == min(others)


@pytest.mark.slow
def test_a_server_tells_what_is_wrong(server: ComfyUI, quick_model: Path) -> None:
    refused = server.run(graph(quick_model, schedule="noon")).refused
    assert "schedule, line 1: expected a time and a prompt" in refused
    failed = server.run(graph(quick_model, schedule=f"0 {NOON}\n1 a red unicorn"))
    assert failed.status == "error" and "unicorn" in failed.messages["execution_error"]["exception_message"]


@pytest.mark.slow
def test_another_node_may_make_the_schedule(server: ComfyUI, quick_model: Path, expected: dict[str, list[np.ndarray]]) -> None:
    text = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": f"0 {NOON}"}}
    run = server.run(graph(quick_model, schedule=["5", 0]) | {"5": text})
    assert run.status == "success", run
    assert np.array_equal(run.frames, expected["7"][0])
    wrong = server.run(graph(quick_model, schedule=["5", 0]) | {"5": text | {"inputs": {"value": "noon"}}})
    assert "schedule, line 1: expected a time and a prompt" in wrong.messages["execution_error"]["exception_message"]
