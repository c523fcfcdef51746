"""ggml's block formats against the `gguf` package, bit for bit, on blocks of any bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lolrt.checkpoint.ggml import BLOCKS, PLAIN, TYPES


def blocks_of(name: str, count: int, seed: int) -> np.ndarray:
    """Random bytes with scales of every size, including ones that are not finite."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    size = GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
    return np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_value_has_the_bits_of_the_gguf_package(name):
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType[name]
    assert (BLOCKS[name].values, BLOCKS[name].bytes) == GGML_QUANT_SIZES[kind]
    for seed in range(3):
        blocks = blocks_of(name, 300, seed)
        with np.errstate(all="ignore"):
            expected = dequantize(blocks, kind)
        ours = BLOCKS[name].unpack(torch.from_numpy(blocks)).numpy()
        nan = np.isnan(expected)
        assert ours.shape == expected.shape == (300, BLOCKS[name].values) and ours.dtype == np.float32
        assert np.array_equal(nan, np.isnan(ours)) and nan.mean() < 0.3
        assert np.array_equal(ours.view(np.int32)[~nan], expected.view(np.int32)[~nan])


def test_the_numbers_of_types_are_ggmls():
    from gguf import GGMLQuantizationType

    assert {int(kind): kind.name for kind in GGMLQuantizationType} == TYPES
    assert {*BLOCKS, *PLAIN} <= set(TYPES.values())
