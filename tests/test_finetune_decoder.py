"""Fine-tuning a decoder: what its losses see, and what it leaves as it is."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lolrt.models.vae.wan import CausalVAE
from lolrt.train.codec_pca import PCACodec, to_unit
from lolrt.train.finetune_decoder import amount_loss, evenness_loss, finetune_decoder, made_crops, pace_loss
from lolrt.train.journey.data import pixel_clip
from lolrt.train.journey.plan import Plan

pytestmark = [pytest.mark.whole, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return to_unit(torch.stack([pixel_clip(0, number) for number in range(3)]))


def test_a_blurred_video_has_too_little_detail_and_a_shifted_one_as_much(video: torch.Tensor) -> None:
    blurred = F.avg_pool3d(video, (1, 3, 3), 1, (0, 1, 1))
    shifted = video.roll(1, -1)
    assert amount_loss(video, video) == 0
    assert amount_loss(blurred, video) > amount_loss(shifted, video)
    assert (blurred - video).abs().mean() < (shifted - video).abs().mean(), "by pixels, the blurred one is nearer"


def test_a_video_that_jumps_where_latent_frames_begin_is_seen_by_its_pace(video: torch.Tensor) -> None:
    held = video.clone()
    for first in range(1, 17, 4):  # the frames of each latent frame are all alike
        held[:, :, first : first + 4] = video[:, :, first : first + 1]
    held += 1e-3 * torch.randn(held.shape, generator=torch.Generator().manual_seed(0))
    assert pace_loss(video, video) == 0
    assert pace_loss(held, video) > 1
    assert pace_loss(video.flip(3), video) < 1e-6


def test_chunks_that_begin_with_a_jump_are_uneven_and_what_comes_before_the_second_chunk_does_not_count() -> None:
    """One pixel of 10 x 10 goes up and down by 1, but by more where a chunk begins."""
    steps = torch.ones(32)
    steps[:8] = 7.0
    assert evenness_loss(moving(steps)) < 1e-6
    steps[[8, 20]] = 3.0
    expected = torch.tensor([3.0] + [1.0] * 11).log().var()
    torch.testing.assert_close(evenness_loss(moving(steps)), expected)


def moving(steps: torch.Tensor) -> torch.Tensor:
    """A clip [1, 3, 1 + frames, 10, 10] whose mean changes between frames are `steps` / 100."""
    y = torch.zeros(1, 3, len(steps) + 1, 10, 10)
    y[..., 0, 0] = torch.cat([torch.zeros(1), (steps * (-1) ** torch.arange(len(steps))).cumsum(0)])
    return y


def test_parts_of_made_latents_begin_with_whole_chunks() -> None:
    frames = torch.arange(24.0).view(1, 24, 1, 1, 1).expand(2, 24, 5, 10, 18)
    generator = torch.Generator().manual_seed(0)
    firsts = set()
    for _ in range(40):
        crops = made_crops(frames, generator)
        assert crops.shape == (2, 5, 9, 4, 6)
        assert torch.equal(crops.diff(dim=2), torch.ones(2, 5, 8, 4, 6))
        firsts |= set(crops[:, 0, 0, 0, 0].tolist())
    assert firsts == {0.0, 3.0, 6.0, 9.0, 12.0, 15.0}


def test_the_encoder_stays_and_the_decoder_is_put_back_with_what_a_restart_needs(tmp_path: Path) -> None:
    plan = Plan.smoke(0)
    vae = CausalVAE(plan.vae)
    pixels = torch.stack([pixel_clip(0, number) for number in range(3)])
    for name in ("train", "held_out"):
        torch.save({"pixels": pixels}, tmp_path / f"{name}.pt")
    torch.save(vars(PCACodec.fit(to_unit(pixels), plan.z_dim)), tmp_path / "pca.pt")
    torch.save({"averaged": vae.state_dict(), "step": 7}, tmp_path / "vae.pt")
    made = torch.randn(1, 9, plan.z_dim, 10, 18, generator=torch.Generator().manual_seed(1))
    finetune_decoder(tmp_path, 0.02, plan.vae, made, batch=1)
    tuned = torch.load(tmp_path / "vae.pt")
    assert tuned["step"] == 7
    changed = {name for name, value in vae.state_dict().items() if not torch.equal(tuned["averaged"][name], value)}
    assert any(name.startswith("decoder.") for name in changed)
    assert not any(name.startswith(("encoder.", "conv1.")) for name in changed)
    finetune_decoder(tmp_path, 0.02, plan.vae, made, batch=1)
    again = torch.load(tmp_path / "vae.pt")["averaged"]
    assert all(torch.equal(again[name], value) for name, value in tuned["averaged"].items()), "what is complete is not done twice"
