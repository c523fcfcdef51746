"""Tensors far larger than memory; only the parts that are accessed use memory."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

APART = 2**31 + 512
"""Elements, a multiple of 640. They take more than 4 GiB in every element type except that of 8 bits."""
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # only Python 3.11 and later has a name for it


def sparse(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory until they are accessed."""
    elements = torch.Size(shape).numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags=flags), dtype=dtype).view(shape)


def apart(x: Tensor, dim: int) -> Tensor:
    """x with a distance of `APART` elements between the indices of that dimension, and all other dimensions packed."""
    others = [size for d, size in enumerate(x.shape) if d != dim]
    strides = [torch.Size(others[d + 1 :]).numel() for d in range(len(others))]
    strides.insert(dim, APART)
    memory = sparse((x.shape[dim] - 1) * APART + torch.Size(others).numel(), dtype=x.dtype)
    return memory.as_strided(x.shape, strides).copy_(x)
