"""ggml's block formats, which GGUF files use for weights: converts their bytes to float32, with the same rounding as ggml's own code.

A row of a matrix is cut into blocks of 32 or 256 values. A block has a scale d, in float16, and some formats an offset too; K-quants have
scales of 4 to 8 bits inside a block, for 16 or 32 values each. Source: ggml, `src/ggml-common.h` (the blocks' layouts) and
`src/ggml-quants.c` (`dequantize_row_*`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Unpack = Callable[[Tensor], Tensor]


class BlockFormat(NamedTuple):
    values: int
    """The number of values in a block."""
    bytes: int
    """The number of bytes in a block."""
    unpack: Unpack
    """Converts blocks, uint8 [blocks, bytes], to their values, float32 [blocks, values]."""


def _fields(blocks: Tensor, *sizes: int) -> list[Tensor]:
    """The fields of each block, [blocks, size] each."""
    return [part.contiguous() for part in blocks.split(sizes, 1)]


def _half(field: Tensor) -> Tensor:
    """A float16 field as float32, [blocks, 1]."""
    return field.view(torch.float16).float()


def _bits(field: Tensor, width: int, run: int) -> Tensor:
    """Numbers of `width` bits, [blocks, numbers]: first the lowest bits of `run` bytes, then the next bits of the same bytes, and so on."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8).view(1, 1, -1, 1)
    return (field.view(len(field), -1, 1, run) >> shifts & (1 << width) - 1).flatten(1)


def _scaled(scales: Tensor, numbers: Tensor, offsets: Tensor | None = None) -> Tensor:
    """scale * number (- offset). Each scale and offset is for an equal share of the numbers."""
    values = numbers.float().view(*scales.shape, -1).mul_(scales[..., None])
    return (values if offsets is None else values.sub_(offsets[..., None])).flatten(1)


def _q4_0(blocks: Tensor) -> Tensor:
    d, low = _fields(blocks, 2, 16)
    return _scaled(_half(d), _bits(low, 4, 16).char() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    d, m, low = _fields(blocks, 2, 2, 16)
    return _bits(low, 4, 16).float().mul_(_half(d)).add_(_half(m))


def _five_bits(high: Tensor, low: Tensor) -> Tensor:
    """32 numbers of five bits: four bits of each in `low`, and the fifth bits, in the order of the numbers, in `high`."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return _bits(low, 4, 16) | (high[:, :, None] >> shifts & 1).flatten(1) << 4


def _q5_0(blocks: Tensor) -> Tensor:
    d, high, low = _fields(blocks, 2, 4, 16)
    return _scaled(_half(d), _five_bits(high, low).char() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    d, m, high, low = _fields(blocks, 2, 2, 4, 16)
    return _five_bits(high, low).float().mul_(_half(d)).add_(_half(m))


def _q8_0(blocks: Tensor) -> Tensor:
    d, numbers = _fields(blocks, 2, 32)
    return _scaled(_half(d), numbers.view(torch.int8))


def _q2_k(blocks: Tensor) -> Tensor:
    scales, low, d, dmin = _fields(blocks, 16, 64, 2, 2)
    return _scaled(_half(d) * (scales & 15).float(), _bits(low, 2, 32), _half(dmin) * (scales >> 4).float())


def _q3_k(blocks: Tensor) -> Tensor:
    high, low, scales, d = _fields(blocks, 32, 64, 12, 2)
    six = _bits(scales[:, :8].contiguous(), 4, 8) | _bits(scales[:, 8:].contiguous(), 2, 4) << 4
    numbers = _bits(low, 2, 32).char() - 4 + (_bits(high, 1, 32) << 2).char()  # minus 4 if the high bit is not set
    return _scaled(_half(d) * (six.char() - 32).float(), numbers)


def _scales_and_mins(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Unpacks eight scales and eight offsets of six bits each from 12 bytes. Four of each are in the low bits of a byte; the bits of the
    others are spread over the remaining bits."""
    first, second, both = packed.view(len(packed), 3, 4).unbind(1)
    scales = torch.cat([first & 63, both & 15 | first >> 6 << 4], 1)
    mins = torch.cat([second & 63, both >> 4 | second >> 6 << 4], 1)
    return scales.float(), mins.float()


def _q4_k(blocks: Tensor) -> Tensor:
    d, dmin, packed, low = _fields(blocks, 2, 2, 12, 128)
    scales, mins = _scales_and_mins(packed)
    return _scaled(_half(d) * scales, _bits(low, 4, 32), _half(dmin) * mins)


def _q5_k(blocks: Tensor) -> Tensor:
    d, dmin, packed, high, low = _fields(blocks, 2, 2, 12, 32, 128)
    scales, mins = _scales_and_mins(packed)
    return _scaled(_half(d) * scales, _bits(low, 4, 32) | _bits(high, 1, 32) << 4, _half(dmin) * mins)


def _q6_k(blocks: Tensor) -> Tensor:
    low, high, scales, d = _fields(blocks, 128, 64, 16, 2)
    return _scaled(_half(d) * scales.view(torch.int8).float(), (_bits(low, 4, 64) | _bits(high, 2, 32) << 4).char() - 32)


BLOCKS = {
    "Q4_0": BlockFormat(32, 18, _q4_0), "Q4_1": BlockFormat(32, 20, _q4_1), "Q5_0": BlockFormat(32, 22, _q5_0),
    "Q5_1": BlockFormat(32, 24, _q5_1), "Q8_0": BlockFormat(32, 34, _q8_0), "Q2_K": BlockFormat(256, 84, _q2_k),
    "Q3_K": BlockFormat(256, 110, _q3_k), "Q4_K": BlockFormat(256, 144, _q4_k), "Q5_K": BlockFormat(256, 176, _q5_k),
    "Q6_K": BlockFormat(256, 210, _q6_k),
}  # fmt: skip
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}

# The numbers of ggml's types. Types that are not supported are listed so that errors can name them.
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
    41: "Q1_0",
}  # fmt: skip
