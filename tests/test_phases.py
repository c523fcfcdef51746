"""Phases, and the rotations that are computed from them."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lolrt import _core

# 120 digits, enough for any float64 up to 2^32 times 2^64.
PI = Fraction(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798214808651328230664709"
)


def increments(radians: list[float]) -> list[int]:
    out = np.zeros(len(radians), dtype=np.uint64)
    _core.phase_increments(np.array(radians, dtype=np.float64), out)
    return out.tolist()


def table(turns: list[int], offsets: list[int]) -> np.ndarray:
    out = np.full((len(offsets), 1, 1, len(turns), 2), np.nan, dtype=np.float32)
    _core.rotation_table(np.array([turns], dtype=np.uint64), np.array(offsets, dtype=np.int64)[:, None], out)
    return out[:, 0, 0]


def exact_cos_sin(turns: Fraction) -> tuple[float, float]:
    """cos and sin of a number of turns in [-1/2, 1/2], by their series in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        x = 2 * turns * PI
        angle = Decimal(x.numerator) / Decimal(x.denominator)
        term, cos, sin = Decimal(1), Decimal(0), Decimal(0)
        for n in range(60):
            sign = 1 if n % 4 < 2 else -1
            cos, sin = (cos + sign * term, sin) if n % 2 == 0 else (cos, sin + sign * term)
            term = term * angle / (n + 1)
        return float(cos), float(sin)


@given(st.lists(st.floats(-(2.0**32), 2.0**32), min_size=1, max_size=20))
def test_increments_are_exact(radians: list[float]) -> None:
    for value, turns in zip(radians, increments(radians), strict=True):
        # Rounded half away from zero on the magnitude; a tie never happens, the number being irrational.
        magnitude = math.floor(abs(Fraction(value)) / (2 * PI) * 2**64 + Fraction(1, 2))
        assert turns == (magnitude if value >= 0 else -magnitude) % 2**64


def test_increments_reject_what_has_no_phase() -> None:
    for value in (math.nan, math.inf, -1e10):
        with pytest.raises(ValueError, match=r"radians_per_frame\[1\]"):
            increments([1.0, value])


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4))
def test_rotation_tables_are_rounded_once(turns: list[int], offsets: list[int]) -> None:
    got = table(turns, offsets)
    for i, offset in enumerate(offsets):
        for j, increment in enumerate(turns):
            phase = (increment * offset + 2**63) % 2**64 - 2**63
            exact = exact_cos_sin(Fraction(phase, 2**64))
            # Half a unit of float32; before it, float64 rounds the phase, 2 pi and their product of up to pi.
            np.testing.assert_allclose(got[i, j], exact, rtol=2**-24 * 1.0001, atol=1e-15)


def test_rotation_by_nothing_is_the_identity() -> None:
    assert (table([2**63 + 12345, 1, 0], [0])[0] == [1, 0]).all()
    assert (table([0], [1, -(2**63), 10**18])[:, 0] == [1, 0]).all()


def test_rotation_depends_on_the_offset_only_modulo_a_turn() -> None:
    turns = increments([1.0, 0.3, 1e-4])
    assert (table(turns, [5]) == table(turns, [5 - 2**64 + 2**64])).all()
    assert (table([1 << 60], [3]) == table([1 << 60], [3 + 16 * 10**9])).all()


def test_phases_stay_exact_for_half_a_year() -> None:
    """16 million latent frames: the only error is the rounding of the increment."""
    frames, radians = 16_000_000, 0.7
    exact = exact_cos_sin((Fraction(radians) * frames / (2 * PI) + Fraction(1, 2)) % 1 - Fraction(1, 2))
    np.testing.assert_allclose(table(increments([radians]), [frames])[0, 0], exact, atol=2**-24)
