"""The training script of the embedded model: it runs from end to end in miniature, and trains what the runtime computes."""

import json
from pathlib import Path

import pytest
import torch
from runtime_flow import runtime_flow

import lolrt
from lolrt.models.dit import CausalDiT
from lolrt.muon import orthogonalize
from lolrt.train.codec_pca import PCACodec, group_pixels, to_unit
from lolrt.train.teacher_forcing import CHUNKWISE, Chunking, TeacherForcing
from lolrt.train.text import all_words, embed, value_table, word_table
from lolrt.train.tiny.data import gap_of, render_clips, scene_of
from lolrt.train.tiny.framewise import FRAMEWISE
from lolrt.train.tiny.scenes import FILLER, HEIGHT, VOCABULARY, WIDTH, render, values
from lolrt.train.tiny.train_dit import mean_errors
from lolrt.train.train_dit import dit_config

pytestmark = pytest.mark.whole


def test_a_scene_is_drawn_the_same_whenever_and_however_it_is_asked_for() -> None:
    frames = torch.arange(6)
    video, mask = render(scene_of(0, 5), frames)
    again, _ = render(scene_of(0, 5), frames)
    alone, _ = render(scene_of(0, 5), frames[4:5])
    other, _ = render(scene_of(0, 6), frames)
    assert video.shape == (6, 3, HEIGHT, WIDTH) and video.dtype == torch.uint8 and mask.shape == (6, HEIGHT, WIDTH)
    assert torch.equal(video, again) and torch.equal(video[4:5], alone) and not torch.equal(video, other)


@pytest.mark.parametrize("clip", range(12))
def test_the_object_is_large_in_view_and_moves_on_for_ever(clip: int) -> None:
    video, mask = render(scene_of(0, clip), torch.tensor([0, 160, 10_000, 1_000_000]))
    assert mask.mean((1, 2)).min() > 0.05
    assert all(not torch.equal(video[0], frame) for frame in video[1:])
    assert video.float().std((1, 2, 3)).min() > 10


def test_pca_latents_invert_up_to_the_components_left_out() -> None:
    video = to_unit(torch.stack([render(scene_of(0, clip), torch.arange(9))[0] for clip in range(8)]))
    codec = PCACodec.fit(video, 24)
    latents = codec.encode(video)
    assert latents.shape == (8, 24, 3, HEIGHT // 8, WIDTH // 8)
    assert latents.std() == pytest.approx(1, abs=0.02)
    groups = (latents.permute(0, 2, 3, 4, 1) * codec.scale) @ codec.basis.T + codec.mean
    psnr = -10 * ((groups - group_pixels(video)).square().mean((1, 2, 3, 4)) / 4).log10().mean()
    assert psnr == pytest.approx(codec.psnr(video), abs=0.01) and psnr > 28


def test_orthogonalized_matrices_have_singular_values_near_one_even_when_ill_conditioned() -> None:
    u, _, v = torch.linalg.svd(torch.randn(2, 64, 160, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    for matrix in (u @ v * 1e-3, u * torch.logspace(0, -8, 64) @ v):
        for m in (matrix, matrix.mT):
            s = torch.linalg.svdvals(orthogonalize(m))
            assert s.max() < 1.3 and s[:, :20].min() > 0.5 and torch.isfinite(s).all()


def test_words_of_one_meaning_share_a_vector_and_different_values_are_orthogonal() -> None:
    words, table = word_table(VOCABULARY, 0)
    assert words == [word for group, names in all_words(VOCABULARY, FILLER).items() if group != "filler" for word in names]
    assert not set(words) & set(FILLER) and len(set(words)) == len(words)
    gram = table @ table.T / table.shape[1]
    meaning = [(group, value) for group, names in VOCABULARY.items() for value in names.values()]
    same = torch.tensor([[float(a == b) for b in meaning] for a in meaning])
    torch.testing.assert_close(gram, same, atol=1e-5, rtol=0)


def test_a_dropped_word_is_a_row_of_zeros() -> None:
    text = embed(value_table(VOCABULARY, 0), torch.tensor([[0, 5, 9]]), torch.tensor([[True, False, True]]))
    assert text[0].abs().sum(1).gt(0).tolist() == [True, False, True] + [False] * 5


@pytest.mark.parametrize("bases", [None, [300.0, 9e3]])
@pytest.mark.parametrize("gap", [0, 6])
@pytest.mark.parametrize("chunking", [CHUNKWISE, FRAMEWISE])
def test_training_forward_agrees_with_the_runtime_chunk_by_chunk(bases: list[float] | None, gap: int, chunking: Chunking) -> None:
    """With a gap before them, from the third chunk on; with one layer, because deeper ones remember what was in the gap."""
    torch.manual_seed(0)
    config = dit_config(8, dim=128, layers=1 if gap else 2)
    dit = CausalDiT(config).requires_grad_(False)
    frames, height, width = 15, 4, 6
    context, noisy = torch.randn(2, frames + gap, 8, height, width)
    prompt = torch.randn(3, config.text_dim)
    positions = torch.cat([torch.arange(3), torch.arange(3 + gap, frames + gap)])
    expected = runtime_flow(dit, context, noisy, {0: prompt}, lolrt.Rope(sigma=0.0, bases=bases), chunking.frames)[positions]

    forward = TeacherForcing(dit, frames, height, width, None if bases is None else torch.tensor(bases), chunking=chunking)
    text = torch.zeros(1, config.text_len, config.text_dim)
    text[0, :3] = prompt
    sigma = torch.full((1, frames), 0.7)
    clip = context[positions][None], noisy[positions][None]
    flow = forward(*clip, torch.full((1, frames), 0.1), sigma, text, positions[None])[0]
    first_known = chunking.sinks + chunking.past
    chunks = range(frames // chunking.frames)
    known = torch.tensor([chunk < chunking.sinks or chunk >= first_known or not gap for chunk in chunks]).repeat_interleave(chunking.frames)
    torch.testing.assert_close(flow[known], expected[known], atol=1e-4, rtol=0)
    assert gap == 0 or not torch.allclose(flow[~known], expected[~known], atol=1e-2)


def test_a_clip_with_a_gap_holds_the_latents_of_the_frames_around_it() -> None:
    scene, codec = scene_of(0, 3), PCACodec.fit(to_unit(torch.stack([render(scene_of(1, 0), torch.arange(17))[0]])), 24)
    clip = render_clips(0, range(2, 4), codec)
    assert clip["gap"].tolist() == [0, 2] == [gap_of(2), gap_of(3)]
    whole = codec.encode(to_unit(render(scene, torch.arange(4 * 22 + 1))[0])[None])[0].transpose(0, 1).bfloat16()
    torch.testing.assert_close(clip["latents"][1], torch.cat([whole[:3], whole[5:23]]))
    contiguous = codec.encode(to_unit(render(scene_of(0, 2), torch.arange(81))[0])[None])[0].transpose(0, 1).bfloat16()
    torch.testing.assert_close(clip["latents"][0], contiguous)


def test_chunks_behind_a_gap_count_once_their_past_is_in_the_clip() -> None:
    errors = torch.tensor([[1.0, 10, 10, 4], [3.0, 1, 2, 3]])
    first, later = mean_errors(errors, torch.tensor([5, 0]))
    assert (first, later) == (2.0, 2.5)


def test_the_shipped_vocabulary_is_the_one_of_the_script() -> None:
    folder = Path(lolrt.__file__).parent / "_embedded" / "tiny"
    text = json.loads((folder / "text.json").read_text())
    assert text["groups"] == all_words(VOCABULARY, FILLER) and text["words"] == word_table(VOCABULARY, 0)[0]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 25e6
    assert all(len(values(group)) > 1 for group in VOCABULARY)


def test_a_first_chunk_needs_no_context() -> None:
    torch.manual_seed(0)
    dit = CausalDiT(dit_config(8, dim=64, layers=2)).requires_grad_(False)
    context, noisy = torch.randn(2, 1, 9, 8, 4, 6)
    text, sigma = torch.randn(1, dit.config.text_len, dit.config.text_dim), torch.full((1, 9), 0.4)
    clip = TeacherForcing(dit, 9, 4, 6)(context, noisy, sigma, sigma, text)
    alone = TeacherForcing(dit, 3, 4, 6)(context[:, :3], noisy[:, :3], sigma[:, :3], sigma[:, :3], text)
    torch.testing.assert_close(alone, clip[:, :3], atol=1e-5, rtol=0)
