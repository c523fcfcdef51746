"""The model runtime against the public code's outputs: Self-Forcing's rollouts in float64, Wan's VAE in float32."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import lolrt

pytestmark = pytest.mark.whole

# Gates from the public code's own error against its float64 run: float32 4.9e-6 at most, bf16 7.4e-3 rms and 3.3e-2 at most. A wrong
# sink or window shows as 0.17 and more, a wrong jitter as 7e-3.
FP32_MAX, BF16_RMS, BF16_MAX = 5e-5, 1e-2, 5e-2

POLICIES = {
    "sf": lolrt.Rope(positions="absolute", sigma=0.0),
    "sfjit": lolrt.Rope(positions="absolute", bases=[14944.2719096, 6686.291500799999]),
    "ll1inf": lolrt.Rope(positions="window", sigma=0.0),
}


def rollout(dit: lolrt.CausalDiT, inputs: dict[str, torch.Tensor], rope: lolrt.Rope) -> torch.Tensor:
    def noise(first_frame: int, n_frames: int, step: int) -> torch.Tensor:
        if step == 0:
            return inputs["noise"][first_frame : first_frame + n_frames]
        return inputs["renoise"][first_frame // 3, step - 1]

    stream = lolrt.LatentStream(dit, inputs["prompt_embeds"], 8, 8, noise=noise, rope=rope)
    return torch.cat([next(stream).latents for _ in range(10)])


@pytest.mark.parametrize("policy", POLICIES)
def test_float32_rollout_equals_the_public_code(policy, isa, data, small_dit, rollout_inputs):
    expected = load_file(data / "rollouts.safetensors")[policy]
    assert (rollout(small_dit, rollout_inputs, POLICIES[policy]) - expected).abs().max() <= FP32_MAX


@pytest.mark.parametrize("policy", POLICIES)
def test_bf16_rollout_is_as_close_as_the_public_code_in_bf16(policy, isa, data, rollout_inputs):
    dit = lolrt.load_dit(data / "self_forcing_dmd_small.pt", torch.bfloat16)
    error = rollout(dit, rollout_inputs, POLICIES[policy]) - load_file(data / "rollouts.safetensors")[policy]
    assert error.square().mean().sqrt() <= BF16_RMS
    assert error.abs().max() <= BF16_MAX


def test_the_schedule_is_the_published_one():
    assert lolrt.Sampler().model_timesteps.tolist() == [1000.0, 937.5, 833.3333129882812, 625.0, 0.0]


@pytest.fixture(scope="module")
def vae(data) -> lolrt.CausalVAE:
    return lolrt.load_vae(data / "Wan2.1_VAE_small.pth", lolrt.VAEConfig(dim=8), torch.float32)


@pytest.fixture(scope="module")
def vae_io(data) -> dict[str, torch.Tensor]:
    return load_file(data / "vae_io.safetensors")


@pytest.mark.parametrize("split", [[9], [3, 3, 3], [1] * 9, [2, 4, 3]])
def test_vae_streamed_equals_the_public_code_and_itself_whole(split, vae, vae_io):
    whole = vae.decode(vae_io["latents"], {})
    state: dict[str, torch.Tensor] = {}
    streamed = torch.cat([vae.decode(part, state) for part in vae_io["latents"].split(split)])
    assert streamed.shape == (33, 3, 32, 48)
    assert torch.equal(streamed, whole)
    assert (streamed[:21] - vae_io["video"].clamp(-1, 1)).abs().max() <= FP32_MAX


def test_vae_whole_clip_equals_the_public_code(vae, vae_io):
    video = vae.decode_clip(vae.denormalize(vae_io["latents"].transpose(0, 1)[None]))[0].transpose(0, 1)
    assert (video[:21] - vae_io["video"]).abs().max() <= FP32_MAX


def test_vae_encodes_whole_clips_as_the_public_code(vae, vae_io):
    latents = vae.normalize(vae.encode_clip(vae_io["pixels"][None]))[0].transpose(0, 1)
    assert (latents - vae_io["encoded"]).abs().max() <= FP32_MAX


@pytest.mark.parametrize("split", [[9], [1, 8], [1, 4, 4], [5, 4]])
def test_vae_encodes_streams_as_the_public_code_and_as_whole(split, vae, vae_io):
    frames = vae_io["pixels"].transpose(0, 1)
    whole = vae.encode(frames, {})
    state: dict[str, torch.Tensor] = {}
    streamed = torch.cat([vae.encode(part, state) for part in frames.split(split)])
    assert torch.equal(streamed, whole)
    assert (streamed - vae_io["encoded"]).abs().max() <= FP32_MAX


def test_frames_that_make_no_whole_latents_are_told(vae):
    state: dict[str, torch.Tensor] = {}
    with pytest.raises(lolrt.Error, match="4 frames to encode; expected a multiple of 4 and one more"):
        vae.encode(torch.zeros(4, 3, 16, 16), state)
    with pytest.raises(lolrt.Error, match="16 x 20 pixels; expected multiples of 8"):
        vae.encode(torch.zeros(1, 3, 16, 20), state)
    assert not state
    vae.encode(torch.zeros(1, 3, 16, 16), state)
    with pytest.raises(lolrt.Error, match=r"5 frames to encode; expected a multiple of 4$"):
        vae.encode(torch.zeros(5, 3, 16, 16), state)
