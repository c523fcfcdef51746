"""An option that changes nothing is reported, and no other: compared with the tables, biases and pages that policies make."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from sessions import TWO_PASSES, smallest_dit, smallest_text

import lolrt
from lolrt.cli.without_effect import NEEDS, without_effect

DIT = smallest_dit()
# Another value for each option, and policies in which it matters.
GATED = lolrt.Window(1, 3, 1, gate=lolrt.SinkGate(bias=-2.0))
OTHER_VALUES: dict[str, object] = {
    "sigma": 0.3, "jitter_seed": 5, "spread": "stratified", "scope": "layer", "share": 0.5, "anchor_frames": 5, "stretch": 3.0,
    "length_frames": 20, "bias": -3.0, "when": "realigned", "kernel_level": 1.0, "after_frames": 5, "head_share": 0.0, "store_frames": 7,
    "recall_positions": "kept",
}  # fmt: skip
ROPES = {
    "default": lolrt.Rope(),
    "plain": lolrt.Rope(sigma=0),
    "bases": lolrt.Rope(bases=[9e3, 1.2e4]),
    "anchored": lolrt.Rope(positions="anchored"),
    "pi": lolrt.Rope(frequencies="pi", stretch=2),
    "yarn": lolrt.Rope(frequencies="yarn", stretch=2),
}
WINDOWS = {
    "default": lolrt.Window(1, 3, 1),
    "no sinks": lolrt.Window(0, 3, 1),
    "gate": GATED,
    "realigned": replace(GATED, gate=lolrt.SinkGate(bias=-2.0, when="realigned", kernel_level=-1.0, after_frames=2)),
    "synchronised": replace(GATED, gate=lolrt.SinkGate(bias=-2.0, when="synchronised", head_share=0.9)),
    "recall": lolrt.Window(1, 2, 1, recall_frames=1, store_frames=2),
}


def latents(rope: lolrt.Rope, window: lolrt.Window) -> torch.Tensor:
    stream = lolrt.LatentStream(DIT, smallest_text(0), 4, 4, rope=rope, window=window, sampler=TWO_PASSES, start_frame=0)
    return torch.cat([chunk.latents for chunk in islice(stream, 10)])


def with_option(name: str, rope: lolrt.Rope, window: lolrt.Window) -> tuple[lolrt.Rope, lolrt.Window]:
    change = {name: OTHER_VALUES[name]}
    if hasattr(rope, name):
        return replace(rope, **change), window  # type: ignore[arg-type]
    if hasattr(window, name):
        return rope, replace(window, **change)  # type: ignore[arg-type]
    return rope, replace(window, gate=replace(window.gate, **change))  # type: ignore[arg-type]


POLICIES = [*((rope, "default") for rope in ROPES), *(("default", window) for window in WINDOWS if window != "default")]


@pytest.mark.whole
@pytest.mark.parametrize("rope, window", POLICIES)
def test_what_is_told_changes_no_bit(rope, window):
    """The next test checks the converse: an option that is not reported has an effect in some policy."""
    before = latents(ROPES[rope], WINDOWS[window])
    for name in OTHER_VALUES:
        changed = with_option(name, ROPES[rope], WINDOWS[window])
        if list(without_effect([name], *changed)):
            assert torch.equal(latents(*changed), before), f"{name} is told to change nothing, and does"


@pytest.mark.whole
@pytest.mark.parametrize("name", OTHER_VALUES)
def test_every_option_counts_where_it_is_not_told(name):
    counts = []
    for rope, window in [(ROPES[rope], WINDOWS[window]) for rope, window in POLICIES]:
        changed = with_option(name, rope, window)
        if not list(without_effect([name], *changed)):
            counts.append(not torch.equal(latents(*changed), latents(rope, window)))
            if counts[-1]:
                return
    pytest.fail(f"{name} was never seen to change anything")


def test_a_line_has_the_options_names_and_what_they_take():
    assert list(without_effect(["anchor_frames", "stretch"], lolrt.Rope(), lolrt.Window())) == [
        "--anchor changes nothing: it takes --positions anchored",
        "--stretch changes nothing: it takes --frequencies other than plain",
    ]
    assert list(without_effect(["when"], lolrt.Rope(), lolrt.Window())) == ["--gate changes nothing: it takes --sink-bias other than 0"]
    assert not list(without_effect([], lolrt.Rope(), lolrt.Window()))
    assert {name for need in NEEDS for name in need.options} == set(OTHER_VALUES)
