"""Frequency policies: the rotation speed of each temporal channel pair of a head, for videos longer than those of the training.

A policy maps head bases, float64 [...], to radians per frame, float64 [..., pairs]. `length` is L, the number of frames that the model
covers without a policy. `stretch` is s = L' / L, the factor by which this number is extended. Plain RoPE has theta^(-i / pairs), i = 0 ..
pairs - 1
(RoFormer, arXiv 2104.09864, eq. 15, with 2 * pairs channels).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from lolrt.errors import Error

# YaRN's ramp: pairs that turn fewer than ALPHA times within L are interpolated, pairs that turn more than BETA times are unchanged.
ALPHA, BETA = 1.0, 32.0


def plain(bases: np.ndarray, pairs: int, length: float, stretch: float) -> np.ndarray:
    """theta^(-i / pairs)."""
    return bases[..., None] ** (-np.arange(pairs) / pairs)


def interpolated(bases: np.ndarray, pairs: int, length: float, stretch: float) -> np.ndarray:
    """Position interpolation: every frequency divided by s. Source: PI, arXiv 2306.15595, eq. 4."""
    return plain(bases, pairs, length, stretch) / stretch


def ntk_aware(bases: np.ndarray, pairs: int, length: float, stretch: float) -> np.ndarray:
    """Plain with the base theta * s^(d / (d - 2)), d = 2 * pairs: the slowest pair is interpolated, the fastest is unchanged.
    Source: YaRN, arXiv 2309.00071, Definition 1.
    """
    if pairs < 2:
        raise Error('frequencies="ntk" needs 2 temporal channel pairs or more')
    return plain(bases * stretch ** (pairs / (pairs - 1)), pairs, length, stretch)


def yarn(bases: np.ndarray, pairs: int, length: float, stretch: float) -> np.ndarray:
    """Between plain and interpolated, by how many turns r = L * omega / 2 pi a pair makes within L: omega * ((1 - g) / s + g) with
    g = (r - ALPHA) / (BETA - ALPHA), clipped to 0 .. 1. Source: YaRN, arXiv 2309.00071, eqs. 17, 18 and 20; see also
    `yarn_amplitude`.
    """
    omega = plain(bases, pairs, length, stretch)
    ramp = np.clip((length * omega / (2 * math.pi) - ALPHA) / (BETA - ALPHA), 0, 1)
    return omega * ((1 - ramp) / stretch + ramp)


def yarn_amplitude(stretch: float) -> float:
    """The factor of YaRN's temperature on the scores of the rotated channels: 1 / t = (0.1 ln s + 1)^2. Source: eq. 22."""
    return (0.1 * math.log(stretch) + 1) ** 2


def identify_k(theta: float, channels: int, length: float) -> tuple[int, int]:
    """RIFLEx's intrinsic pair: the index, counted from 1, of the temporal channel pair whose period is nearest to the first repetition at
    `length` frames; and that period in whole frames. Source: RIFLEx, arXiv 2502.15894, eqs. 4 and 7.
    """
    periods = np.round(2 * math.pi * theta ** (2 * np.arange(channels // 2) / channels))
    k = int(np.abs(periods - length).argmin())
    return k + 1, int(periods[k])


def riflex(bases: np.ndarray, pairs: int, length: float, stretch: float) -> np.ndarray:
    """Plain, except that the intrinsic pair of each head turns once within the whole stretched length: 2 pi / (L s).
    Source: RIFLEx, arXiv 2502.15894, eq. 8; its code makes that pair slower by another tenth.
    """
    omega = plain(bases, pairs, length, stretch)
    for head, base in zip(omega.reshape(-1, pairs), bases.reshape(-1), strict=True):
        k, _ = identify_k(base, 2 * pairs, length)
        head[k - 1] = 2 * math.pi / (length * stretch)
    return omega


POLICIES: dict[str, Callable[[np.ndarray, int, float, float], np.ndarray]] = {
    "plain": plain,
    "pi": interpolated,
    "ntk": ntk_aware,
    "yarn": yarn,
    "riflex": riflex,
}
