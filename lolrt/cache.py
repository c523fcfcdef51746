"""The KV cache of one stream: a fixed pool of pages per layer, and the window that says which page holds which frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lolrt import _core, ops
from lolrt.errors import Error


@dataclass(frozen=True)
class Window:
    """What a chunk attends to: the stream's first frames for ever, and the most recent ones, the chunk itself included."""

    sink_frames: int = 3
    recent_frames: int = 9
    chunk_frames: int = 3
    """Latent frames that are denoised together."""

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


class KVCache:
    """Pages of all layers, [layers, pages, page_elements]; allocated once, written in place, never moved."""

    def __init__(self, window: Window, layers: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self.config = window
        self.pages = torch.empty(layers, window.pages, ops.page_elements(dtype, tokens, heads, head_dim), dtype=dtype)
        self.layer_pages = self.pages.unbind(0)
        self._pool = _core.Pool(window.pages)
        self._window = _core.Window(self._pool, window.sink_frames, window.recent_frames)
        self._read()

    def advance(self, first_frame: int) -> None:
        """Gives the next chunk its pages, dropping the frames that fall out of the window."""
        self._window.advance(first_frame, self.config.chunk_frames)
        self._read()

    def _read(self) -> None:
        pages, self.frames = self._window.read()
        self.page_table = torch.tensor(pages, dtype=torch.int32)
        self.chunk_page_table = self.page_table[-self.config.chunk_frames :].clone()

    def state_dict(self) -> dict[str, Tensor]:
        """The frames in the window, int64 [n], and their pages in that order, [layers, n, page_elements]."""
        return {"frames": torch.tensor(self.frames, dtype=torch.int64), "pages": self.pages[:, self.page_table.long()]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Puts a saved window into a fresh cache; pages may land elsewhere in the pool, which changes no bit of any result."""
        saved = state["pages"]
        if saved.dtype != self.pages.dtype or saved.shape[0] != self.pages.shape[0] or saved.shape[2] != self.pages.shape[2]:
            raise Error(
                f"saved pages are {saved.dtype} {list(saved.shape)}, this stream's are {self.pages.dtype} {list(self.pages.shape)}: "
                "the state belongs to another model, frame size or dtype"
            )
        pool = _core.Pool(self.config.pages)
        window = _core.Window(pool, self.config.sink_frames, self.config.recent_frames)
        try:
            window.restore(state["frames"].tolist())
        except (ValueError, MemoryError) as error:
            raise Error(f"the saved window does not fit into this stream's: {error}") from error
        self._pool, self._window = pool, window
        self._read()
        self.pages[:, self.page_table.long()] = saved
