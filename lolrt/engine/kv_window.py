"""The KV cache of one stream: a fixed pool of pages per layer, and the window that says which page holds which frame."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lolrt import _core, ops
from lolrt.engine.memory_bank import PageStore
from lolrt.errors import Error
from lolrt.ops.device import upload
from lolrt.positions.sink_gate import SinkGate


@dataclass(frozen=True)
class Window:
    """What a chunk attends to: the stream's first frames for ever, and the most recent ones, the chunk itself included."""

    sink_frames: int = 3
    recent_frames: int = 9
    chunk_frames: int = 3
    """Latent frames that are denoised together."""
    gate: SinkGate = SinkGate()
    """When attention to the sinks is held back; open as it is here."""
    recall_frames: int = 0
    """Frames that have left the window and come back into a chunk's view, between sinks and recent frames: those most like it of the
    store (`lolrt.engine.memory_bank`). A chunk costs one pass more, and each pass attends to that many pages more. 0: there is no store."""
    store_frames: int = 24
    """Frames that the store holds at most."""

    def __post_init__(self) -> None:
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


def page_dtype(asked: torch.dtype | None, dtype: torch.dtype, head_dim: int, device: torch.device) -> torch.dtype:
    """The element type of the pages of a model of `dtype`: what is asked for, by default its own. Raises `lolrt.Error` where the kernels
    have no such pages: those of float8_e4m3fn are CUDA's, for bfloat16 and heads of 128 channels."""
    if asked is None or asked == dtype:
        return dtype
    try:
        ops.page_elements(asked, 1, 1, head_dim, device)
        fits = asked == torch.float8_e4m3fn and dtype == torch.bfloat16
    except (_core.UnsupportedError, ValueError):
        fits = False
    if not fits:
        raise Error(
            f"pages of {asked} for a model of {dtype} with heads of {head_dim} channels on {device.type}; expected its own type, or "
            "on CUDA torch.float8_e4m3fn, which goes with bfloat16 and heads of 128 channels"
        )
    return asked


@dataclass(frozen=True)
class ChunkPages:
    """What the frames of a chunk attend to: pages of earlier frames, oldest first, then their own. Recalled ones follow the sinks. Valid
    until the next chunk comes."""

    frames: Sequence[int]
    page_table: Tensor
    """int32 [frames], the page of each of them."""
    chunk_page_table: Tensor
    """int32 [chunk frames], the end of `page_table`: where the chunk's own K and V go."""
    layer_pages: Sequence[Tensor]
    """[pool pages, page_elements] of each layer."""
    recalled: int = 0
    """How many frames come from the store."""


class KVCache:
    """Pages of all layers, [layers, pages, page_elements], and the tables of those in use; allocated once, written in place, never moved.

    So a chunk over a full window finds all that it reads and writes where the chunk before did, with and without recalled frames.
    """

    def __init__(
        self, window: Window, layers: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device = ops.CPU
    ) -> None:
        self.config = window
        elements = ops.page_elements(dtype, tokens, heads, head_dim, device)
        self.pages = torch.empty(layers, window.pool_pages, elements, dtype=dtype, device=device)
        self.layer_pages = self.pages.unbind(0)
        self._table = torch.zeros(window.pages, dtype=torch.int32, device=device)
        self._recall_table = torch.zeros(window.pages + window.recall_frames, dtype=torch.int32, device=device)
        self._page_shape = tokens, heads, head_dim
        self._pool, self._window, self._store = self._empty()
        self._read()

    def _empty(self) -> tuple[_core.Pool, _core.Window, PageStore | None]:
        window, (_, heads, head_dim) = self.config, self._page_shape
        pool = _core.Pool(window.pool_pages)
        store = PageStore(pool, window.store_frames, window.pool_pages, len(self.pages), heads, head_dim) if window.recall_frames else None
        return pool, _core.Window(pool, window.sink_frames, window.recent_frames), store

    @property
    def stored_frames(self) -> Sequence[int]:
        """Frames that can be recalled, oldest first."""
        return self._store.frames if self._store else ()

    def advance(self, first_frame: int, n_frames: int) -> ChunkPages:
        """Gives the next chunk its pages; the frames that fall out of the window go to the store, if there is one."""
        if self._store is not None:
            oldest = first_frame + n_frames - self.config.recent_frames
            for page, frame in list(zip(*self._window.read(), strict=True))[self.config.sink_frames :]:
                if frame < oldest:
                    self._store.keep(frame, page, self._mean_key(page))
        self._window.advance(first_frame, n_frames)
        self._read()
        return self._chunk(len(self.frames) - n_frames, len(self.frames))

    def recall(self, chunk: ChunkPages, query: Tensor) -> ChunkPages:
        """The newest chunk, with the stored frames in view that are most like it.

        query: float32 [layers, heads, head_dim], mean over the chunk's tokens.
        """
        store, sinks = self._store, self.config.sink_frames
        assert store is not None
        places = store.find(query, self.config.recall_frames)
        frames = [*chunk.frames[:sinks], *(store.frames[place] for place in places), *chunk.frames[sinks:]]
        pages = torch.tensor([store.pages[place] for place in places], dtype=torch.int32)
        page_table = self._recall_table[: len(frames)]
        recalled = slice(sinks, sinks + len(places))
        page_table[: recalled.start] = chunk.page_table[:sinks]
        page_table[recalled] = upload(pages, page_table.device)
        page_table[recalled.stop :] = chunk.page_table[sinks:]
        return replace(chunk, frames=frames, page_table=page_table, recalled=len(places))

    def _mean_key(self, page: int) -> Tensor:
        return torch.stack([ops.mean_key(pages[page], *self._page_shape) for pages in self.layer_pages])

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
        return ChunkPages(self.frames[:stop], self.page_table[:stop], self.page_table[start:stop], self.layer_pages)

    def _read(self) -> None:
        pages, self.frames = self._window.read()
        self.page_table = self._table[: len(pages)]
        self.page_table.copy_(upload(torch.tensor(pages, dtype=torch.int32), self._table.device))

    def state_dict(self) -> dict[str, Tensor]:
        """The frames in the window, int64 [n], and their pages in that order, [layers, n, page_elements]; the same of the store; and
        whether pages are CUDA's."""
        state = {
            "frames": torch.tensor(self.frames, dtype=torch.int64),
            "pages": self.pages[:, self.page_table.long()],
            "on_cuda": torch.tensor(self.pages.is_cuda),
        }
        if self._store is not None:
            state["stored_frames"] = torch.tensor(self._store.frames, dtype=torch.int64)
            state["stored_pages"] = self.pages[:, self._store.pages]
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Puts a saved window and store into a fresh cache; pages may land elsewhere in the pool, which changes no bit of any result."""
        saved = state["pages"]
        if saved.dtype != self.pages.dtype or saved.shape[0] != self.pages.shape[0] or saved.shape[2] != self.pages.shape[2]:
            raise Error(
                f"saved pages are {saved.dtype} {list(saved.shape)}, this stream's are {self.pages.dtype} {list(self.pages.shape)}: "
                "the state belongs to another model, frame size or dtype"
            )
        if bool(state.get("on_cuda", False)) is not self.pages.is_cuda:
            raise Error(f"saved pages are not those of {self.pages.device.type}, where this stream is: go on where the state was saved")
        stored = state.get("stored_frames")
        if (stored is None) != (self._store is None) or (stored is not None and len(stored) > self.config.store_frames):
            holds = "has no store" if stored is None else f"holds {len(stored)} stored frames"
            raise Error(
                f"the saved stream {holds}; this one's window has recall_frames={self.config.recall_frames} and "
                f"store_frames={self.config.store_frames}: make the stream with the window of the saved one"
            )
        pool, window, store = self._empty()
        try:
            if len(state["frames"]):  # none: it was saved before its first chunk
                window.restore(state["frames"].tolist())
        except (ValueError, MemoryError) as error:
            raise Error(f"the saved window does not fit into this stream's: {error}") from error
        self._pool, self._window, self._store = pool, window, store
        self._read()
        self.pages[:, self.page_table.long()] = saved.to(self.pages.device)
        if store is not None and stored is not None:
            for i, frame in enumerate(stored.tolist()):
                page = pool.acquire()
                self.pages[:, page] = state["stored_pages"][:, i].to(self.pages.device)
                store.keep(frame, page, self._mean_key(page))
                pool.release(page)  # the store's alone
