"""The KV window of one session: which pages of the pool hold which latent frames, both sinks and recent frames."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lolrt import _core
from lolrt.engine.memory_bank import MemoryBank
from lolrt.engine.page_pool import PagePool
from lolrt.errors import MOST_FRAMES, Error, check_real, check_whole
from lolrt.ops.device import upload
from lolrt.positions.sink_gate import SinkGate


@dataclass(frozen=True)
class Window:
    """What a chunk attends to: the stream's first frames for ever, and the most recent ones, the chunk itself included."""

    sink_frames: int = 3
    """Sink frames in the window."""
    recent_frames: int = 9
    """Recent frames in the window, the chunk's own included."""
    chunk_frames: int = 3
    """Latent frames that are denoised together."""
    gate: SinkGate = SinkGate()
    """When attention to the sinks is reduced; by default never."""
    recall_frames: int = 0
    """Frames that have left the window and come back into a chunk's view, between sinks and recent frames: those most like it of the
    memory bank (`lolrt.engine.memory_bank`). A chunk costs one pass more, and each pass attends to that many pages more. 0: there is no
    bank."""
    store_frames: int = 24
    """Frames that the memory bank holds at most."""
    skip: float = 0.0
    """Attention mass, 0 to 1, below which a head leaves a page of an earlier frame out in the rest of a chunk's passes. The mass is that of
    the chunk's first denoise pass, in each of its frames (`lolrt.engine.page_skip`). 0: all pages are read in all passes."""

    def __post_init__(self) -> None:
        check_whole(
            sink_frames=self.sink_frames, recent_frames=self.recent_frames, chunk_frames=self.chunk_frames,
            recall_frames=self.recall_frames, store_frames=self.store_frames,
        )  # fmt: skip
        if max(self.sink_frames, self.recent_frames, self.store_frames) > MOST_FRAMES:
            raise Error(
                f"window has {self.sink_frames} sinks, {self.recent_frames} recent and {self.store_frames} stored frames; expected up to "
                f"{MOST_FRAMES:,} of each"
            )
        if self.chunk_frames < 1 or self.sink_frames < 0 or self.recent_frames < self.chunk_frames:
            raise Error(
                f"window has {self.sink_frames} sinks, {self.recent_frames} recent frames and chunks of {self.chunk_frames}; "
                "expected sinks >= 0, chunks >= 1, and recent frames at least as many as a chunk has"
            )
        if not 0 <= self.recall_frames <= self.store_frames:
            raise Error(f"recall_frames is {self.recall_frames} and store_frames {self.store_frames}; expected 0 <= recall <= store")
        check_real(skip=self.skip)
        if not 0 <= self.skip < 1:
            raise Error(f"skip is {self.skip}; expected a share of the attention, at least 0 and less than 1, such as 0.01")

    @property
    def pages(self) -> int:
        """The number of sinks and recent frames."""
        return self.sink_frames + self.recent_frames

    @property
    def pool_pages(self) -> int:
        """The number of pages that a stream needs; it never needs more."""
        return self.pages + (self.store_frames if self.recall_frames else 0)


@dataclass(frozen=True)
class ChunkPages:
    """The pages that a chunk attends to: pages of earlier frames, oldest first, then the chunk's own. Recalled pages follow the sinks.
    Valid until the next chunk."""

    frames: Sequence[int]
    page_table: Tensor
    """int32 [frames], the page of each frame."""
    chunk_page_table: Tensor
    """int32 [chunk frames], the end of `page_table`: where the chunk's own K and V go."""
    recalled: int = 0
    """The number of frames from the memory bank."""


class KVWindow:
    """The pages that a session holds, and their page tables, which are updated in place.

    So once the window is full, every chunk reads and writes its tables at the same addresses, with and without recalled frames.
    """

    def __init__(self, config: Window, pool: PagePool) -> None:
        """Raises `lolrt.Error` when the pool has too few pages left."""
        if config.recall_frames and pool.ulysses is not None:
            raise Error(
                "recalled frames are found by the keys of all heads, of which each rank has some: stream with recall_frames=0 on ranks"
            )
        self.config, self.pool = config, pool
        self._reserved = 0
        pool.reserve(config.pool_pages)
        self._reserved = config.pool_pages
        self._table = torch.zeros(config.pages, dtype=torch.int32, device=pool.device)
        self._recall_table = torch.zeros(config.pages + config.recall_frames, dtype=torch.int32, device=pool.device)
        self._window, self._bank = self._empty()
        self._read()

    def _empty(self) -> tuple[_core.Window, MemoryBank | None]:
        config, pool = self.config, self.pool.bookkeeping
        bank = MemoryBank(pool, config.store_frames) if config.recall_frames else None
        return _core.Window(pool, config.sink_frames, config.recent_frames), bank

    def close(self) -> None:
        """Gives all pages back."""
        if self._bank is not None:
            self._bank.clear()
        self._window = _core.Window(self.pool.bookkeeping, self.config.sink_frames, self.config.recent_frames)
        self.pool.unreserve(self._reserved)
        self._reserved = 0

    def __del__(self) -> None:
        if self._reserved:
            self.close()

    @property
    def stored_frames(self) -> Sequence[int]:
        """The frames that can be recalled, oldest first."""
        return self._bank.frames if self._bank else ()

    @property
    def held_pages(self) -> Sequence[int]:
        """The pages of the frames in the window, in that order, then those of the memory bank."""
        return [*self.page_table.tolist(), *(self._bank.pages if self._bank else ())]

    def advance(self, first_frame: int, n_frames: int) -> ChunkPages:
        """Gives the next chunk its pages. Frames that leave the window go to the memory bank, if there is one."""
        if self._bank is not None:
            oldest = first_frame + n_frames - self.config.recent_frames
            for page, frame in list(zip(*self._window.read(), strict=True))[self.config.sink_frames :]:
                if frame < oldest:
                    self._bank.keep(frame, page, self.pool.mean_key(page))
        self._window.advance(first_frame, n_frames)
        self._read()
        return self._chunk(len(self.frames) - n_frames, len(self.frames))

    def recall(self, chunk: ChunkPages, query: Tensor) -> ChunkPages:
        """The pages of the newest chunk, with those frames of the memory bank that are most similar to it.

        query: float32 [layers, heads, head_dim], mean over the chunk's tokens.
        """
        bank, sinks = self._bank, self.config.sink_frames
        assert bank is not None
        found = bank.find(query, self.config.recall_frames)
        frames = [*chunk.frames[:sinks], *(bank.frames[i] for i in found), *chunk.frames[sinks:]]
        pages = torch.tensor([bank.pages[i] for i in found], dtype=torch.int32)
        page_table = self._recall_table[: len(frames)]
        recalled = slice(sinks, sinks + len(found))
        page_table[: recalled.start] = chunk.page_table[:sinks]
        page_table[recalled] = upload(pages, page_table.device)
        page_table[recalled.stop :] = chunk.page_table[sinks:]
        return replace(chunk, frames=frames, page_table=page_table, recalled=len(found))

    def chunks(self, first: int) -> Iterator[ChunkPages]:
        """The chunks in the window, oldest first, from the window's frame `first` on. Each has the pages that it would have if it were the
        newest.

        If a chunk has partly left the window, the rest of it is returned. Chunks are counted back from the newest: only a stream's first
        can be shorter than the others.
        """
        size, end = self.config.chunk_frames, len(self.frames)
        starts = [i for i in range(first, end) if i == first or self._age(i) // size != self._age(i - 1) // size]
        for start, stop in itertools.pairwise([*starts, end]):
            yield self._chunk(start, stop)

    def _age(self, index: int) -> int:
        return self.frames[-1] - self.frames[index]

    def _chunk(self, start: int, stop: int) -> ChunkPages:
        return ChunkPages(self.frames[:stop], self.page_table[:stop], self.page_table[start:stop])

    def _read(self) -> None:
        pages, self.frames = self._window.read()
        self.page_table = self._table[: len(pages)]
        self.page_table.copy_(upload(torch.tensor(pages, dtype=torch.int32), self._table.device))

    def state_dict(self) -> dict[str, Tensor]:
        """The frames in the window, int64 [n], and their pages in that order, [layers, n, page_elements]; the same for the memory bank;
        and whether the pages are in the layout of CUDA."""
        state = {
            "frames": torch.tensor(self.frames, dtype=torch.int64),
            "pages": self.pool.read(self.page_table.long()),
            "on_cuda": torch.tensor(self.pool.pages.is_cuda),
        }
        if self._bank is not None:
            state["stored_frames"] = torch.tensor(self._bank.frames, dtype=torch.int64)
            state["stored_pages"] = self.pool.read(self._bank.pages)
        return state

    def check_state(self, state: dict[str, Tensor]) -> None:
        """Raises `lolrt.Error` unless `load_state_dict` can take this state."""
        saved, pages, elements = state["pages"], self.pool.pages, self.pool.saved_elements
        if saved.ndim != 3 or saved.dtype != pages.dtype or saved.shape[0] != pages.shape[0] or saved.shape[2] != elements:
            raise Error(
                f"saved pages are {saved.dtype} {list(saved.shape)}, this stream's are {pages.dtype} {[*pages.shape[:2], elements]}: "
                "the state belongs to another model, frame size or dtype"
            )
        if bool(state["on_cuda"]) is not pages.is_cuda:
            raise Error(f"saved pages are not those of {pages.device.type}, where this stream is: go on where the state was saved")
        stored = state.get("stored_frames")
        if (stored is None) != (self._bank is None) or (stored is not None and len(stored) > self.config.store_frames):
            holds = "has no memory bank" if stored is None else f"holds {len(stored)} frames of a memory bank"
            raise Error(
                f"the saved stream {holds}; this one's window has recall_frames={self.config.recall_frames} and "
                f"store_frames={self.config.store_frames}: make the stream with the window of the saved one"
            )
        frames = state["frames"].tolist()
        try:
            trial = _core.Window(_core.Pool(self.config.pages), self.config.sink_frames, self.config.recent_frames)
            if frames:
                trial.restore(frames)
        except (ValueError, MemoryError) as error:
            raise Error(f"the saved window does not fit into this stream's: {error}") from error
        if len(frames) != saved.shape[1] or (stored is not None and len(stored) != state["stored_pages"].shape[1]):
            raise Error(f"the saved window has {len(frames)} frames and {saved.shape[1]} pages; the state is damaged")

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Loads a saved window and memory bank into pages of the pool. Which pages these are does not change any bit of the results.

        Raises `lolrt.Error` when they do not fit; nothing is changed then.
        """
        self.check_state(state)
        frames, stored = state["frames"].tolist(), state.get("stored_frames")
        if self._bank is not None:
            self._bank.clear()
        del self._window  # first gives its pages back, which the new window takes
        self._window, self._bank = self._empty()
        if frames:  # there are none if it was saved before its first chunk
            self._window.restore(frames)
        self._read()
        self.pool.write(self.page_table.long(), state["pages"])
        if self._bank is not None and stored is not None:
            for i, frame in enumerate(stored.tolist()):
                page = self.pool.bookkeeping.acquire()
                self.pool.write([page], state["stored_pages"][:, i : i + 1])
                self._bank.keep(frame, page, self.pool.mean_key(page))
                self.pool.bookkeeping.release(page)  # from now on only the bank holds it
