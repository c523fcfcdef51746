"""`journey`: its world does what its labels say, however it is asked for, and its training computes what the runtime does."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from runtime_flow import runtime_flow

import lolrt
from lolrt.models.dit import CausalDiT
from lolrt.models.vae.wan import CausalVAE
from lolrt.session.script import parse_script
from lolrt.train.card import MEASURED, cost
from lolrt.train.codec_pca import PCACodec, load_codec, to_unit
from lolrt.train.journey.card import summary, write_card
from lolrt.train.journey.data import CLIP_LATENTS, SINK_FRAMES, Clip, draw_clip, encode_clip, video_frame
from lolrt.train.journey.export import export
from lolrt.train.journey.landscape import labels, render
from lolrt.train.journey.plan import Plan
from lolrt.train.journey.start import start_from, take_over
from lolrt.train.journey.train_dit import frame_texts
from lolrt.train.journey.world import FILLER, GROUPS, HEIGHT, PASSING, SPEEDS, VOCABULARY, WIDTH, Prompt, World, draw_prompt, named
from lolrt.train.teacher_forcing import CHUNK, TeacherForcing
from lolrt.train.text import all_words, value_table, values
from lolrt.train.train_dit import dit_config
from lolrt.train.train_vae import reconstruction_psnr

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("one_thread")]


def prompt(**said: str) -> Prompt:
    plain = {"colour": "red", "subject": "car", "place": "hills", "time": "day", "weather": "clear", "speed": "fast"} | said
    return {group: values(VOCABULARY, group).index(plain[group]) for group in GROUPS}


def steady(seed: int, **said: str) -> World:
    return World(seed, ((0, prompt(**said)),))


SWITCH = World(7, ((0, prompt()), (45, prompt(colour="blue", subject="horse", place="sea", time="dusk", weather="rain", speed="slow"))))


def test_a_frame_is_the_same_whenever_and_however_it_is_asked_for() -> None:
    frames = torch.arange(40, 66)
    video, mask = render(SWITCH, frames)
    alone, _ = render(SWITCH, frames[19:20])
    assert video.shape == (26, 3, HEIGHT, WIDTH) and video.dtype == torch.uint8 and mask.shape == (26, HEIGHT, WIDTH)
    assert torch.equal(render(SWITCH, frames)[0], video) and torch.equal(alone, video[19:20])
    assert not torch.equal(render(steady(8), frames)[0], render(steady(9), frames)[0])


def test_a_change_is_not_seen_before_its_frame() -> None:
    before = World(7, SWITCH.prompts[:1])
    assert torch.equal(render(before, torch.arange(40, 46))[0], render(SWITCH, torch.arange(40, 46))[0])
    assert not torch.equal(render(before, torch.arange(50, 52))[0], render(SWITCH, torch.arange(50, 52))[0])


@pytest.mark.parametrize("place", values(VOCABULARY, "place"))
def test_the_landscape_never_repeats_and_a_world_may_be_as_old_as_one_likes(place: str) -> None:
    frames = torch.tensor([0, 500, 5_000, 100_000, 12 * 3600 * 16])
    video, mask = render(steady(3, place=place), frames)
    sky_and_land = video[:, :, 20:60].float()
    apart = (sky_and_land[:, None] - sky_and_land[None]).abs().mean((2, 3, 4))[~torch.eye(5, dtype=torch.bool)]
    assert apart.min() > 2 and mask.mean((1, 2)).min() > 0.03


@pytest.mark.parametrize("speed", [0, 1])
def test_what_is_nearest_moves_as_fast_as_the_label_says(speed: int) -> None:
    """The dashes of the lane, whose phase a Fourier coefficient gives."""
    world = steady(2, speed=values(VOCABULARY, "speed")[speed])
    row = render(world, torch.arange(9))[0][:, :, 76].float().mean(1)
    turn = torch.exp(-2j * torch.pi * torch.arange(WIDTH) / 36)
    phase = (row.to(torch.complex64) * turn).sum(1)
    moved = -torch.angle(phase[1:] / phase[:-1]) * 36 / (2 * torch.pi)
    assert moved.abs().mean() == pytest.approx(SPEEDS[speed], rel=0.02)
    assert labels(world, torch.arange(9))["speed"].tolist() == pytest.approx([SPEEDS[speed]] * 9)


def test_no_frame_of_a_steady_world_jumps() -> None:
    for seed, place in enumerate(values(VOCABULARY, "place")):
        video = render(steady(seed, place=place, weather="snow"), torch.arange(200, 260))[0].float()
        change = video.diff(dim=0).abs().mean((1, 2, 3))
        assert change.max() < 1.35 * change.median()


def test_labels_go_from_the_first_prompt_to_the_second_within_what_is_asked_of_the_model() -> None:
    frames = torch.arange(0, 45 + 16 * 8)
    told = labels(SWITCH, frames)
    before, after = SWITCH.prompts[0][1], SWITCH.prompts[1][1]
    seconds = {"colour": 5, "subject": 5, "place": 5, "time": 3, "weather": 3}
    for group, within in seconds.items():
        assert torch.allclose(told[group][:45].argmax(1), torch.tensor(before[group])), group
        assert torch.allclose(told[group][45 + 16 * within :].argmax(1), torch.tensor(after[group])), group
        assert told[group][-1, after[group]] > 0.95, group


def test_a_subject_that_is_exchanged_leaves_on_the_left_as_the_next_comes_in_on_the_right() -> None:
    mask = render(SWITCH, torch.tensor([44, 63, 75, 87, 140]))[1]
    column = torch.arange(WIDTH) + 0.5
    centre = (mask * column).sum((1, 2)) / mask.sum((1, 2))
    assert abs(centre[0] - centre[-1]) < 16 and 50 < centre[0] < 85
    left, right = mask[:, :, :36].sum((1, 2)), mask[:, :, 108:].sum((1, 2))
    assert left[2] > 0 and right[2] > 0 and right[0] == 0 and left[-1] == 0


def test_a_time_that_is_not_named_goes_round() -> None:
    said = prompt() | {"time": PASSING}
    assert len(named(said)) == len(GROUPS) - 1
    weights = World(1, ((0, said),)).time(torch.arange(0, 16 * 96, 16))
    torch.testing.assert_close(weights.sum(1), torch.ones(96, dtype=weights.dtype))
    assert set(weights.argmax(1).tolist()) == {0, 1, 2, 3}
    order = torch.unique_consecutive(weights.argmax(1)).tolist()
    assert all((b - a) % 4 == 1 for a, b in pairwise(order))


def test_words_belong_to_one_group_and_fillers_to_none() -> None:
    words = [word for group in all_words(VOCABULARY, FILLER).values() for word in group]
    assert len(set(words)) == len(words)
    assert all(len(values(VOCABULARY, group)) > 1 for group in VOCABULARY)


def test_clips_hold_the_latents_around_their_gap_and_count_the_chunks_that_follow_one_prompt() -> None:
    codec = PCACodec.fit(to_unit(render(steady(1), torch.arange(17))[0])[None], 24)
    clip = Clip(World(5, SWITCH.prompts), gap=11, change=12)
    assert video_frame(12) == 45 == clip.world.prompts[1][0]
    encoded = encode_clip(clip, codec)
    last = CLIP_LATENTS + clip.gap
    whole = codec.encode(to_unit(render(clip.world, torch.arange(4 * last - 3))[0])[None])[0].transpose(0, 1).bfloat16()
    torch.testing.assert_close(encoded["latents"], torch.cat([whole[:SINK_FRAMES], whole[SINK_FRAMES + clip.gap : last]]))
    assert encoded["counts"].tolist() == [True, False, False, True, True, True, True]
    assert Clip(clip.world, gap=0, change=12).counts().tolist() == [True, False, False, False, True, True, True]
    assert Clip(clip.world, gap=0).counts().all()
    assert encoded["subject"].float().mean() > 3 and (encoded["words"][0] != encoded["words"][1]).all()


def test_drawn_clips_change_at_the_beginning_of_a_chunk_of_theirs_or_in_the_gap() -> None:
    clips = [draw_clip(0, number) for number in range(300)]
    changes = [(clip.change - clip.gap, clip.gap, clip.change) for clip in clips if clip.change is not None]
    assert 140 < len(changes) < 220 and {clip.gap > 0 for clip in clips} == {True, False}
    assert all(index <= SINK_FRAMES or index % CHUNK == 0 for index, _, _ in changes)
    assert all(change >= SINK_FRAMES for _, _, change in changes)
    assert all(clip.counts()[3:].any() for clip in clips)
    generator = torch.Generator().manual_seed(0)
    assert len({tuple(draw_prompt(generator).values()) for _ in range(50)}) > 45


def test_training_after_a_change_of_prompt_agrees_with_the_runtime() -> None:
    """The sinks stay as they were made, the recent frames are run again under the new text (`recache="window"`)."""
    torch.manual_seed(0)
    config = dit_config(8, dim=128, layers=2)
    dit = CausalDiT(config).requires_grad_(False)
    frames, switched, (height, width) = 15, 9, (4, 6)
    context, noisy = torch.randn(2, frames, 8, height, width)
    table = value_table(VOCABULARY, 0)
    words = torch.tensor([[[0, 5, 9, 15, 19, 23], [1, 6, 9, 16, 19, 24]]])
    prompts = {0: table[words[0, 0]], switched: table[words[0, 1]]}
    expected = runtime_flow(dit, context, noisy, prompts, lolrt.Rope(sigma=0.0))

    text = frame_texts(table, words, torch.ones(1, 6, dtype=torch.bool), frames)
    sigma = torch.full((1, frames), 0.7)
    forward = TeacherForcing(dit, frames, height, width)
    flow = forward(context[None], noisy[None], torch.full((1, frames), 0.1), sigma, torch.cat([text, text], 1))[0]
    for there in (slice(0, 3), slice(switched, frames)):
        torch.testing.assert_close(flow[there], expected[there], atol=1e-4, rtol=0)
    assert not torch.allclose(flow[3:switched], expected[3:switched], atol=1e-2)


def test_a_training_goes_on_from_an_exported_model_with_its_codec_and_weights(tmp_path: Path) -> None:
    here, there, plan = tmp_path / "here", tmp_path / "there", Plan.smoke(0)
    here.mkdir(), there.mkdir()
    codec = PCACodec.fit(to_unit(render(steady(1), torch.arange(17))[0])[None], plan.z_dim)
    dit, vae = CausalDiT(plan.dit), CausalVAE(plan.vae)
    torch.save(vars(codec), here / "pca.pt")
    for name, model in (("vae", vae), ("dit", dit)):
        torch.save({"averaged": model.state_dict()}, here / f"{name}.pt")
    (here / "training.log").write_text("dit 1.0 min step 3 loss 1\n")
    export(here, here / "model", plan.dit, plan.vae, 0)
    take_over(here / "model", there)
    there_before = (here / "model" / "diffusion_pytorch_model.safetensors").read_bytes()
    torch.save({"averaged": CausalDiT(plan.dit).state_dict()}, here / "dit.pt")
    export(here, here / "model", plan.dit, plan.vae, 0, with_dit=False)
    assert (here / "model" / "diffusion_pytorch_model.safetensors").read_bytes() == there_before
    again, other = CausalDiT(plan.dit), load_codec(there)
    start_from(here / "model", again)
    assert torch.equal(other.basis, codec.basis) and torch.equal(other.mean, codec.mean) and torch.equal(other.scale, codec.scale)
    kept = torch.load(there / "vae.pt")["averaged"]
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(kept[name], value, rtol=2**-8, atol=0)
    for name, value in dit.state_dict().items():
        step = value.abs().amax(-1, keepdim=True) / 127 if value.dim() == 2 else value.abs() * 2**-7
        assert ((again.state_dict()[name] - value).abs() <= 0.51 * step + 1e-12).all(), name
    (there / "training.log").write_text("dit 1.0 min step 3 loss 1\ndit 2.0 min step 6 loss 1\n")
    take_over(here / "model", there)
    assert (there / "training.log").read_text().count("\n") == 2, "what goes on already is left alone"


def test_the_cost_of_a_training_in_parts_is_that_of_all_of_them(tmp_path: Path) -> None:
    log = tmp_path / "training.log"
    log.write_text("dit 3.0 min step 20 loss 2\ndit 6.2 min step 45 loss 2\ndit 3.0 min step 30 loss 1\nvae 9.0 min step 7 loss 1\n")
    assert "| dit | 9 | 75 |" in cost(log) and "| vae | 9 | 7 |" in cost(log)


def test_the_shipped_model_is_the_scripts_and_its_training_can_go_on(tmp_path: Path) -> None:
    folder, plan = Path(lolrt.__file__).parent / "_embedded" / "journey", Plan(0)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 25e6
    text = json.loads((folder / "text.json").read_text())
    assert text["groups"] == all_words(VOCABULARY, FILLER)
    shutil.copytree(folder, tmp_path / "card")
    write_card(tmp_path / "card")
    assert (tmp_path / "card" / "README.md").read_text() == (folder / "README.md").read_text()
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert summary(json.loads((folder / MEASURED).read_text())) in " ".join(readme.split())
    pipe = lolrt.load("journey")
    script = parse_script((Path(__file__).parents[1] / "examples" / "journey.txt").read_text(), "journey.txt")
    for told in (*pipe.example_prompts, *(cue.prompt for cue in script)):
        pipe.encode_text(told)
    start_from(folder, CausalDiT(plan.dit))
    take_over(folder, tmp_path)
    vae, codec = CausalVAE(plan.vae), load_codec(tmp_path)
    vae.load_state_dict(torch.load(tmp_path / "vae.pt")["averaged"])
    video = to_unit(render(steady(900), torch.arange(9))[0])[None]
    psnr, _ = reconstruction_psnr(video, vae.decode_clip(codec.encode(video)).float())
    assert psnr > 29, "VAE and codec belong together"
