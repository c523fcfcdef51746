"""Frequency policies against the formulas of their papers, written out pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lolrt
from lolrt.positions.frequencies import identify_k
from lolrt.positions.rope import rotation_tables

LENGTH, STRETCH = 132, 400 / 132  # LoL's settings for 100 seconds


def radians(frequencies: str, heads: int = 1, pairs: int = 22, **options) -> np.ndarray:
    rope = lolrt.Rope(frequencies=frequencies, length_frames=LENGTH, stretch=STRETCH, **{"sigma": 0.0, **options})
    return rope.radians(1, heads, pairs)


def wan(pairs: int = 22, base: float = 10000.0) -> list[float]:
    return [1.0 / base ** (2 * i / (2 * pairs)) for i in range(pairs)]


def test_position_interpolation_is_plain_rope_at_divided_positions():
    plain, stretched = lolrt.Rope(sigma=0), lolrt.Rope(sigma=0, frequencies="pi", stretch=4)
    tables = [
        rotation_tables(rope.increments(1, 2, 22), np.array([[-7 * factor, 100 * factor]])) for rope, factor in ((plain, 1), (stretched, 4))
    ]
    np.testing.assert_allclose(tables[1], tables[0], atol=1.2e-7, rtol=0)


@settings(deadline=None)
@given(pairs=st.integers(2, 64), stretch=st.floats(1, 100))
def test_ntk_leaves_the_fastest_pair_and_interpolates_the_slowest(pairs, stretch):
    omega = lolrt.Rope(sigma=0, frequencies="ntk", stretch=stretch).radians(1, 1, pairs)[0, 0]
    assert omega[0] == 1
    # Definition 1 chooses the base for this: theta_last = plain / s; between them the frequencies are a geometric series.
    assert omega[-1] == pytest.approx(wan(pairs)[-1] / stretch, rel=1e-12)
    np.testing.assert_allclose(omega[1:] / omega[:-1], omega[-1] ** (1 / (pairs - 1)), rtol=1e-9)


def test_yarn_is_its_definition():
    expected = []
    for omega in wan():
        turns = LENGTH / (2 * math.pi / omega)
        if turns < 1:
            expected.append(omega / STRETCH)
        elif turns > 32:
            expected.append(omega)
        else:
            ramp = (turns - 1) / 31
            expected.append((1 - ramp) * omega / STRETCH + ramp * omega)
    np.testing.assert_allclose(radians("yarn")[0, 0], expected, rtol=1e-14)
    assert min(np.divide(expected, wan())) == pytest.approx(1 / STRETCH) and 0.7 < expected[0] < 1  # both ends of the ramp occur
    assert lolrt.Rope(frequencies="yarn", stretch=STRETCH).amplitude == pytest.approx((0.1 * math.log(STRETCH) + 1) ** 2)
    assert lolrt.Rope(frequencies="pi", stretch=STRETCH).amplitude == 1


def test_riflex_slows_the_pair_of_the_first_repetition_to_one_turn():
    assert identify_k(10000, 44, 132) == (8, 118)
    expected = wan()
    expected[8 - 1] = 2 * math.pi / 400
    np.testing.assert_allclose(radians("riflex")[0, 0], expected, rtol=1e-14)


@settings(deadline=None)
@given(theta=st.floats(100, 1e6), pairs=st.integers(1, 64), length=st.integers(1, 2000))
def test_identify_k_finds_the_nearest_period(theta, pairs, length):
    periods = [round(2 * math.pi * theta ** (2 * j / (2 * pairs))) for j in range(pairs)]
    nearest = min(abs(period - length) for period in periods)
    k, period = identify_k(theta, 2 * pairs, length)
    assert abs(period - length) == nearest and periods[k - 1] == period and k == 1 + periods.index(period)


@pytest.mark.parametrize("frequencies", ["plain", "pi", "ntk", "yarn"])
def test_stretching_by_one_is_plain_rope_bit_for_bit(frequencies):
    rope = lolrt.Rope(sigma=0, frequencies=frequencies)
    assert np.array_equal(rope.increments(1, 12, 22), lolrt.Rope(sigma=0).increments(1, 12, 22)) and rope.amplitude == 1


@pytest.mark.parametrize("frequencies", ["pi", "ntk", "yarn", "riflex"])
def test_policies_work_head_by_head_on_jittered_bases(frequencies):
    bases = [[3000.0, 17000.0], [9000.0, 12000.0]]
    both = lolrt.Rope(bases=bases, frequencies=frequencies, stretch=2.0).radians(2, 2, 22)
    for layer, head in np.ndindex(2, 2):
        alone = lolrt.Rope(theta=bases[layer][head], sigma=0, frequencies=frequencies, stretch=2.0).radians(1, 1, 22)
        np.testing.assert_array_equal(both[layer, head], alone[0, 0])


@pytest.mark.parametrize(
    "wrong, hint",
    [
        ({"frequencies": "longrope"}, "plain, pi, ntk, yarn, riflex"),
        ({"stretch": 0.5}, "from 1 to 2,147,483,647"),
        ({"stretch": math.inf}, "from 1 to 2,147,483,647"),
        ({"length_frames": 0}, "from 1 to 2,147,483,647"),
    ],
)
def test_wrong_settings_are_told(wrong, hint):
    with pytest.raises(lolrt.Error, match=hint):
        lolrt.Rope(**wrong)


def test_ntk_needs_two_pairs():
    with pytest.raises(lolrt.Error, match="2 temporal channel pairs"):
        lolrt.Rope(frequencies="ntk").increments(1, 1, 1)
