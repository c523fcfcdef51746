"""Shared memory of some blocks, and who may touch it when.

Accesses of two threads, one of them a write, are a race unless a barrier orders them. Time is counted by warps: `clock` of a warp is
the number of barriers that it has passed, `known` what a warp knows of the clocks of the others of its block; an access is ordered
before those of a warp that knows a later clock of the warp that made it. The unit is the word of 4 bytes, so that neighbours that write
halves of a word would count as a race.

What cp.async brings is under way until the thread that asked for it has waited: nobody may touch it, and it reads as NaN.
"""

from __future__ import annotations

import numpy as np

from .memory import FaultError, check_alignment

SHARED_AT = 0x400
"""Address of the first byte."""
LANES = 32
BANKS = 32

_NOBODY, _SEVERAL = -1, -2


class Shared:
    def __init__(self, blocks: int, threads: int, size: int) -> None:
        """Of `size` bytes and so many threads in each block."""
        self._size, self._threads = size, threads
        self._stride = -(-size // 128) * 128
        self.bytes = np.full(blocks * self._stride, 0xFF, np.uint8)
        self.conflicts = {"ldmatrix": 0, "other": 0}
        """Further turns of the banks, of ldmatrix and of loads and stores."""
        words, self._warps = blocks * self._stride // 4, threads // LANES
        self._clock = np.zeros(blocks * self._warps, np.int32)
        self._known = np.zeros((blocks * self._warps, self._warps), np.int32)
        self._under_way = np.zeros(words, bool)
        self._writer = np.full(words, _NOBODY, np.int32)
        self._written_at = np.zeros(words, np.int32)
        self._reader = np.full((words, self._warps), _NOBODY, np.int32)
        self._read_at = np.zeros((words, self._warps), np.int32)

    # ---- accesses ----

    def places(self, threads: np.ndarray, addresses: np.ndarray, size: int) -> np.ndarray:
        """Indices into `bytes` of accesses of `size` bytes, aligned to them."""
        offsets = addresses - SHARED_AT
        outside = (offsets < 0) | (offsets + size > self._size)
        if outside.any():
            raise FaultError(threads[outside][0], f"byte {offsets[outside][0]} is outside the {self._size} bytes of shared memory")
        check_alignment(threads, offsets, size)
        return offsets + threads // self._threads * self._stride

    def load(self, threads: np.ndarray, addresses: np.ndarray, dtype: np.dtype, count: int, by: str = "other") -> np.ndarray:
        places = self.places(threads, addresses, count * dtype.itemsize)
        self._count_conflicts(threads, places, count * dtype.itemsize, by)
        self._touch(threads, places, count * dtype.itemsize, writes=False)
        return self.bytes[places[:, None] + np.arange(count * dtype.itemsize)].view(dtype)

    def store(self, threads: np.ndarray, addresses: np.ndarray, values: np.ndarray) -> None:
        size = values.shape[1] * values.itemsize
        places = self.places(threads, addresses, size)
        self._count_conflicts(threads, places, size, "other")
        self._touch(threads, places, size, writes=True)
        self.bytes[places[:, None] + np.arange(size)] = np.ascontiguousarray(values).view(np.uint8)

    def begin_copy(self, threads: np.ndarray, places: np.ndarray, size: int) -> None:
        self._touch(threads, places, size, writes=True)
        self._under_way[self._words(places, size)] = True
        self.bytes[places[:, None] + np.arange(size)] = 0xFF

    def end_copy(self, threads: np.ndarray, places: np.ndarray, data: np.ndarray) -> None:
        """data: bytes [threads, size]."""
        words = self._words(places, data.shape[1])
        self._under_way[words] = False
        self._written_at[words] = self._clock[threads // LANES][:, None]
        self.bytes[places[:, None] + np.arange(data.shape[1])] = data

    # ---- order ----

    def meet_block(self, threads: np.ndarray) -> None:
        """All threads of some blocks pass a barrier."""
        warps = np.unique(threads // LANES)
        self._clock[warps] += 1
        blocks = warps // self._warps
        self._known[warps] = self._clock.reshape(-1, self._warps)[blocks]

    def meet_warp(self, threads: np.ndarray) -> None:
        warps = np.unique(threads // LANES)
        self._clock[warps] += 1
        self._known[warps, warps % self._warps] = self._clock[warps]

    @staticmethod
    def _words(places: np.ndarray, size: int) -> np.ndarray:
        return places[:, None] // 4 + np.arange(-(-size // 4))

    def _touch(self, threads: np.ndarray, places: np.ndarray, size: int, writes: bool) -> None:
        words = self._words(places, size)
        who = np.repeat(threads, words.shape[1])
        words = words.ravel()
        if self._under_way[words].any():
            self._race(who, words, self._under_way[words], "an access and a copy under way")
        warp = who // LANES
        writer = self._writer[words]
        known = self._known[warp, writer // LANES % self._warps]
        late = (writer != _NOBODY) & (writer != who) & (self._written_at[words] >= known)
        if late.any():
            self._race(who, words, late, "two writes" if writes else "a write and a read after it")
        if writes:
            self._write(who, words, warp)
        else:
            self._read(who, words, warp)

    def _write(self, who: np.ndarray, words: np.ndarray, warp: np.ndarray) -> None:
        reader = self._reader[words]
        late = (reader != _NOBODY) & (reader != who[:, None]) & (self._read_at[words] >= self._known[warp])
        if late.any():
            self._race(who, words, late.any(1), "a read and a write after it")
        self._writer[words] = who
        self._written_at[words] = self._clock[warp]
        if (self._writer[words] != who).any():
            self._race(who, words, self._writer[words] != who, "two writes of one instruction")

    def _read(self, who: np.ndarray, words: np.ndarray, warp: np.ndarray) -> None:
        own, now = warp % self._warps, self._clock[warp]
        reader = self._reader[words, own]
        several = (self._read_at[words, own] == now) & (reader != _NOBODY) & (reader != who)
        reader = np.where(several, _SEVERAL, who)
        self._reader[words, own] = reader
        self._read_at[words, own] = now
        together = self._reader[words, own] != reader  # lanes that read the same word
        self._reader[words[together], own[together]] = _SEVERAL

    def _race(self, who: np.ndarray, words: np.ndarray, where: np.ndarray, text: str) -> None:
        byte = words[where][0] * 4 % self._stride
        raise FaultError(who[where][0], f"race: {text} are not ordered (byte {byte} of shared memory)")

    def _count_conflicts(self, threads: np.ndarray, places: np.ndarray, size: int, by: str) -> None:
        """A warp's access takes a turn for each 128 bytes of its lanes, and one more for each further word of the same bank."""
        words = self._words(places, size).ravel()
        turns = np.repeat(threads // (128 // max(size, 4)), -(-size // 4))
        _, turns = np.unique(turns, return_inverse=True)
        if np.bincount(turns * BANKS + words % BANKS).max() > 1:
            distinct = np.unique(turns * np.int64(1 << 32) + words)
            counts = np.bincount((distinct >> 32) * BANKS + distinct % BANKS, minlength=(turns.max() + 1) * BANKS)
            self.conflicts[by] += int((counts.reshape(-1, BANKS).max(1) - 1).sum())
