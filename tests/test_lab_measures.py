"""The laboratory's measures and statistics, on series with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lolrt import measures
from lolrt.lab import pictures, statistics


def test_distance_is_the_root_mean_square_difference():
    latents = np.array([[[1.0, 2.0]], [[4.0, 6.0]]])
    np.testing.assert_allclose(measures.sink_distance(latents, latents[:1]), [[0], [math.sqrt((9 + 16) / 2)]])


def collapsing(frames: int = 240, at: int = 132, depth: float = 0.6) -> np.ndarray:
    """Distances of about 1 that leave the sinks at the start and fall to 1 - depth for three frames."""
    series = 1 + 0.01 * np.random.default_rng(at).standard_normal(frames)
    series[:12] *= np.linspace(0, 1, 12)
    series[at : at + 3] = 1 - depth
    return series


def test_collapse_is_the_depth_of_the_fall():
    series = collapsing()
    assert measures.drop(series).argmax() in (132, 133, 134)
    assert measures.sink_collapse(series) == pytest.approx(60, abs=2)
    assert measures.sink_collapse(collapsing(depth=0.0)) < 5
    assert measures.dip(series, 132) == pytest.approx(0.4, abs=0.02) and measures.dip(series, 201) == pytest.approx(0.97, abs=0.03)
    drifting = collapsing(depth=0) * np.linspace(1, 2, 240)
    assert measures.sink_collapse(drifting) < 15, "a slow drift is no collapse"


def test_elsewhere_is_far_from_all_that_is_predicted():
    frames = measures.elsewhere(240, [132, 201])
    assert frames == [*range(66, 112), *range(153, 181)]
    assert measures.elsewhere(100, [132]) == []


def test_heads_are_raised_against_their_own_median():
    mass = np.tile(np.linspace(0.01, 0.5, 6).reshape(1, 2, 3), (80, 1, 1))
    mass[44, 0] *= 1.6
    mass[44, 1, 0] *= 1.4
    together = measures.synchrony(mass)
    assert together[44] == 0.5 and together.sum() == 0.5
    series = measures.sink_mass(mass)
    assert measures.rise(series, 43) == series[44] / series[0] and measures.rise(series, 60) == 1
    assert measures.rise(np.zeros(80), 44) == 0


def test_snap_back_needs_a_common_frame():
    together = np.stack([measures.drop(collapsing(at=132, depth=0.3)) for _ in range(8)])
    frame, height, p = measures.snap_back(together)
    assert frame in (132, 133, 134) and height == pytest.approx(0.3, abs=0.05) and p <= 0.002
    scattered = np.stack([measures.drop(collapsing(at=40 + 23 * i, depth=0.3)) for i in range(8)])
    assert measures.snap_back(scattered)[2] > 0.2


def test_loops_are_found_at_their_period():
    random = np.random.default_rng(0)
    period = random.standard_normal((37, 20))
    assert measures.loop(np.tile(period, (7, 1))) == (37, 1.0)
    assert measures.loop(random.standard_normal((240, 20)))[1] < 0.1
    assert measures.loop(period[:20]) == (0, 0.0)


def test_pictures_of_known_colours():
    frames = np.zeros((2, 8, 10, 3), np.uint8)
    frames[0] = (200, 100, 50)
    frames[1] += np.arange(10, dtype=np.uint8)[:, None] * 20
    np.testing.assert_allclose(pictures.luminance(frames)[0], 0.2126 * 200 + 0.7152 * 100 + 0.0722 * 50, rtol=1e-5)
    np.testing.assert_allclose(pictures.saturation(frames), [0.75, 0])
    np.testing.assert_allclose(pictures.sharpness(frames), 0, atol=1e-6)  # flat, and a straight slope
    frames[1, 4, 4] = 255
    assert pictures.sharpness(frames)[1] > 100
    assert pictures.drift(np.array([2.0, *[5.0] * 19, 3.0, 3.0])) == pytest.approx(50)


def test_flow_is_the_shift_in_pixels():
    cv2 = pytest.importorskip("cv2")
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8), (0, 0), 2)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    assert pictures.flow(texture, np.roll(texture, 3, axis=1)) == pytest.approx(3, abs=1)
    assert pictures.flow(texture, texture) < 0.1


def test_dynamic_degree_counts_clips_by_vbenchs_rule():
    above, below = 6 / 256 * 64 + 0.01, 6 / 256 * 64 - 0.01
    dynamic, still = [above] * 4 + [below] * 12, [above] * 3 + [below] * 13
    assert pictures.dynamic_degree(np.array(dynamic + still + still + [above] * 15), 64, 96) == pytest.approx(1 / 3)
    assert pictures.dynamic_degree(np.array(dynamic[:15]), 64, 96) == 0


def test_intervals_cover_the_mean():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        values = random.normal(0, 1, (4, 1)) + random.normal(0, 0.5, (1, 12)) + 0.1 * random.standard_normal((4, 12))
        found = statistics.interval(values, resamples=400)
        hits += found.low <= 0 <= found.high
        assert found.low <= found.value <= found.high
    # Both sources of spread count. Percentile intervals of four draws are known to be too narrow (0.95 nominal).
    assert hits / 200 > 0.75
    assert str(statistics.interval(np.full((1, 3), 2.0))) == "2.00 [2.00, 2.00]"


def test_differences_are_taken_within_videos():
    """Videos differ far more than policies do: the two intervals overlap, and the difference is still found."""
    random = np.random.default_rng(1)
    scenes = random.normal(0, 10, (1, 12))
    low, high = (scenes + shift + 0.1 * random.standard_normal((3, 12)) for shift in (0, 1))
    assert statistics.interval(low).high > statistics.interval(high).low
    found = statistics.difference(high, low)
    assert 0.8 < found.low < found.value < found.high < 1.2
    same = statistics.difference(low, low)
    assert same.low < 0 < same.high and same.value == 0


def test_draws_are_paired_where_they_are_the_same():
    """Draws differ far more than policies do. The difference is found only if the n-th draw of both is the same one."""
    random = np.random.default_rng(2)
    luck = random.normal(0, 10, (5, 1))
    low, high = (luck + shift + 0.1 * random.standard_normal((5, 8)) for shift in (0, 1))
    paired, apart = (statistics.difference(high, low, paired=paired) for paired in (True, False))
    assert 0.8 < paired.low < paired.high < 1.2 and apart.low < 0 < apart.high
    assert paired.value == apart.value
    against_another = statistics.difference(high, low[::-1], paired=True)
    assert against_another.low < 0 < against_another.high
