"""Noise: standard normal draws that depend on their key alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lolrt import _core


def normal(seed: int, frame: int, step: int, *shape: int) -> np.ndarray:
    out = np.full(shape, np.nan, dtype=np.float32)
    _core.normal(seed, frame, step, out)
    return out


def test_noise_is_standard_normal() -> None:
    draws = normal(1, 0, 0, 1_000_000).astype(np.float64)
    bound = 5 / math.sqrt(draws.size)  # 5 standard errors
    assert abs(draws.mean()) < bound
    assert abs(draws.var() - 1) < bound * math.sqrt(2)
    assert abs((draws**3).mean()) < bound * math.sqrt(15)
    assert abs((draws**4).mean() - 3) < bound * math.sqrt(96)
    for quantile in (0.5, 1.0, 2.0, 3.0):
        share = math.erfc(quantile / math.sqrt(2))
        assert abs((np.abs(draws) > quantile).mean() - share) < bound * math.sqrt(share)
    neighbours = draws.reshape(-1, 4)
    assert np.abs(np.corrcoef(neighbours.T) - np.eye(4)).max() < 2 * bound


def test_noise_depends_on_its_key_alone() -> None:
    first = normal(7, 5, 1, 2, 3, 4)
    normal(8, 5, 1, 100)
    assert (normal(7, 5, 1, 24) == first.ravel()).all()
    assert (normal(7, 5, 1, 1000)[:24] == first.ravel()).all()


def test_noise_does_not_depend_on_threads() -> None:
    before, draws = _core.threads(), []
    for threads in (1, 2, 5):
        _core.set_threads(threads)
        draws.append(normal(3, 4, 5, 10_001))
    _core.set_threads(before)
    assert all((each == draws[0]).all() for each in draws)


def test_noise_of_different_keys_is_independent() -> None:
    keys = [(0, 0, 0), (1, 0, 0), (2**32, 0, 0), (0, 1, 0), (0, 2**32, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    draws = np.stack([normal(*key, 20_000) for key in keys])
    assert np.abs(np.corrcoef(draws) - np.eye(len(keys))).max() < 5 / math.sqrt(20_000)


def test_noise_wants_a_contiguous_float32_tensor() -> None:
    with pytest.raises(ValueError, match=r"normal: out: expected float32 .* got float64"):
        _core.normal(0, 0, 0, np.zeros(3))
    with pytest.raises(ValueError, match="stride 2"):
        _core.normal(0, 0, 0, torch.zeros(6)[::2])
