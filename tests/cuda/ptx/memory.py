"""Memory outside the block: the buffers that a launch may touch, and its parameters."""

from __future__ import annotations

import ctypes

import numpy as np

PARAMETERS_AT = 0x7E00_0000_0000
"""Address of the first parameter in a space of its own."""


class FaultError(Exception):
    """An error of one thread."""

    def __init__(self, thread: int, text: str) -> None:
        super().__init__(text)
        self.thread = thread
        """Its place among all that run side by side."""


def check_alignment(threads: np.ndarray, addresses: np.ndarray, size: int) -> None:
    odd = addresses % size != 0
    if odd.any():
        raise FaultError(threads[odd][0], f"address {addresses[odd][0]:#x} is not aligned to {size} bytes")


class Memory:
    """Buffers of this process by their addresses."""

    def __init__(self, buffers: list[tuple[int, int]]) -> None:
        """Start and size in bytes of each; nothing else may be accessed."""
        inhabited = sorted({(start, start + size) for start, size in buffers if size})
        self._starts = np.array([start for start, _ in inhabited], np.int64)
        self._ends = np.maximum.accumulate(np.array([end for _, end in inhabited], np.int64))
        # One array over all of them and what lies between, which is not touched, in every width.
        self._base = int(self._starts[0]) & ~15
        span = (int(self._ends[-1]) - self._base + 15) & ~15
        space = np.frombuffer((ctypes.c_uint8 * span).from_address(self._base), np.uint8)
        self._words = {size: space.view(f"u{size}") for size in (1, 2, 4, 8)}

    def check(self, threads: np.ndarray, addresses: np.ndarray, size: int) -> None:
        """Checks that these bytes lie inside one buffer."""
        buffer = np.searchsorted(self._starts, addresses, "right") - 1
        outside = (buffer < 0) | (addresses + size > self._ends[buffer])
        if outside.any():
            raise FaultError(threads[outside][0], f"address {addresses[outside][0]:#x} is outside every buffer, {size} bytes")

    def _places(self, threads: np.ndarray, addresses: np.ndarray, dtype: np.dtype, count: int) -> np.ndarray:
        """Indices [threads, count] into the words."""
        size = dtype.itemsize
        self.check(threads, addresses, count * size)
        check_alignment(threads, addresses, count * size)
        return (addresses[:, None] - self._base) // size + np.arange(count)

    def load(self, threads: np.ndarray, addresses: np.ndarray, dtype: np.dtype, count: int) -> np.ndarray:
        """`count` values in a row, [threads, count]; the address is aligned to all of them."""
        return self._words[dtype.itemsize][self._places(threads, addresses, dtype, count)].view(dtype)

    def store(self, threads: np.ndarray, addresses: np.ndarray, values: np.ndarray) -> None:
        dtype = values.dtype
        self._words[dtype.itemsize][self._places(threads, addresses, dtype, values.shape[1])] = values.view(f"u{dtype.itemsize}")


class Parameters:
    def __init__(self, data: bytes) -> None:
        self._data = np.frombuffer(data, np.uint8)

    def load(self, threads: np.ndarray, addresses: np.ndarray, dtype: np.dtype, count: int) -> np.ndarray:
        size = count * dtype.itemsize
        return self.bytes(threads, addresses, size, size).view(dtype)

    def bytes(self, threads: np.ndarray, addresses: np.ndarray, size: int, alignment: int) -> np.ndarray:
        """[threads, size]."""
        offsets = addresses - PARAMETERS_AT
        outside = (offsets < 0) | (offsets + size > len(self._data))
        if outside.any():
            raise FaultError(threads[outside][0], f"byte {offsets[outside][0]} is outside the {len(self._data)} bytes of parameters")
        check_alignment(threads, offsets, alignment)
        return self._data[offsets[:, None] + np.arange(size)]
