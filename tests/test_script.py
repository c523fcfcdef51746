"""Scripts of prompts, from the file to the frame."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

import lolrt
from lolrt.session.script import Cue, ScriptedStream, read_script

DAY, NIGHT = "a red balloon over the hills at noon", "a red balloon over the hills at night"


def test_times_are_seconds_or_clock_times(tmp_path):
    path = tmp_path / "script.txt"
    path.write_text("# comment\n\n0 a b\n 7.25\tc  d \n1:05.5 e\n2:00:01. 5 boats\n")
    assert read_script(path) == [Cue(0, "a b"), Cue(7.25, "c  d"), Cue(65.5, "e"), Cue(7201, "5 boats")]


@pytest.mark.parametrize(
    "text, hint",
    [
        ("0 a\nboat 3\n", "line 2: expected a time and a prompt"),
        ("0 a\n5\n", "line 2: expected a time and a prompt"),
        ("0 a\n1:3:5:7 b", "line 2: expected a time and a prompt"),
        ("0 a\n\n3 b\n3 c", "line 4: its time is not later"),
        ("2 a", "expected its first prompt at time 0"),
        ("# nothing", "expected its first prompt at time 0"),
    ],
)
def test_what_is_wrong_with_a_script(text, hint, tmp_path):
    (tmp_path / "script.txt").write_text(text)
    with pytest.raises(lolrt.Error, match=hint):
        read_script(tmp_path / "script.txt")


def test_a_script_that_is_not_there(tmp_path):
    with pytest.raises(lolrt.Error, match="cannot read the script"):
        read_script(tmp_path / "nothing.txt")


@pytest.mark.whole
def test_a_prompt_begins_with_the_first_chunk_at_its_time_or_later(tiny):
    """Chunks of tiny begin at frames 0, 9, 21, 33; 16 frames a second: 1.3 s is frame 20.8."""
    chunks = ScriptedStream(tiny.stream(DAY, seed=2), [Cue(1.3, NIGHT)], tiny.fps, recache="sinks")
    scripted = list(islice(chunks, 4))
    assert [chunk.switch is not None for chunk in scripted] == [False, False, True, False]
    by_hand = tiny.stream(DAY, seed=2)
    expected = list(islice(by_hand, 2))
    by_hand.set_prompt(NIGHT, recache="sinks")
    expected += islice(by_hand, 2)
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(scripted, expected, strict=True))
    assert scripted[2].switch.total_ms > scripted[2].switch.recache_ms > 0


@pytest.mark.whole
def test_the_picture_follows_the_prompt(tiny):
    """Noon is bright and night is dark."""
    chunks = list(islice(ScriptedStream(tiny.stream(DAY), [Cue(3, NIGHT)], tiny.fps), 12))
    before, after = (torch.cat([chunk.frames for chunk in part]).float().mean() for part in (chunks[:4], chunks[-4:]))
    assert after < 0.6 * before
