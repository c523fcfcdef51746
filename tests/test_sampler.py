"""The sampler against flows whose solution is known, and the noise sources' contract."""

from __future__ import annotations

import pytest
import torch

import lolrt
from lolrt import ops


@pytest.mark.parametrize("method", ["renoise", "euler"])
def test_a_perfect_model_gives_the_clean_chunk(method):
    clean = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    sampler = lolrt.Sampler(method=method, timesteps=(1000, 600, 300, 100))
    levels = sampler.noise_levels.tolist()
    noise = lolrt.Noise(3, 4, 2, 2)

    def flow(sample: torch.Tensor, k: int) -> torch.Tensor:
        return (sample - clean) / levels[k]  # noise - clean, where sample = (1 - s) clean + s noise

    assert (sampler.denoise(flow, noise, 0, 3) - clean).abs().max() < 1e-5


def test_renoise_takes_fresh_noise_of_the_pass_to_its_level():
    asked, seen = [], []
    sampler = lolrt.Sampler(timesteps=(1000, 500), shift=1.0)

    def noise(first_frame: int, n_frames: int, step: int) -> torch.Tensor:
        asked.append((first_frame, n_frames, step))
        return torch.full((n_frames, 1, 1, 1), 10.0 * (step + 1))

    def flow(sample: torch.Tensor, k: int) -> torch.Tensor:
        seen.append(sample.clone())
        return torch.full_like(sample, 2.0)

    out = sampler.denoise(flow, noise, 6, 3)
    assert asked == [(6, 3, 0), (6, 3, 1)]
    assert torch.equal(seen[0], torch.full((3, 1, 1, 1), 10.0))
    assert torch.equal(seen[1], torch.full((3, 1, 1, 1), 0.5 * 8 + 0.5 * 20))  # x0 = 10 - 1 * 2
    assert torch.equal(out, torch.full((3, 1, 1, 1), 14.0 - 0.5 * 2))


def test_context_noise_is_mixed_into_the_cache_pass():
    sampler = lolrt.Sampler(timesteps=(1000, 500), context_noise=0.25)
    steps = []

    def noise(first_frame: int, n_frames: int, step: int) -> torch.Tensor:
        steps.append(step)
        return torch.full((n_frames, 1, 1, 1), 4.0)

    assert torch.equal(sampler.context(torch.ones(3, 1, 1, 1), noise, 0), torch.full((3, 1, 1, 1), 0.75 + 1.0))
    assert steps == [2]
    assert sampler.model_timesteps[-1] == 250


def test_a_velocity_or_noise_of_another_shape_is_refused():
    sample, turned = torch.zeros(3, 4, 2, 6), torch.zeros(3, 4, 6, 2)
    with pytest.raises(ValueError, match=r"velocity is \[3, 4, 6, 2\]; expected the sample's shape, \[3, 4, 2, 6\]"):
        ops.sampler_step(sample, 1.0, turned)
    with pytest.raises(ValueError, match=r"noise is \[3, 4, 6, 2\]"):
        ops.sampler_step(sample, 1.0, sample, after=0.5, noise=turned)


def test_noise_depends_on_its_key_alone():
    noise = lolrt.Noise(7, 4, 3, 5)
    whole = noise(0, 6, 2)
    assert torch.equal(noise(3, 2, 2), whole[3:5])
    assert not torch.equal(noise(3, 2, 1), whole[3:5])
    assert not torch.equal(lolrt.Noise(8, 4, 3, 5)(3, 2, 2), whole[3:5])
    with pytest.raises(lolrt.Error, match="seed is -1"):
        lolrt.Noise(-1, 4, 3, 5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timesteps": ()},
        {"timesteps": (500, 750)},
        {"timesteps": (1001,)},
        {"timesteps": (500, 0)},
        {"first_timesteps": (500, 750)},
        {"method": "ddim"},
        {"context_noise": 1.0},
        {"shift": 0.0},
    ],
)
def test_wrong_settings_are_told(wrong):
    with pytest.raises(lolrt.Error):
        lolrt.Sampler(**wrong)
