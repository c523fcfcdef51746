"""Where wgmma finds its matrix b in shared memory: ISA, "Matrix descriptor" and "Canonical layouts".

In each mode a matrix is atoms of 8 rows of memory, 16 to 128 bytes long; a chunk is 16 bytes, 8 elements. An atom of 128 bytes is permuted
within 1024: bits 4 to 6 of an address by bits 7 to 9; those of 64 and 32 bytes by fewer bits, that of 16 not at all.
"""

from __future__ import annotations

import numpy as np

from .operands import Array

DEPTH = 16
"""Rows of b, which is 16 x n."""
_SPANS = (16, 128, 64, 32)
"""Bytes of an atom's row, by the descriptor's bits 62 and 63."""


def _field(descriptor: int, first: int) -> int:
    """Of 14 bits, in units of 16 bytes."""
    return (descriptor >> first & 0x3FFF) << 4


def chunks(descriptor: int, columns: int, transposed: bool) -> Array:
    """Addresses of the chunks of b: [columns, 2] of 8 rows each, or with its rows in memory (transposed) [16, columns / 8] of 8 columns."""
    start, leading, stride, span = *(_field(descriptor, first) for first in (0, 16, 32)), _SPANS[descriptor >> 62]
    if transposed:
        row, chunk = np.meshgrid(np.arange(DEPTH), np.arange(columns // 8), indexing="ij")
        atom, within = chunk // (span // 16), chunk % (span // 16)
        across, along = (stride, leading) if span == 16 else (leading, stride)
        address = start + row // 8 * along + row % 8 * span + atom * across + within * 16
    else:
        column, chunk = np.meshgrid(np.arange(columns), np.arange(DEPTH // 8), indexing="ij")
        address = start + column // 8 * stride + column % 8 * span + chunk * (leading if span == 16 else 16)
    return address ^ (address >> 7 & span // 16 - 1) << 4


def conflicts(addresses: Array, transposed: bool) -> int:
    """Further turns of the banks: the 8 chunks of an 8 x 8 matrix are read at once."""
    matrices = addresses.reshape(2, 8, -1).swapaxes(1, 2) if transposed else addresses.reshape(-1, 8, 2).swapaxes(1, 2)
    banks = matrices.reshape(-1, 8) // 16 % 8
    return int(((banks[:, :, None] == banks[:, None, :]).sum(2).max(1) - 1).sum())
