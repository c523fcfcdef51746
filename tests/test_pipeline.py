"""A loaded pipeline in programs of all kinds: sent to other processes, under other defaults of torch, with settings that are not
numbers."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lolrt
from lolrt.text.embeddings import write_embeddings


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def first_frames(pipe: lolrt.Pipeline) -> torch.Tensor:
    return next(pipe.stream(pipe.example_prompts[0], seed=3)).frames


def test_a_pickled_pipeline_is_as_large_as_its_files(tiny: lolrt.Pipeline) -> None:
    files = sum(path.stat().st_size for path in (Path(lolrt.__file__).parent / "_embedded" / "tiny").glob("*.safetensors"))
    files *= tiny.dit.dtype.itemsize // 2  # the files are in bfloat16
    frames = first_frames(tiny)  # this packs and fuses weights, and a pickle must not contain a second copy of them
    pickled = pickle.dumps(tiny)
    assert len(pickled) < 1.2 * files
    assert torch.equal(first_frames(pickle.loads(pickled)), frames)


def test_torchs_default_dtype_changes_no_bit(tiny: lolrt.Pipeline, double: None) -> None:
    pipe = lolrt.load("tiny", tiny.dit.dtype)
    assert {parameter.dtype for parameter in pipe.dit.parameters()} == {tiny.dit.dtype}
    frames = first_frames(pipe)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(frames, first_frames(tiny))


def test_a_model_is_loaded_to_where_it_was_asked_for(tiny: lolrt.Pipeline) -> None:
    with torch.device("meta"):
        pipe = lolrt.load("tiny")
    assert torch.equal(first_frames(pipe), first_frames(tiny))


@pytest.mark.parametrize("name", ["sink_frames", "recent_frames", "chunk_frames", "recall_frames", "store_frames"])
def test_frames_of_a_window_are_whole_numbers(name: str) -> None:
    lolrt.Window(**{name: np.int64(3 if name != "recent_frames" else 9)})
    for wrong in (2.5, 3.0, "3", None, torch.tensor(1.5)):
        with pytest.raises(lolrt.Error, match=f"{name} is .*; expected a whole number"):
            lolrt.Window(**{name: wrong})


@pytest.mark.parametrize("name", ["seed", "start_frame"])
def test_numbers_of_a_stream_are_whole(name: str, tiny: lolrt.Pipeline) -> None:
    for wrong in (1.5, 1.0, "1"):
        with pytest.raises(lolrt.Error, match=f"{name} is .*; expected a whole number"):
            tiny.latent_stream(tiny.example_prompts[0], **{name: wrong})
    with pytest.raises(lolrt.Error, match=r"threads is 1\.5"):
        lolrt.set_threads(1.5)


# Prints the CPU seconds of some chunks, computed with a given number of threads that all share one core.
CROWDED = """
import os, sys, time, lolrt
lolrt.set_threads(int(sys.argv[1]))
pipe = lolrt.load("tiny")
stream = pipe.latent_stream(pipe.example_prompts[0])
next(stream)
core = {min(os.sched_getaffinity(0))}
for thread in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(thread), core)
for _ in range(3):
    next(stream)
begin = time.process_time()
for _ in range(3):
    next(stream)
print(time.process_time() - begin)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores, and Linux")
def test_threads_that_share_a_core_do_not_spin_against_each_other() -> None:
    """They compute as long as one thread does. Spinning comes on top: without a limit it takes 90 times as much."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    spent = [
        float(subprocess.run([sys.executable, "-c", CROWDED, n], env=environment, check=True, capture_output=True, text=True).stdout)
        for n in "12"
    ]
    assert spent[1] < 2.5 * spent[0]


@pytest.mark.parametrize("wrong", [None, 3, b"a red car", ["a red car"]])
def test_prompts_are_text(wrong: object, tiny: lolrt.Pipeline, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "text.safetensors", {"a red car": tiny.encode_text("a red car")})
    stream = tiny.stream("a red car")
    for asked in (tiny.stream, stream.set_prompt, tiny.engine(1).open, lolrt.EmbeddingFile(tmp_path / "text.safetensors")):
        with pytest.raises(lolrt.Error, match="expected a prompt, which is text"):
            asked(wrong)  # type: ignore[operator]
    with pytest.raises(lolrt.Error, match="expected a list of prompts"):
        tiny.encode_text.encode("a red car")


FRAMES = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)


@pytest.mark.parametrize("wrong", [FRAMES.float(), FRAMES[:, :32], FRAMES[..., :2], FRAMES[0, 0], FRAMES.numpy(), [1], None])
def test_frames_are_of_bytes_and_of_the_size(wrong: Any, tiny: lolrt.Pipeline, tmp_path: Path) -> None:
    with lolrt.VideoWriter(tmp_path / "v.mp4", 64, 96, 16) as writer:
        with pytest.raises(lolrt.Error, match=r"expected a torch tensor, uint8 \[n, 64, 96, 3\]"):
            writer.write(wrong)
        writer.write(FRAMES)  # it goes on
    with pytest.raises(lolrt.Error, match=r"expected a torch tensor, uint8 \[64, 96, 3\]"):
        tiny.encode_video([wrong])


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"fps": 1.5}, {"height": 64.0}, {"crf": 0}, {"crf": "18"}, {"width": 1}])
def test_numbers_of_a_video(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(lolrt.Error):
        lolrt.VideoWriter(tmp_path / "v.mp4", **{"height": 64, "width": 96, "fps": 16, **wrong})
    assert not list(tmp_path.iterdir())


def test_settings_are_numbers_and_of_their_kinds(tiny: lolrt.Pipeline) -> None:
    """Whatever takes a number or a dataclass raises this error itself, instead of passing the value to something further down."""
    for dataclass in (lolrt.Rope, lolrt.Window, lolrt.SinkGate, lolrt.Sampler):
        for field in fields(dataclass):
            if isinstance(field.default, int | float):
                with pytest.raises(lolrt.Error, match=field.name):
                    dataclass(**{field.name: "1"})
    with pytest.raises(lolrt.Error, match="timesteps"):
        lolrt.Sampler(timesteps=(1000, "x"))  # type: ignore[arg-type]
    for name in ("rope", "window", "sampler", "start"):
        with pytest.raises(lolrt.Error, match=name):
            tiny.stream(tiny.example_prompts[0], **{name: "x"})
    for wrong in (0, 1.5):
        with pytest.raises(lolrt.Error, match="max_sessions"):
            tiny.engine(wrong)  # type: ignore[arg-type]
    with pytest.raises(lolrt.Error, match="prompt_embeds"):
        lolrt.LatentStream(tiny.dit, "a red car", 8, 12)  # type: ignore[arg-type]


@pytest.mark.whole
def test_a_forked_child_computes_as_its_parent() -> None:
    """GNU's OpenMP would wait there for threads that do not exist."""
    code = """
import os, lolrt, torch
lolrt.set_threads(2)
stream = lolrt.load("tiny").stream("a red car", sampler=lolrt.Sampler(timesteps=(1000,)))
state, torch_product = stream.state_dict(), torch.ones(512, 512) @ torch.ones(512, 512)
first = next(stream).latents
child = os.fork()
if child == 0:
    stream.load_state_dict(state)
    os._exit(not torch.allclose(next(stream).latents, first, atol=1e-2) or torch.get_num_threads() != 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
