"""Position policies against the formulas of LoL (arXiv 2601.16914, Alg. 1), Wan and LongLive."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lolrt
from lolrt.positions.rope import rotation_tables, spatial_rotation

TWO_64 = 2.0**64


def radians(rope: lolrt.Rope, layers: int = 2, heads: int = 12, pairs: int = 22) -> np.ndarray:
    """Increments back in radians per frame."""
    return rope.increments(layers, heads, pairs).astype(np.float64) / TWO_64 * 2 * math.pi


def test_plain_rope_has_wans_frequencies_in_every_head():
    expected = np.array([10000 ** (-2 * i / 44) for i in range(22)])
    np.testing.assert_allclose(radians(lolrt.Rope(sigma=0)), np.broadcast_to(expected, (1, 12, 22)), rtol=1e-15)


@given(
    sigma=st.floats(0, 0.99),
    seed=st.integers(0, 2**32 - 1),
    heads=st.integers(1, 40),
    spread=st.sampled_from(["uniform", "stratified"]),
)
def test_jittered_bases_stay_within_the_papers_range(sigma, seed, heads, spread):
    rope = lolrt.Rope(sigma=sigma, jitter_seed=seed, spread=spread)
    bases = rope.head_bases(3, heads)
    assert bases.shape == (1, heads)
    assert (np.abs(bases / 10000 - 1) <= sigma + 1e-12).all()
    np.testing.assert_array_equal(bases, rope.head_bases(3, heads))


def test_draws_follow_the_seed_and_cover_the_range():
    draws = np.concatenate([lolrt.Rope(sigma=0.8, jitter_seed=seed).head_bases(1, 12)[0] for seed in range(500)])
    eps = (draws / 10000 - 1) / 0.8
    assert eps.min() < -0.99 and eps.max() > 0.99
    # Standard errors of the mean and the variance of 6000 draws of U[-1, 1] are 0.0075 and 0.0038.
    assert abs(eps.mean()) < 0.03 and abs(eps.var() - 1 / 3) < 0.016


def test_stratified_bases_are_evenly_spread_whatever_the_seed():
    for seed in range(5):
        bases = lolrt.Rope(sigma=0.8, jitter_seed=seed, spread="stratified").head_bases(1, 5)[0]
        np.testing.assert_allclose(np.sort(bases), [2000, 6000, 10000, 14000, 18000])


@pytest.mark.parametrize("spread", ["uniform", "stratified"])
def test_every_layer_may_have_draws_of_its_own(spread):
    rope = lolrt.Rope(sigma=0.8, jitter_seed=2, spread=spread, scope="layer", share=0.75)
    bases = rope.head_bases(6, 4)
    assert bases.shape == (6, 4) and len(np.unique(bases)) == 19  # 18 of 24, and theta
    assert (np.abs(bases / 10000 - 1) <= 0.8 + 1e-12).all()
    if spread == "stratified":
        assert np.isin(np.round(bases), np.round([10000, *10000 * (1 + 0.8 * np.linspace(-1, 1, 24))])).all()
    assert rope.increments(6, 4, 22).shape == (6, 4, 22)


def test_sigma_zero_is_plain_rope_bit_for_bit():
    plain = lolrt.Rope(bases=[10000.0] * 12).increments(1, 12, 22)
    assert np.array_equal(lolrt.Rope(sigma=0, jitter_seed=5).increments(1, 12, 22), plain)


def test_bases_may_differ_by_layer():
    increments = lolrt.Rope(bases=[[10000.0, 5000.0], [10000.0, 20000.0]]).increments(2, 2, 22)
    assert increments.shape == (2, 2, 22)
    assert np.array_equal(increments[0, 0], increments[1, 0]) and not np.array_equal(increments[0, 1], increments[1, 1])


def test_absolute_offsets_are_frame_differences():
    offsets = lolrt.Rope().offsets([0, 1, 2, 30, 31, 32, 33, 34, 35], 3)
    assert offsets.shape == (9, 3)
    assert offsets[0].tolist() == [33, 34, 35] and offsets[-1].tolist() == [-2, -1, 0] and offsets[3].tolist() == [3, 4, 5]


def test_window_offsets_count_places_in_the_window():
    offsets = lolrt.Rope(positions="window").offsets([0, 1, 2, 30, 31, 32, 33, 34, 35], 3)
    assert offsets[0].tolist() == [6, 7, 8] and offsets[3].tolist() == [3, 4, 5]


@settings(deadline=None)
@given(start=st.integers(0, 10**6), anchor=st.integers(0, 40), sinks=st.integers(0, 4), recent=st.integers(3, 12))
def test_anchored_sinks_stay_in_reach_and_nothing_else_moves(start, anchor, sinks, recent):
    frames = [*range(sinks), *range(sinks + start, sinks + start + recent)]
    anchored = lolrt.Rope(positions="anchored", anchor_frames=anchor).offsets(frames, 3, sinks)
    absolute = lolrt.Rope().offsets(frames, 3)
    np.testing.assert_array_equal(anchored[sinks:], absolute[sinks:])
    if sinks:
        reach = max(anchor, sinks + recent - 1)
        assert anchored[0, -1] == min(absolute[0, -1], reach)
        np.testing.assert_array_equal(anchored[:sinks] - absolute[:sinks], anchored[0, 0] - absolute[0, 0])
        assert anchored[:sinks, 0].min() > anchored[sinks:, 0].max()  # they stay older than all others


def test_sinks_anchored_behind_the_recent_frames_are_at_their_place_in_the_window():
    for frames in ([0, 1, 2], [0, 1, 2, 3, 4, 5], [0, 1, 2, 30, 31, 32, 33, 34, 35]):
        sinks = min(3, len(frames) - 3)
        anchored = lolrt.Rope(positions="anchored", anchor_frames=0).offsets(frames, 3, sinks)
        np.testing.assert_array_equal(anchored, lolrt.Rope(positions="window").offsets(frames, 3))


def test_a_share_of_the_heads_keeps_the_models_base():
    whole, none = lolrt.Rope(jitter_seed=4).head_bases(1, 12), lolrt.Rope(jitter_seed=4, share=0.0).head_bases(1, 12)
    half = lolrt.Rope(jitter_seed=4, share=0.5).head_bases(1, 12)
    assert (none == 10000).all() and (half == whole).sum() == 6 and ((half == 10000) | (half == whole)).all()
    chosen = [tuple(lolrt.Rope(jitter_seed=seed, share=0.25).head_bases(1, 4)[0] == 10000) for seed in range(20)]
    assert len(set(chosen)) == 4


@settings(deadline=None)
@given(shift=st.integers(0, 10**9), page=st.integers(0, 500))
def test_tables_depend_on_differences_only_bit_for_bit(shift, page):
    rope = lolrt.Rope()
    increments = rope.increments(1, 4, 22)
    near, far = ([page + s, page + 7 + s, page + 8 + s, page + 9 + s] for s in (0, shift))
    assert torch.equal(rotation_tables(increments, rope.offsets(near, 3)), rotation_tables(increments, rope.offsets(far, 3)))


def test_table_equals_float64_angles_where_those_are_exact_enough():
    rope = lolrt.Rope(sigma=0.8)
    table = rotation_tables(rope.increments(1, 12, 22), rope.offsets([0, 500, 1000], 3)).numpy()[0]
    frequencies = rope.head_bases(1, 12)[0][:, None] ** (-2 * np.arange(22) / 44)
    angle = np.array([[0, 500, 1000]]) - np.array([[0], [500], [1000]])
    angle = angle[..., None, None] * frequencies
    np.testing.assert_allclose(table, np.stack([np.cos(angle), np.sin(angle)], -1), atol=6e-8, rtol=0)


def test_spatial_rotation_is_wans():
    table = spatial_rotation(4, 6, 21, 21).numpy()
    frequencies = 10000 ** (-2 * np.arange(21) / 42)
    for y, x in ((0, 0), (1, 0), (0, 1), (3, 5)):
        angle = np.concatenate([y * frequencies, x * frequencies])
        np.testing.assert_allclose(table[y * 6 + x], np.stack([np.cos(angle), np.sin(angle)], -1), atol=6e-8, rtol=0)


@pytest.mark.parametrize(
    "wrong, hint",
    [
        ({"sigma": 1.0}, "less than 1"),
        ({"sigma": -0.1}, "0 (plain RoPE)"),
        ({"sigma": math.nan}, "sigma"),
        ({"jitter_seed": -1}, "2^32 - 1"),
        ({"positions": "relative"}, '"absolute", "window" or "anchored"'),
        ({"share": 1.5}, "share"),
        ({"spread": "normal"}, '"uniform" or "stratified"'),
        ({"theta": 0.0}, "from 0.001 to 1e+15"),
    ],
)
def test_wrong_settings_are_told(wrong, hint):
    with pytest.raises(lolrt.Error) as error:
        lolrt.Rope(**wrong)
    assert hint in str(error.value)


@pytest.mark.parametrize("bases", [[10000.0] * 3, [[10000.0] * 2] * 3, [10000.0, -1.0], [10000.0, math.inf]])
def test_wrong_bases_are_told(bases):
    with pytest.raises(lolrt.Error, match="bases"):
        lolrt.Rope(bases=bases).increments(2, 2, 22)
