"""Intervals by bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interval(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Interval:
    """Intervals: the mean over jitter draws and videos, and in brackets its 95 % percentile interval by bootstrap: 2000 times as many
    draws, and as many videos, are drawn with replacement, crosswise, because all draws share their videos; with one draw the interval
    says nothing of other draws."""
    # [draws, videos]
    random = np.random.default_rng(seed)
    draws, videos = values.shape
    rows = random.integers(0, draws, (resamples, draws))
    columns = random.integers(0, videos, (resamples, videos))
    means = values[rows[:, :, None], columns[:, None, :]].mean((1, 2))
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))
