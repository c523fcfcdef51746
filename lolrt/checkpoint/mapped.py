"""Tensors whose memory is a file, mapped: they cost nothing until they are touched, and their pages can be given back."""

from __future__ import annotations

import ctypes
import mmap

from torch import Tensor


def mark(tensor: Tensor) -> Tensor:
    """Notes that the tensor's memory is a private mapping of a file; only of such may pages be dropped."""
    tensor._is_mapped = True  # type: ignore[attr-defined]
    return tensor


def give_back(tensor: Tensor) -> None:
    """Tells the system that a mapped tensor's pages are not needed for now; touched again, they are read again."""
    first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    if getattr(tensor, "_is_mapped", False) and tensor.nbytes:
        end = tensor.data_ptr() + tensor.nbytes
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)
