"""The progress of a run: the callback of a stream, and the lines of `lolrt generate --progress json`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lolrt_in_process import refused

import lolrt
from lolrt.cli import main

pytestmark = pytest.mark.whole

PROMPT = "a red balloon over the hills"


def passes(sampler: lolrt.Sampler, first: bool) -> int:
    """The passes of a chunk: one for each timestep, and the cache pass."""
    return 1 + len(sampler.first_timesteps if first and sampler.first_timesteps else sampler.timesteps)


def test_the_callback_is_called_between_the_passes_of_a_chunk(quick: lolrt.Pipeline) -> None:
    stream, seen = quick.stream(PROMPT), []
    stream.latent_stream.on_pass = lambda *told: seen.append(told)
    first, second = next(stream), next(stream)
    frames = len(first.latents)
    expected = [(0, done) for done in range(1, passes(quick.sampler, first=True))]
    expected += [(frames, done) for done in range(1, passes(quick.sampler, first=False))]
    assert seen == expected and second.first_frame == frames


def test_an_error_of_the_callback_loses_nothing(quick: lolrt.Pipeline) -> None:
    def cancel(first_frame: int, passes: int) -> None:
        if passes == 2:
            stream.latent_stream.on_pass = None
            raise TimeoutError

    stream = quick.stream(PROMPT, seed=3)
    stream.latent_stream.on_pass = cancel
    with pytest.raises(TimeoutError):
        next(stream)
    assert torch.equal(next(stream).frames, next(quick.stream(PROMPT, seed=3)).frames)


def test_programs_read_lines(quick_model: Path, quick: lolrt.Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, video = tmp_path / "day.txt", str(tmp_path / "v.mp4")
    script.write_text("0 a red balloon over the hills at noon\n0.1 a red balloon over the hills at night\n9 a red car\n")
    words = ["generate", "--script", script, "-o", video, "--model", quick_model, "--frames", 40, "--progress", "json"]
    assert main([str(word) for word in words]) == 0
    note, *lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert note["note"].startswith("1 of the script's 3 prompts come after the video's end")
    assert {(line["output"], line["of"]) for line in lines} == {(video, 40)}
    chunks = [line for line in lines if "seconds" in line]
    assert [chunk["frames"] for chunk in chunks] == [9, 21, 33, 40]
    assert all(chunk["seconds"] == chunk["frames"] / quick.fps and chunk["frames_per_second"] > 0 for chunk in chunks)
    assert ["switch" in chunk for chunk in chunks] == [False, True, False, False]
    written, done = 0, 0
    for line in lines:
        if "seconds" in line:
            # The new prompt re-caches the three recent frames, which takes one more pass.
            expected = passes(quick.sampler, first=written == 0) - 1
            assert done >= expected if "switch" in line else done == expected
            written, done = line["frames"], 0
        else:
            assert line["frames"] == written and line["passes"] == done + 1
            done += 1


def test_no_lines_are_asked_for_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        refused(capsys, "generate", PROMPT, "-o", tmp_path / "v.mp4", "--quiet", "--progress", "json")
    assert "not allowed with argument --quiet" in capsys.readouterr().err
