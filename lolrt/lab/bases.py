"""Bases of the heads that are chosen by a rule and not at random, within the jitter range of a given sigma."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np

from lolrt.lab.phase import kernel
from lolrt.positions.frequencies import plain

# The offsets in latent frames at which phases should not align, and the number of draws to choose from.
FIRST_FRAME, LAST_FRAME = 100, 400
DRAWS = 256
# The root mean square of U[-1, 1], the paper's rule. A set of bases with larger shifts could be better for that reason alone.
RMS = 3**-0.5


def log_spaced(heads: int, sigma: float, theta: float = 10000.0) -> np.ndarray:
    """float64 [heads]: from theta * (1 - sigma) to theta * (1 + sigma) in equal ratios, so that frequencies are spread evenly."""
    return theta * np.geomspace(1 - sigma, 1 + sigma, heads)


def least_ripple(heads: int, pairs: int, sigma: float, theta: float = 10000.0) -> np.ndarray:
    """float64 [heads]: of 256 draws of theta * (1 + sigma * eps), eps in [-1, 1] with the root mean square of the paper's rule, the one
    whose phase kernel, real part and mean over heads, has the lowest maximum from offset 100 to 400."""
    random = np.random.RandomState(0)
    eps = random.uniform(-1, 1, (DRAWS, heads))
    eps *= RMS / np.sqrt(np.square(eps).mean(1, keepdims=True))
    eps = eps[np.abs(eps).max(1) <= 1]
    bases = theta * (1 + sigma * eps)
    offsets = np.arange(FIRST_FRAME, LAST_FRAME)
    highest = [kernel(plain(draw, pairs, 1, 1), offsets).real.mean(1).max() for draw in bases]
    return bases[int(np.argmin(highest))]


def orders(bases: Iterable[float], count: int) -> list[tuple[float, ...]]:
    """`count` random orders of the bases, or all orders if there are fewer."""
    random = np.random.RandomState(0)
    drawn = (tuple(random.permutation(list(bases))) for _ in range(100 * count))
    return list(islice(dict.fromkeys(drawn), count))
