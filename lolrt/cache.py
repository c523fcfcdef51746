"""The KV cache of one stream: a fixed pool of pages per layer, and the window that says which page holds which frame."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lolrt import _core, ops
from lolrt.device import upload
from lolrt.errors import Error
from lolrt.gate import SinkGate


@dataclass(frozen=True)
class Window:
    """What a chunk attends to: the stream's first frames for ever, and the most recent ones, the chunk itself included."""

    sink_frames: int = 3
    recent_frames: int = 9
    chunk_frames: int = 3
    """Latent frames that are denoised together."""
    gate: SinkGate = SinkGate()
    """When attention to the sinks is held back; open as it is here."""

    def __post_init__(self) -> None:
        if self.chunk_frames < 1 or self.sink_frames < 0 or self.recent_frames < self.chunk_frames:
            raise Error(
                f"window has {self.sink_frames} sinks, {self.recent_frames} recent frames and chunks of {self.chunk_frames}; "
                "expected sinks >= 0, chunks >= 1, and recent frames at least as many as a chunk has"
            )

    @property
    def pages(self) -> int:
        """Pages that a stream needs, for ever."""
        return self.sink_frames + self.recent_frames


@dataclass(frozen=True)
class ChunkPages:
    """What the frames of a chunk attend to: pages of earlier frames, oldest first, then their own. Valid until the next chunk comes."""

    frames: Sequence[int]
    page_table: Tensor
    """int32 [frames], the page of each of them."""
    chunk_page_table: Tensor
    """int32 [chunk frames], the end of `page_table`: where the chunk's own K and V go."""
    layer_pages: Sequence[Tensor]
    """[pool pages, page_elements] of each layer."""


class KVCache:
    """Pages of all layers, [layers, pages, page_elements], and the table of those in use; allocated once, written in place, never moved.

    So a chunk over a full window finds all that it reads and writes where the chunk before did.
    """

    def __init__(
        self, window: Window, layers: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device = ops.CPU
    ) -> None:
        self.config = window
        elements = ops.page_elements(dtype, tokens, heads, head_dim, device)
        self.pages = torch.empty(layers, window.pages, elements, dtype=dtype, device=device)
        self.layer_pages = self.pages.unbind(0)
        self._table = torch.zeros(window.pages, dtype=torch.int32, device=device)
        self._pool = _core.Pool(window.pages)
        self._window = _core.Window(self._pool, window.sink_frames, window.recent_frames)
        self._read()

    def advance(self, first_frame: int, n_frames: int) -> ChunkPages:
        """Gives the next chunk its pages, dropping the frames that fall out of the window."""
        self._window.advance(first_frame, n_frames)
        self._read()
        return self._chunk(len(self.frames) - n_frames, len(self.frames))

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
        """The frames in the window, int64 [n], their pages in that order, [layers, n, page_elements], and whether these are CUDA's."""
        return {
            "frames": torch.tensor(self.frames, dtype=torch.int64),
            "pages": self.pages[:, self.page_table.long()],
            "on_cuda": torch.tensor(self.pages.is_cuda),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Puts a saved window into a fresh cache; pages may land elsewhere in the pool, which changes no bit of any result."""
        saved = state["pages"]
        if saved.dtype != self.pages.dtype or saved.shape[0] != self.pages.shape[0] or saved.shape[2] != self.pages.shape[2]:
            raise Error(
                f"saved pages are {saved.dtype} {list(saved.shape)}, this stream's are {self.pages.dtype} {list(self.pages.shape)}: "
                "the state belongs to another model, frame size or dtype"
            )
        if bool(state.get("on_cuda", False)) is not self.pages.is_cuda:
            raise Error(f"saved pages are not those of {self.pages.device.type}, where this stream is: go on where the state was saved")
        pool = _core.Pool(self.config.pages)
        window = _core.Window(pool, self.config.sink_frames, self.config.recent_frames)
        try:
            window.restore(state["frames"].tolist())
        except (ValueError, MemoryError) as error:
            raise Error(f"the saved window does not fit into this stream's: {error}") from error
        self._pool, self._window = pool, window
        self._read()
        self.pages[:, self.page_table.long()] = saved.to(self.pages.device)
