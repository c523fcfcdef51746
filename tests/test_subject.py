"""The judge of `tiny`'s long videos: its training data, its answers, and that its findings stand in the card and the README."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import lolrt
from lolrt.train.card import MEASURED
from lolrt.train.reader import Reader, first_run
from lolrt.train.spoilt import KINDS, WHOLE, Drawing
from lolrt.train.tiny import long_run
from lolrt.train.tiny.card import summary, write_card
from lolrt.train.tiny.data import scene_of
from lolrt.train.tiny.scenes import HEIGHT, VOCABULARY, WIDTH, render
from lolrt.train.tiny.subject import QUESTIONS, SceneDrawing, examples, is_right, train_reader

TINY = Path(lolrt.__file__).parent / "_embedded" / "tiny"


def covered(drawing: Drawing, kind: str) -> float:
    """Pixels of a picture that differ from the empty landscape."""
    return float(((drawing.picture(kind) - drawing.empty).abs().amax(0) > 12).sum())


def test_spoilt_subjects_cover_more_or_less_of_their_landscape() -> None:
    areas = dict.fromkeys(KINDS, 0.0)
    for number in range(24):
        drawing = SceneDrawing(scene_of(0, number), torch.Generator().manual_seed(number))
        video, mask = render(drawing.scene, drawing.frame)
        assert torch.equal(drawing.picture("as drawn"), video[0].float())
        empty, nothing = render(drawing.scene, drawing.frame, with_object=False)
        assert torch.equal(drawing.picture("erased"), empty[0].float()) and not nothing.any() and mask.any()
        for kind in areas:
            areas[kind] += covered(drawing, kind)
    whole = areas["as drawn"]
    assert areas["erased"] == 0
    assert 0.8 * whole < areas["moved"] < 1.15 * whole
    assert areas["small"] < 0.3 * whole and areas["cut off"] < 0.6 * whole and areas["in part"] < 0.7 * whole
    assert areas["doubled"] > 1.25 * whole and areas["beside another"] > 1.25 * whole


@pytest.mark.whole
def test_a_reader_learns_to_tell_a_whole_subject_from_an_empty_landscape() -> None:
    shown = examples(1, 320, ("as drawn", "erased"))
    torch.manual_seed(0)
    reader = Reader(QUESTIONS, HEIGHT, WIDTH)
    reader.train_on(shown.pictures, shown.answers, 60, 0)
    held_out = examples(2, 100, ("as drawn", "erased"))
    read = reader.read(held_out.pictures)
    assert (read[WHOLE] == held_out.answers[WHOLE]).float().mean() > 0.9
    whole = held_out.answers[WHOLE] == 1
    assert (read["object"] == held_out.answers["object"])[whole].float().mean() > 0.8
    twin = train_reader(0, 44, 2), train_reader(0, 44, 2)
    assert torch.equal(*(one.read(held_out.pictures)["time"] for one in twin)), "a seed says all of it"


def test_a_frame_is_right_with_one_whole_subject_of_the_colour_and_the_kind() -> None:
    words = {"colour": "yellow", "object": "car", "place": "sea", "time": "day"}
    yellow, car = 1, 2
    read = {
        WHOLE: torch.tensor([1, 0, 1, 1]),
        "colour": torch.tensor([yellow, yellow, 0, yellow]),
        "object": torch.tensor([car, car, car, 0]),
        "place": torch.tensor([3, 1, 1, 1]),
    }
    assert is_right(read, words).tolist() == [True, False, False, False]


def test_a_new_value_is_there_once_it_stays() -> None:
    there = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0], dtype=torch.bool)
    assert first_run(there, 3) == 4
    assert first_run(there, 2) == 1
    assert first_run(there, 4) is None


def test_the_sample_of_prompts_has_every_object_place_and_time() -> None:
    for policy in long_run.POLICIES:
        for group in set(VOCABULARY) - {"colour"}:
            assert {video.words[group] for video in long_run.videos(policy)} == set(VOCABULARY[group].values())
    assert len({video.key for policy in long_run.POLICIES for video in long_run.videos(policy)}) == 4 * len(long_run.PROMPTS)


@pytest.mark.whole
def test_a_video_that_was_left_goes_on_with_the_same_frames(tiny: lolrt.Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_run, "LOOK_EVERY", 2)
    monkeypatch.setattr(long_run, "LOOKS_A_MINUTE", 3)
    video = long_run.videos("gate where realigned")[1]
    (tmp_path / "once").mkdir()
    once = long_run.watched(tiny, video, 2, tmp_path / "once")
    first = long_run.watched(tiny, video, 1, tmp_path)
    assert torch.equal(first, once[:3]) and torch.equal(long_run.watched(tiny, video, 2, tmp_path), once)
    assert torch.equal(long_run.watched(tiny, video, 1, tmp_path), first), "of what is there no more is given than was asked for"


@pytest.mark.whole
def test_a_look_is_nearly_what_the_whole_video_shows(tiny: lolrt.Pipeline) -> None:
    stream = tiny.latent_stream(tiny.example_prompts[0])
    chunks = [next(stream) for _ in range(6)]
    video = tiny.vae.decode(torch.cat([chunk.latents for chunk in chunks]), {})
    # Of the last chunk, the first latent frame is number 15, and its last video frame 60.
    exact = video[60].add(1).mul(127.5).permute(1, 2, 0)
    assert (long_run.look(tiny, chunks[4], chunks[5]).float() - exact).square().mean().sqrt() < 7


def test_the_card_and_the_readme_say_what_was_measured(tmp_path: Path) -> None:
    for name in (MEASURED, "training.log"):
        shutil.copyfile(TINY / name, tmp_path / name)
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == (TINY / "README.md").read_text()
    said = summary(json.loads((TINY / MEASURED).read_text()))
    assert said in " ".join((Path(__file__).parents[1] / "README.md").read_text().split())
