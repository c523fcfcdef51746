"""The judges of `journey`'s videos: their training data, and their verdicts on scripted video."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

import lolrt
from lolrt.train.journey.flow import APART, camera_speed
from lolrt.train.journey.landscape import labels, render
from lolrt.train.journey.measure import RULED, SWITCHED, steady_prompts, switch
from lolrt.train.journey.reading import CLEAR, GROUPS, QUESTIONS, WorldDrawing, answers_of, draw_world, examples, has_subject
from lolrt.train.journey.watch import OWN, SCRIPTED, Video, Watched, decoded, latents, see, watched
from lolrt.train.journey.world import HEIGHT, SPEEDS, VOCABULARY, WIDTH, World, named
from lolrt.train.reader import UNKNOWN
from lolrt.train.spoilt import KINDS, WHOLE
from lolrt.train.text import values

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("one_thread")]


def test_the_camera_s_speed_on_scripted_video_is_what_the_prompt_says() -> None:
    found = []
    for seed, prompt in enumerate(steady_prompts(16)):
        before, after = render(World(seed, ((0, prompt),)), torch.tensor([500, 500 + APART]))[0].permute(0, 2, 3, 1)
        found.append(camera_speed(before, after) / SPEEDS[prompt["speed"]])
    assert all(abs(one - 1) < 0.05 for one in found) and abs(sum(found) / len(found) - 1) < 0.02


def test_scenery_that_stands_still_or_goes_backwards_is_told_from_one_that_travels() -> None:
    (prompt,) = steady_prompts(1)
    before, after = render(World(0, ((0, prompt),)), torch.tensor([500, 500 + APART]))[0].permute(0, 2, 3, 1)
    assert camera_speed(before, before) < 0.1
    assert abs(camera_speed(after, before) / SPEEDS[prompt["speed"]] - 1) > 0.3


def test_a_spoilt_subject_is_not_the_one_that_was_drawn() -> None:
    world, frame = draw_world(3, 1)
    drawing = WorldDrawing(world, frame, torch.Generator().manual_seed(0))
    video, mask = render(world, torch.tensor([frame]))
    assert torch.equal(drawing.picture("as drawn"), video[0].float()) and mask.any()
    changed = (drawing.empty - drawing.whole).abs().amax(0) > 12
    assert changed[mask[0] > 0.9].float().mean() > 0.8 and not changed[:, :20].any(), "only the subject, its shadow and its light go"
    for kind in set(KINDS) - {"as drawn"}:
        assert (drawing.picture(kind) - drawing.whole).abs().mean() > 0.3, kind


def test_answers_are_what_most_of_the_picture_shows_and_unknown_where_two_places_meet() -> None:
    told = set()
    for number in range(0, 120, 3):
        world, frame = draw_world(5, number)
        answer, share = answers_of(world, frame)["place"], labels(world, torch.tensor([frame]))["place"][0]
        assert answer == (int(share.argmax()) if share.max() >= CLEAR else UNKNOWN)
        told.add("unknown" if answer == UNKNOWN else "old" if answer == world.prompts[0][1]["place"] else "new")
    assert told == {"unknown", "old", "new"}


def test_examples_ask_for_no_colour_of_what_is_spoilt() -> None:
    shown = examples(1, 2 * len(KINDS), KINDS)
    assert shown.pictures.shape == (2 * len(KINDS), HEIGHT, WIDTH, 3) and set(shown.answers) == set(QUESTIONS)
    whole = shown.answers[WHOLE] == 1
    assert (shown.answers["colour"][~whole] == UNKNOWN).all() and (shown.answers["subject"][whole] != UNKNOWN).all()


def test_a_picture_has_its_subject_if_there_is_one_whole_of_the_right_kind_and_colour() -> None:
    (prompt,) = steady_prompts(1)
    read = {group: torch.full((4,), prompt[group]) for group in GROUPS} | {WHOLE: torch.tensor([1, 1, 1, 0])}
    read["colour"][1] += 1
    read["subject"][2] += 1
    assert has_subject(read, prompt).tolist() == [True, False, False, False]


def test_switches_change_two_things_each_and_all_pairs_come_in_turn() -> None:
    pairs = set()
    for seed in range(20):
        old, new = switch(seed)
        pairs.add(tuple(group for group in GROUPS if old[group] != new[group]))
    assert pairs == set(SWITCHED) and len(pairs) == 10
    assert {prompt["place"] for prompt in steady_prompts(8)} == {values(VOCABULARY, "place").index(place) for place in RULED}


def test_the_change_at_borders_is_that_of_the_frames_with_which_chunks_begin() -> None:
    change = torch.ones(9 + 12 + 12 - 1)
    change[[8, 20]] = 3.0  # from the ninth frame to the tenth, and from the 21st to the 22nd
    seen = Watched(torch.zeros(3, 8, 8, 3, dtype=torch.uint8), torch.zeros(3), change, torch.tensor([0, 9, 21]))
    assert seen.border_change() == 3.0


def test_scripted_video_is_seen_through_the_vae_alone(tmp_path: Path) -> None:
    """Chunks have the frames that a stream's have, and are what the world draws."""
    pipe, told = lolrt.load("journey"), next(steady_prompts(1))
    chunks = list(decoded(pipe, latents(pipe, Video(SCRIPTED, ((0, told),), 5, 3), tmp_path)))
    assert list(map(len, chunks)) == [len(chunk.frames) for chunk in islice(pipe.stream("a red car"), 3)] == [9, 12, 12]
    drawn = render(World(5, ((0, told),)), torch.arange(33))[0].permute(0, 2, 3, 1)
    assert (torch.cat(chunks).float() - drawn.float()).square().mean() < 255**2 / 10**2.7
    assert see(chunks).first_frames.tolist() == [0, 9, 21]


def test_what_is_watched_is_what_a_stream_shows_and_another_vae_decodes_the_same_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = lolrt.load("journey")
    red, blue = ({**next(steady_prompts(1)), "colour": colour} for colour in (0, 3))
    video = Video(OWN, ((0, red), (2, blue)), 5, 3)
    stream = pipe.stream(" ".join(named(red)), seed=5)
    shown = [next(stream).frames, next(stream).frames]
    stream.set_prompt(" ".join(named(blue)))
    shown.append(next(stream).frames)
    seen = watched(pipe, video, tmp_path)
    assert torch.equal(seen.pictures, torch.stack([frames[-1] for frames in shown]))

    monkeypatch.setattr(pipe, "latent_stream", None)  # they are there
    assert torch.equal(watched(pipe, video, tmp_path).pictures, seen.pictures)
    with torch.no_grad():
        pipe.vae.decoder.head[-1].bias += 0.1
    assert not torch.equal(watched(pipe, video, tmp_path).pictures, seen.pictures)
