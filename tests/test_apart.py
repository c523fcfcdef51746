"""Latents that one process makes and another decodes: the same frames, no pile of chunks, and an end when one of the two is gone."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import apart_ranks
import pytest
import torch

import lolrt

pytestmark = pytest.mark.whole
AHEAD = 2


def start(work: Path, chunks: int) -> list[subprocess.Popen[str]]:
    command = [sys.executable, apart_ranks.__file__, str(work)]
    return [
        subprocess.Popen([*command, str(rank), str(chunks)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]


def made(work: Path) -> list[str]:
    """The first frames of the chunks that rank 0 has made."""
    return (work / "made").read_text().split() if (work / "made").exists() else []


def wait_for(work: Path, chunks: int) -> list[str]:
    deadline = time.monotonic() + 120
    while len(made(work)) < chunks and time.monotonic() < deadline:
        time.sleep(0.02)
    return made(work)


def test_frames_are_those_of_one_process_and_no_more_chunks_are_made_than_may_wait(tmp_path: Path) -> None:
    maker, decoder = start(tmp_path, 6)
    waiting = wait_for(tmp_path, AHEAD)
    time.sleep(3)  # in which it could make more
    assert waiting == made(tmp_path) == ["0", "3"]
    (tmp_path / "begin").touch()
    for process in (maker, decoder):
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert made(tmp_path) == ["0", "3", "6", "9", "12", "15"]
    pipe = lolrt.load("tiny")
    lolrt.set_threads(1)
    expected = torch.cat([chunk.frames for chunk in islice(pipe.stream(apart_ranks.PROMPT, seed=apart_ranks.SEED), 6)])
    assert torch.equal(torch.load(tmp_path / "frames.pt"), expected)


def test_an_error_of_the_maker_reaches_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "begin").touch()
    maker, decoder = start(tmp_path, 0)
    assert "the third chunk is not to be" in maker.communicate(timeout=120)[1]
    assert "rank 0, which makes the latents, has stopped: the third chunk is not to be" in decoder.communicate(timeout=120)[1]


@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_whose_other_is_killed_says_so(gone: int, tmp_path: Path) -> None:
    (tmp_path / "begin").touch()
    processes = start(tmp_path, 1000)
    wait_for(tmp_path, 3)
    processes[gone].kill()
    left = processes[1 - gone]
    _, said = left.communicate(timeout=120)
    assert left.returncode == 1 and f"rank {gone} is gone" in said
    processes[gone].communicate()
