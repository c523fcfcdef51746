"""The KV window of one session: which pages of the pool hold which latent frames, sinks and recent ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lolrt import _core
from lolrt.engine.memory_bank import MemoryBank
from lolrt.engine.page_pool import PagePool
from lolrt.errors import Error, check_whole
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
    """When attention to the sinks is held back; open as it is here."""
    recall_frames: int = 0
    """Frames that have left the window and come back into a chunk's view, between sinks and recent frames: those most like it of the
    memory bank (`lolrt.engine.memory_bank`). A chunk costs one pass more, and each pass attends to that many pages more. 0: there is no
    bank."""
    store_frames: int = 24
    """Frames that the memory bank holds at most."""

    def __post_init__(self) -> None:
        check_whole(
            sink_frames=self.sink_frames, recent_frames=self.recent_frames, chunk_frames=self.chunk_frames,
            recall_frames=self.recall_frames, store_frames=self.store_frames,
        )  # fmt: skip
        if self.chunk_frames < 1 or self.sink_frames < 0 or self.recent_frames < self.chunk_frames:
            raise Error(
                f"window has {self.sink_frames} sinks, {self.recent_frames} recent frames and chunks of {self.chunk_frames}; "
                "expected sinks >= 0, chunks >= 1, and recent frames at least as many as a chunk has"
            )
        if not 0 <= self.recall_frames <= self.store_frames:
            raise Error(f"recall_frames is {self.recall_frames} and store_frames {self.store_frames}; expected 0 <= recall <= store")

    @property
    def pages(self) -> int:
        """Sinks and recent frames."""
        return self.sink_frames + self.recent_frames

    @property
    def pool_pages(self) -> int:
        """Pages that a stream needs, for ever."""
        return self.pages + (self.store_frames if self.recall_frames else 0)


@dataclass(frozen=True)
class ChunkPages:
    """What the frames of a chunk attend to: pages of earlier frames, oldest first, then their own. Recalled ones follow the sinks. Valid
    until the next chunk comes."""

    frames: Sequence[int]
    page_table: Tensor
    """int32 [frames], the page of each of them."""
    chunk_page_table: Tensor
    """int32 [chunk frames], the end of `page_table`: where the chunk's own K and V go."""
    recalled: int = 0
    """How many frames come from the memory bank."""


class KVWindow:
    """The pages that a session holds, and their tables, which are written in place.

    So a chunk over a full window finds all that it reads and writes where the chunk before did, with and without recalled frames.
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
        """Frames that can be recalled, oldest first."""
        return self._bank.frames if self._bank else ()

    @property
    def held_pages(self) -> Sequence[int]:
        """Those of the frames in the window, in that order, and those of the memory bank."""
        return [*self.page_table.tolist(), *(self._bank.pages if self._bank else ())]

    def advance(self, first_frame: int, n_frames: int) -> ChunkPages:
        """Gives the next chunk its pages; the frames that fall out of the window go to the memory bank, if there is one."""
        if self._bank is not None:
            oldest = first_frame + n_frames - self.config.recent_frames
            for page, frame in list(zip(*self._window.read(), strict=True))[self.config.sink_frames :]:
                if frame < oldest:
                    self._bank.keep(frame, page, self.pool.mean_key(page))
        self._window.advance(first_frame, n_frames)
        self._read()
        return self._chunk(len(self.frames) - n_frames, len(self.frames))

    def recall(self, chunk: ChunkPages, query: Tensor) -> ChunkPages:
        """The newest chunk, with the frames of the memory bank in view that are most like it.

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
        """The chunks that are in the window, oldest first, from its frame `first` on; each sees what it would see if it were the newest.

        Of a chunk that has left the window in part there is the rest. Chunks are counted back from the newest: only a stream's first can
        be shorter than the others.
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
        """The frames in the window, int64 [n], and their pages in that order, [layers, n, page_elements]; the same of the memory bank; and
        whether pages are CUDA's."""
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
        """Raises `lolrt.Error` unless `load_state_dict` can take it."""
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
        """Puts a saved window and memory bank into place, in pages of their own; where these lie in the pool changes no bit of any result.

        Raises `lolrt.Error`, with nothing changed, when they do not fit.
        """
        self.check_state(state)
        frames, stored = state["frames"].tolist(), state.get("stored_frames")
        if self._bank is not None:
            self._bank.clear()
        del self._window  # gives its pages back before the new one takes as many
        self._window, self._bank = self._empty()
        if frames:  # none: it was saved before its first chunk
            self._window.restore(frames)
        self._read()
        self.pool.write(self.page_table.long(), state["pages"])
        if self._bank is not None and stored is not None:
            for i, frame in enumerate(stored.tolist()):
                page = self.pool.bookkeeping.acquire()
                self.pool.write([page], state["stored_pages"][:, i : i + 1])
                self._bank.keep(frame, page, self.pool.mean_key(page))
                self.pool.bookkeeping.release(page)  # the bank's alone
