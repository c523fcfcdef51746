"""The model that benchmarks compare with is the public one: against its outputs (tests/data/README.md), by the gates of test_parity.py."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from bench.published import PublishedDiT, PublishedStream

pytestmark = pytest.mark.whole


@pytest.mark.parametrize("dtype, gate_max, gate_rms", [(torch.float32, 5e-5, 5e-5), (torch.bfloat16, 5e-2, 1e-2)])
def test_the_published_model_gives_the_public_codes_latents(dtype, gate_max, gate_rms, data, small_dit, rollout_inputs):
    published = PublishedDiT(small_dit.config)
    published.load_state_dict(small_dit.state_dict())

    def noise(first_frame: int, n_frames: int, step: int) -> torch.Tensor:
        if step == 0:
            return rollout_inputs["noise"][first_frame : first_frame + n_frames]
        return rollout_inputs["renoise"][first_frame // 3, step - 1]

    stream = PublishedStream(published.to(dtype), rollout_inputs["prompt_embeds"], 8, 8, noise=noise)
    error = torch.cat([next(stream) for _ in range(10)]) - load_file(data / "rollouts.safetensors")["sf"]
    assert error.abs().max() <= gate_max
    assert error.square().mean().sqrt() <= gate_rms
