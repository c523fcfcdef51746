"""Experiments 1 to 3 of docs/collapse.md, as small as they still speak: the direction of an effect is asserted where the spread over draws
and videos that is kept there allows it. Less than three minutes in all.
"""

from __future__ import annotations

import numpy as np
import pytest

import lolrt
from lolrt.cli import main
from lolrt.lab import experiments
from lolrt.lab.results import Result

pytestmark = pytest.mark.whole


def test_plain_rope_falls_back_at_the_predicted_frames(tmp_path):
    """Experiment 1, through its command, with one video and one draw: docs/collapse.md has the spread over more."""
    assert (
        main(["lab", "experiment", "baseline", "--videos", "1", "--draws", "1", "--cells", "jitter 0.8, stratified", "-o", str(tmp_path)])
        == 0
    )
    cells = Result.read(tmp_path / "baseline.json").cells
    assert list(cells) == ["plain", "jitter 0.8, stratified"]
    plain, cured = ({name: float(values.item()) for name, values in cell.numbers.items()} for cell in cells.values())
    for frame in (132, 201):
        assert plain[f"dip_{frame}"] < 0.7 * plain["dip_elsewhere"] and plain[f"dip_{frame}"] < cured[f"dip_{frame}"] - 0.1
        assert plain[f"rise_{frame}"] > 1.5 > cured[f"rise_{frame}"]
    assert "| plain | 0." in (tmp_path / "baseline.md").read_text() and (tmp_path / "baseline.png").exists()


def risen(pipe: lolrt.Pipeline, policy: str) -> float:
    """Mass on the sinks at the predicted frames, divided by that elsewhere: the cause, separate from its effect. One chunk with the same
    content is placed at different frame numbers."""
    starts = [72, 90, 132, 159, 177, 201]
    mass = experiments.sweep(pipe, policy, pipe.example_prompts[0], 0, starts).mean((1, 2))
    realigned = np.isin(starts, [132, 201])
    return float(mass[realigned].mean() / np.median(mass[~realigned]))


def test_more_jitter_turns_fewer_heads_to_the_sinks(tiny):
    """Experiment 2. Each of three draws lies between plain RoPE (2.0) and 1.2; at sigma 0.2 they are still above 1.75, at 0.8 below 1.4."""
    plain, weak, strong = (
        [risen(tiny, f"sigma={sigma},jitter_seed={seed}") for seed in range(n)] for sigma, n in ((0, 1), (0.2, 3), (0.8, 3))
    )
    assert plain[0] > np.mean(weak) + 0.05 and min(weak) > max(strong) + 0.2
    assert risen(tiny, "sigma=0.8,spread=stratified") < min(strong)


def test_a_head_that_is_not_jittered_still_turns_to_the_sinks(tiny):
    """Experiment 3, means of three draws. Single draws with half of the heads differ as much as the shares do."""
    none = risen(tiny, "sigma=0")
    half, whole = (np.mean([risen(tiny, f"sigma=0.8,share={share},jitter_seed={seed}") for seed in range(3)]) for share in (0.5, 1.0))
    assert none > half + 0.2 > whole + 0.3
