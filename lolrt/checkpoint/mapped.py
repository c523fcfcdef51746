"""Tensors over a memory-mapped file. They take no memory until they are read, and their pages can be released again."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt import _core
from lolrt.checkpoint.foreign import open_file
from lolrt.errors import CheckpointError

# The mapping is private: a write makes a copy of a page. Without this flag the system reserves memory for a copy of every page, and
# refuses to map a file that is larger than the memory. Python names the flag from 3.13 on.
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def representable(shape: Sequence[int]) -> bool:
    """Whether torch can make a tensor of this shape: it multiplies sizes in 64 bits, those beside a size of 0 as well."""
    return math.prod(max(1, size) for size in shape) < 1 << 60


def map_file(path: Path) -> Tensor:
    """All bytes of a file, uint8. Pages are read when they are first used.

    Raises `lolrt.CheckpointError` if the file does not exist, cannot be read, or is not a checkpoint by its first bytes.
    """
    try:
        with open_file(path) as file:
            if not os.fstat(file.fileno()).st_size:
                return torch.empty(0, dtype=torch.uint8, device="cpu")
            flags, access = mmap.MAP_PRIVATE | NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            mapping = mmap.mmap(file.fileno(), 0, flags=flags, prot=access)
            data = torch.frombuffer(mapping, dtype=torch.uint8)
            weakref.finalize(mapping, _core.unguard_mapping, _core.guard_mapping(data.data_ptr(), len(data))).atexit = False
            return data
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist, and the model cannot be read without it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def check_whole_file(source: object) -> None:
    """Raises `lolrt.CheckpointError` where a file has become shorter since it was mapped: what was read of it since is in part zeros."""
    if _core.take_lost_pages():
        raise CheckpointError(f"{source} has become shorter while it was read; wait until nobody writes it, and fetch it again")


class WatchedFiles:
    """Files that a model's weights are mapped from. They stay open, so that a file that has been replaced by another one of its name counts
    as unchanged, as the weights are."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = {path: open(path, "rb") for path in paths}  # noqa: SIM115
        self._states = {path: _written(file.fileno()) for path, file in self._files.items()}

    def check(self) -> None:
        """Raises `lolrt.CheckpointError` if a file has been written."""
        for path, file in self._files.items():
            if _written(file.fileno()) != self._states[path]:
                _core.take_lost_pages()  # those of this file; the next file that is read must not be blamed for them
                raise CheckpointError(
                    f"{path} was written while a running model used it as its weights, so what the model has made since cannot be trusted: "
                    "load the model again, and replace files (by renaming) rather than write them, or load without mapped=True"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # the weights of a model's copy are in memory of its own


def _written(file: int) -> tuple[int, int]:
    """Size and time of the last write."""
    state = os.fstat(file)
    return state.st_size, state.st_mtime_ns


def view(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Mapped bytes as values of a dtype. They are not aligned if the bytes are not; a caller that keeps such a tensor makes a copy
    (`load.weight`)."""
    if len(data) == 0:
        return torch.empty(0, dtype=dtype, device="cpu")
    if data.data_ptr() % dtype.itemsize:
        return torch.frombuffer(data.numpy(), dtype=dtype)
    return data.view(dtype)


def mark(tensor: Tensor) -> Tensor:
    """Marks a tensor as a private mapping of a file. Only the pages of such tensors may be released."""
    tensor._is_mapped = True  # type: ignore[attr-defined]
    return tensor


def is_mapped(tensor: Tensor) -> bool:
    return getattr(tensor, "_is_mapped", False)


def give_back(tensor: Tensor) -> None:
    """Tells the system that the pages of a mapped tensor are not needed now. If they are used again, they are read again."""
    first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    if is_mapped(tensor) and tensor.nbytes:
        end = tensor.data_ptr() + tensor.nbytes
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED)
