"""Bootstrap intervals of means and of differences between means."""

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
    return difference(values, np.zeros((1, values.shape[1])), resamples, seed)


def difference(values: np.ndarray, others: np.ndarray, resamples: int = 2000, seed: int = 0, paired: bool = False) -> Interval:
    """Differences: the mean of one policy minus that of another one over the same videos, and its interval by the same bootstrap: both
    have the same videos drawn, and jitter draws of their own; where the n-th draw of both is one and the same (a seed's eps under another
    sigma, or in fewer heads), draws are paired and drawn together. The difference is significant where the interval does not contain 0."""
    # [draws, videos], [other draws, videos]
    random = np.random.default_rng(seed)
    columns = random.integers(0, values.shape[1], (resamples, values.shape[1]))

    def means(table: np.ndarray) -> np.ndarray:
        rows = random.integers(0, len(table), (resamples, len(table)))
        return table[rows[:, :, None], columns[:, None, :]].mean((1, 2))

    differences = means(values - others) if paired else means(values) - means(others)
    low, high = np.percentile(differences, [2.5, 97.5])
    return Interval(float(values.mean() - others.mean()), float(low), float(high))
