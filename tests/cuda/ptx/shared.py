"""Shared memory of some blocks, and who may touch it when.

Accesses of two threads, one of them a write, are a race unless a barrier orders them. Time is counted by agents: the warps of a block by
what their threads load, store and copy, the same warps by the products of their warpgroup, which run beside them, and the bulk copies that
an mbarrier counts. `clock` of an agent is the number of points up to which others can know of it, `known` what a thread knows of the
clocks of its block; an access is ordered before those of a thread that knows a later clock of the agent that made it. The unit is the word
of 4 bytes, so that neighbours that write halves of a word would count as a race. What a single lane has touched since its warp last met
counts as not yet known by anybody else, even if that lane arrives at an mbarrier.

What copies bring is under way until the thread that asked for it, or the phase that counts it, has waited: nobody may touch it, and it
reads as NaN. What a product reads may not be written before the product has been waited for.
"""

from __future__ import annotations

import numpy as np

from .memory import FaultError, check_alignment

SHARED_AT = 0x400
"""Address of the first byte; where a GPU of sm_90 has it, and a multiple of what swizzles permute within."""
LANES = 32
BANKS = 32
MOST_BARRIERS = 32
"""Of a block, in shared memory."""

_NOBODY, _SEVERAL = -1, -2


class Shared:
    def __init__(self, blocks: int, threads: int, size: int) -> None:
        """Of `size` bytes and so many threads in each block."""
        self._size, self._threads = size, threads
        self._stride = -(-size // 1024) * 1024  # what swizzles permute within
        self.bytes = np.full(blocks * self._stride, 0xFF, np.uint8)
        self.conflicts = {"ldmatrix": 0, "other": 0}
        """Further turns of the banks, of ldmatrix and of loads and stores."""
        words, self._warps = blocks * self._stride // 4, threads // LANES
        readers = 2 * self._warps
        self._clock = np.zeros((blocks, readers + MOST_BARRIERS), np.int32)
        self._known = np.zeros((blocks * threads, readers + MOST_BARRIERS), np.int32)
        self._under_way = np.zeros(words, bool)
        self._of_barrier = np.zeros(words, bool)
        self._stored = np.zeros(words, bool)
        """By loads and stores' own path to memory, with no fence since: not what bulk copies and products would find."""
        self._products = np.zeros(words, np.int32)
        """Those under way that read the word."""
        self._writer = np.full(words, _NOBODY, np.int32)
        self._written_by = np.zeros(words, np.int32)
        self._written_at = np.zeros(words, np.int32)
        self._reader = np.full((words, readers), _NOBODY, np.int32)
        self._read_at = np.zeros((words, readers), np.int32)

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
        self._written_at[words] = self._now(threads)[:, None]
        self.bytes[places[:, None] + np.arange(data.shape[1])] = data

    def make_barrier(self, thread: int, place: int) -> None:
        """Of the 8 bytes there, which only instructions on barriers touch from now on."""
        self._touch(np.array([thread]), np.array([place]), 8, writes=True)
        words = slice(place // 4, place // 4 + 2)
        self._of_barrier[words], self._stored[words] = True, False

    def use_barrier(self, threads: np.ndarray, places: np.ndarray) -> None:
        """Each thread has to know that it was made."""
        words = places // 4
        self._check_writers(threads, words, "a barrier was made and used after it")

    def begin_box(self, thread: int, place: int, size: int) -> None:
        """A bulk copy to there."""
        end = place % self._stride + size
        if end > self._size:
            raise FaultError(thread, f"byte {end - 1} is outside the {self._size} bytes of shared memory")
        places = np.arange(place, place + size, 16)
        threads = np.full(len(places), thread)
        self._check_fenced(threads, self._words(places, 16))
        self.begin_copy(threads, places, 16)
        self._stored[place // 4 : (place + size) // 4] = False

    def end_box(self, place: int, barrier: int, data: np.ndarray) -> None:
        """Its bytes come; the block's barrier of that number counts them."""
        block, agent = place // self._stride, 2 * self._warps + barrier
        words = slice(place // 4, (place + len(data)) // 4)
        self._under_way[words] = False
        self._writer[words], self._written_by[words] = _SEVERAL, agent
        self._written_at[words] = self._clock[block, agent]
        self.bytes[place : place + len(data)] = data

    def begin_product(self, threads: np.ndarray, places: np.ndarray) -> None:
        """A warpgroup's, of the 16 bytes at each place."""
        words = self._words(places, 16).ravel()
        self._check_untouchable(np.full(len(words), threads[0]), words)
        self._check_fenced(threads[:1], words[None])
        for warp in threads.reshape(-1, LANES):
            who, least = np.full(len(words), warp[0]), self._known[warp].min(0)  # what all lanes know
            late = (self._writer[words] != _NOBODY) & (self._written_at[words] >= least[self._written_by[words]])
            self._raise_if(who, words, late, "a write and a product after it")
        np.add.at(self._products, words, 1)

    def end_product(self, threads: np.ndarray, places: np.ndarray) -> None:
        words = np.unique(self._words(places, 16))
        np.subtract.at(self._products, self._words(places, 16).ravel(), 1)
        for agent in threads[::LANES] % self._threads // LANES + self._warps:
            self._reader[words, agent] = _SEVERAL
            self._read_at[words, agent] = self._clock[threads[0] // self._threads, agent]

    # ---- order ----

    def meet_block(self, threads: np.ndarray) -> None:
        """All threads of some blocks pass a barrier."""
        self._tick(threads)
        blocks = threads // self._threads
        known = self._known.reshape(-1, self._threads, self._known.shape[1])
        for block in np.unique(blocks):
            known[block] = known[block].max(0)
            known[block, :, : self._warps] = self._clock[block, : self._warps]

    def meet_warp(self, threads: np.ndarray) -> None:
        self._tick(threads)
        known = self._known.reshape(-1, LANES, self._known.shape[1])
        for warp in np.unique(threads // LANES):
            known[warp] = known[warp].max(0)
            block, own = divmod(warp, self._warps)
            known[warp, :, own] = self._clock[block, own]

    def meet_products(self, threads: np.ndarray) -> None:
        """The warps of these threads have waited for products."""
        for warp in np.unique(threads // LANES):
            block, own = divmod(warp, self._warps)
            self._clock[block, own + self._warps] += 1
            self._known[warp * LANES : (warp + 1) * LANES, own + self._warps] = self._clock[block, own + self._warps]

    def meet_copies(self, place: int, barrier: int) -> np.ndarray:
        """What is known when the block's barrier has counted what came until now."""
        block, agent = place // self._stride, 2 * self._warps + barrier
        self._clock[block, agent] += 1
        return np.where(np.arange(self._known.shape[1]) == agent, self._clock[block, agent], 0)

    def knowledge(self, thread: int) -> np.ndarray:
        return self._known[thread].copy()

    def learn(self, threads: np.ndarray, known: np.ndarray) -> None:
        self._known[threads] = np.maximum(self._known[threads], known)

    def fence_proxy(self, threads: np.ndarray) -> None:
        """What these threads know to be stored is there for bulk copies and products too."""
        for thread in threads:
            block = slice(thread // self._threads * self._stride // 4, (thread // self._threads + 1) * self._stride // 4)
            known = (self._writer[block] == thread) | (self._written_at[block] < self._known[thread, self._written_by[block]])
            self._stored[block] &= ~known

    # ---- checks ----

    @staticmethod
    def _words(places: np.ndarray, size: int) -> np.ndarray:
        return places[:, None] // 4 + np.arange(-(-size // 4))

    def _tick(self, threads: np.ndarray) -> None:
        warps = np.unique(threads // LANES)
        self._clock[warps // self._warps, warps % self._warps] += 1

    def _now(self, threads: np.ndarray) -> np.ndarray:
        return self._clock[threads // self._threads, threads % self._threads // LANES]

    def _touch(self, threads: np.ndarray, places: np.ndarray, size: int, writes: bool) -> None:
        words = self._words(places, size)
        who = np.repeat(threads, words.shape[1])
        words = words.ravel()
        self._check_untouchable(who, words)
        self._check_writers(who, words, "two writes" if writes else "a write and a read after it")
        if writes:
            self._write(who, words)
        else:
            self._read(who, words)

    def _check_untouchable(self, who: np.ndarray, words: np.ndarray) -> None:
        self._raise_if(who, words, self._under_way[words], "an access and a copy under way")
        if self._of_barrier[words].any():
            raise FaultError(who[self._of_barrier[words]][0], "an access to an mbarrier by another instruction than its own")

    def _check_writers(self, who: np.ndarray, words: np.ndarray, text: str) -> None:
        writer = self._writer[words]
        late = self._written_at[words] >= self._known[who, self._written_by[words]]
        self._raise_if(who, words, late & (writer != _NOBODY) & (writer != who), text)

    def _check_fenced(self, threads: np.ndarray, words: np.ndarray) -> None:
        if self._stored[words].any():
            raise FaultError(threads[0], "a store and a product or bulk copy after it, and no fence.proxy.async between them")

    def _write(self, who: np.ndarray, words: np.ndarray) -> None:
        self._raise_if(who, words, self._products[words] > 0, "a product under way and a write")
        reader = self._reader[words]
        late = self._read_at[words] >= self._known[who][:, : reader.shape[1]]
        self._raise_if(who, words, (late & (reader != _NOBODY) & (reader != who[:, None])).any(1), "a read and a write after it")
        self._writer[words] = who
        self._written_by[words] = who % self._threads // LANES
        self._written_at[words] = self._now(who)
        self._stored[words] = True
        self._raise_if(who, words, self._writer[words] != who, "two writes of one instruction")

    def _read(self, who: np.ndarray, words: np.ndarray) -> None:
        own, now = who % self._threads // LANES, self._now(who)
        reader = self._reader[words, own]
        several = (self._read_at[words, own] == now) & (reader != _NOBODY) & (reader != who)
        reader = np.where(several, _SEVERAL, who)
        self._reader[words, own] = reader
        self._read_at[words, own] = now
        together = self._reader[words, own] != reader  # lanes that read the same word
        self._reader[words[together], own[together]] = _SEVERAL

    def _raise_if(self, who: np.ndarray, words: np.ndarray, wrong: np.ndarray, text: str) -> None:
        if wrong.any():
            byte = words[wrong][0] * 4 % self._stride
            raise FaultError(who[wrong][0], f"race: {text} are not ordered (byte {byte} of shared memory)")

    def _count_conflicts(self, threads: np.ndarray, places: np.ndarray, size: int, by: str) -> None:
        """A warp's access takes a turn for each 128 bytes of its lanes, and one more for each further word of the same bank."""
        words = self._words(places, size).ravel()
        turns = np.repeat(threads // (128 // max(size, 4)), -(-size // 4))
        _, turns = np.unique(turns, return_inverse=True)
        if np.bincount(turns * BANKS + words % BANKS).max() > 1:
            distinct = np.unique(turns * np.int64(1 << 32) + words)
            counts = np.bincount((distinct >> 32) * BANKS + distinct % BANKS, minlength=(turns.max() + 1) * BANKS)
            self.conflicts[by] += int((counts.reshape(-1, BANKS).max(1) - 1).sum())
