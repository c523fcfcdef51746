"""Long-term memory of a stream: frames that have left its window are kept, and those that the next chunk asks for come back into view.

A frame of the memory bank is its page of the KV cache, where it always was: the bank holds the page, and recalling it is an entry in a
page table. What finds it again is the model's own measure, keys against queries. The scores of all pairs of a query and a key have the
mean <mean query, mean key>; what all its keys have in common adds the same to each and decides nothing, so it is left out; and each head
of each layer has the same say, because the lengths of keys differ far more between heads (and of a video's first frames, on which heads
park attention, from all others) than with what is seen. Hence the likeness of a frame to a chunk: the cosine between the chunk's mean
query and the frame's mean key less that of all frames of the bank, mean over layers and heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt import _core


class MemoryBank:
    """At most `capacity` frames, oldest first, as pages of a pool.

    When there is one too many, one of the two frames that are most alike goes, the newer: so the bank stays spread over all that was
    seen rather than over the last minutes, and what it has of a scene is what came first, with the least drift.
    """

    def __init__(self, pool: _core.Pool, capacity: int) -> None:
        self.capacity = capacity
        self.frames: list[int] = []
        self.pages: list[int] = []
        self._keys: list[Tensor] = []
        self._pool = pool

    def keep(self, frame: int, page: int, mean_key: Tensor) -> None:
        """Holds the page of a frame newer than all others; mean_key: float32 [layers, heads, head_dim], mean over the frame's tokens."""
        self._pool.retain(page)
        self.frames.append(frame)
        self.pages.append(page)
        self._keys.append(mean_key.cpu())
        if len(self.frames) > self.capacity:
            self._drop(self._redundant())

    def find(self, query: Tensor, count: int) -> list[int]:
        """Indices in the bank, in order of time, of the `count` frames that are most like a chunk; all frames where there are fewer.

        query: float32 [layers, heads, head_dim], mean over the chunk's tokens.
        """
        keys = torch.stack(self._keys)
        likeness = F.normalize(keys - keys.mean(0), dim=-1).flatten(1) @ F.normalize(query.cpu(), dim=-1).flatten()
        return sorted(likeness.topk(min(count, len(self.frames))).indices.tolist())

    def _redundant(self) -> int:
        """The newer one of the two frames whose mean keys are most alike: the cosine, mean over layers and heads."""
        directions = F.normalize(torch.stack(self._keys), dim=-1).flatten(1)
        older = torch.tril(torch.ones(len(directions), len(directions), dtype=torch.bool), diagonal=-1)
        likeness = (directions @ directions.T).masked_fill(~older, -torch.inf)
        return int(likeness.max(1).values.argmax())

    def clear(self) -> None:
        """Gives all pages back."""
        while self.frames:
            self._drop(0)

    def _drop(self, index: int) -> None:
        del self.frames[index], self._keys[index]
        self._pool.release(self.pages.pop(index))
