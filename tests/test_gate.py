"""The sink gate: when it is shut, and that a shut sink has no influence."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch

import lolrt
from lolrt.positions.rope import rotation_tables


def latents(dit: lolrt.CausalDiT, inputs: dict[str, torch.Tensor], window: lolrt.Window, chunks: int = 5, **options) -> torch.Tensor:
    stream = lolrt.LatentStream(dit, inputs["prompt_embeds"][:20], 8, 8, window=window, **options)
    return torch.cat([chunk.latents for chunk in islice(stream, chunks)])


def test_a_gate_of_no_bias_changes_no_bit(small_dit, rollout_inputs):
    gated = lolrt.Window(gate=lolrt.SinkGate(0.0, "synchronised"))
    assert torch.equal(latents(small_dit, rollout_inputs, gated), latents(small_dit, rollout_inputs, lolrt.Window()))


@pytest.mark.whole
def test_sinks_shut_out_are_as_good_as_none(small_dit, rollout_inputs):
    """If the window holds no other past, a chunk that may not look at the sinks sees only itself."""
    shut = latents(small_dit, rollout_inputs, lolrt.Window(3, 3, gate=lolrt.SinkGate(-math.inf)))
    assert (shut - latents(small_dit, rollout_inputs, lolrt.Window(0, 3))).abs().max() <= 5e-5
    assert (shut - latents(small_dit, rollout_inputs, lolrt.Window(3, 3))).abs().max() >= 1e-2


def gated_starts(rope: lolrt.Rope, gate: lolrt.SinkGate, frames: int = 330) -> list[int]:
    """First frames of the chunks for which the gate is shut, on Wan's temporal axis: 12 heads, 22 pairs, a window of 3 + 9."""
    increments, starts = rope.increments(1, 12, 22), []
    for start in range(9, frames, 3):
        offsets = rope.offsets([0, 1, 2, *range(start - 6, start + 3)], 3, 3)
        bias = gate.before(rotation_tables(increments, offsets), offsets, 3)
        if bias is not None:
            assert bias.shape == (1, 12, 12) and (bias[:, :3] == gate.bias).all() and (bias[:, 3:] == 0).all()
            starts.append(start)
    return starts


def test_the_realigned_gate_is_shut_at_the_papers_frames():
    gate = lolrt.SinkGate(-2.0, "realigned")
    assert gated_starts(lolrt.Rope(sigma=0), gate) == [132, 201]
    assert gated_starts(lolrt.Rope(sigma=0.8, spread="stratified"), gate) == []
    assert gated_starts(lolrt.Rope(sigma=0, positions="window"), gate) == []
    assert gated_starts(lolrt.Rope(sigma=0), lolrt.SinkGate(0.0, "realigned")) == []
    assert len(gated_starts(lolrt.Rope(sigma=0), lolrt.SinkGate(-2.0))) == 107


def test_the_realigned_gate_goes_by_phases_alone(small_dit, rollout_inputs):
    """A mean of cosines is never more than 1, even if YaRN lengthens the channels that are rotated."""
    rope = lolrt.Rope(sigma=0, frequencies="yarn", stretch=16)
    gated = lolrt.Window(gate=lolrt.SinkGate(-math.inf, "realigned", kernel_level=1.0, after_frames=1))
    assert torch.equal(*(latents(small_dit, rollout_inputs, window, rope=rope) for window in (gated, lolrt.Window())))


def test_the_synchronised_gate_is_shut_in_layers_whose_heads_agree():
    mass = torch.full((3, 12, 3, 5), 1 / 12)
    mass[1, :3] = 0.2  # all five heads
    mass[2, :3, :, :4] = 0.2  # four of them: 0.8 is not more than 0.8
    bias = lolrt.SinkGate(-1.5, "synchronised").after(mass, 3)
    assert bias is not None and (bias[1, :3] == -1.5).all()
    assert (bias[1, 3:] == 0).all() and (bias[[0, 2]] == 0).all()
    assert lolrt.SinkGate(-1.5, "synchronised").after(mass[[0, 2]], 3) is None
    assert lolrt.SinkGate(-1.5, "synchronised").after(mass[:, :3], 0) is None


@pytest.mark.whole
def test_a_stream_acts_on_its_first_pass(small_dit, rollout_inputs):
    """If the required share is zero, every head agrees, so each layer with a single head on the sinks shuts them out."""
    shut = lolrt.Window(gate=lolrt.SinkGate(-math.inf, "synchronised", head_share=0.0))
    streams = [
        lolrt.LatentStream(small_dit, rollout_inputs["prompt_embeds"][:20], 8, 8, window=window, probe=True)
        for window in (shut, lolrt.Window())
    ]
    acted = 0
    for gated, free in islice(zip(*streams, strict=True), 8):
        for layer in range(2):
            on_sinks = gated.mass[layer, ..., : gated.sink_frames].sum(-1)
            if gated.first_frame >= 3 and (on_sinks == 0).all():
                acted += 1
            else:
                assert (on_sinks > 0).all()
        assert (free.mass > 0).all()
    assert acted


@pytest.mark.parametrize(
    "wrong, hint",
    [
        ({"bias": math.nan}, "nats"),
        ({"bias": math.inf}, "nats"),
        ({"when": "never"}, '"synchronised"'),
        ({"head_share": 1.0}, "less than 1"),
    ],
)
def test_wrong_settings_are_told(wrong, hint):
    with pytest.raises(lolrt.Error, match=hint):
        lolrt.SinkGate(**wrong)
