"""Long-term memory of a stream: frames that leave its window are kept, and the next chunk recalls those that it needs.

A frame in the memory bank stays in its page of the KV cache: the bank holds the page, and recalling the frame is an entry in a page table.
Frames are found by the measure that the model itself uses, queries against keys. The mean score over all pairs of a query and a key is
<mean query, mean key>. The part that all keys have in common adds the same to every frame and decides nothing, so it is subtracted. Each
head of each layer has the same weight, because the lengths of keys differ far more between heads (and between a video's first frames, on
which heads park attention, and all others) than with the content of the picture. Hence the similarity of a frame to a chunk: the cosine
between the chunk's mean query and the frame's mean key, minus the mean key of all frames in the bank; mean over layers and heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt import _core


class MemoryBank:
    """At most `capacity` frames, oldest first, as pages of a pool.

    When there is one too many, the newer of the two most similar frames is removed. So the bank covers the whole video and not only the
    last minutes, and it keeps the first frames of each scene, which have the least drift.
    """

    def __init__(self, pool: _core.Pool, capacity: int) -> None:
        self.capacity = capacity
        self.frames: list[int] = []
        self.pages: list[int] = []
        self._keys: list[Tensor] = []
        self._pool = pool

    def keep(self, frame: int, page: int, mean_key: Tensor) -> None:
        """Adds the page of a frame that is newer than all others. mean_key: float32 [layers, heads, head_dim], mean over the frame's
        tokens."""
        self._pool.retain(page)
        self.frames.append(frame)
        self.pages.append(page)
        self._keys.append(mean_key.cpu())
        if len(self.frames) > self.capacity:
            self._drop(self._redundant())

    def find(self, query: Tensor, count: int) -> list[int]:
        """The indices in the bank, in order of time, of the `count` frames that are most similar to a chunk; all frames if there are fewer.

        query: float32 [layers, heads, head_dim], mean over the chunk's tokens.
        """
        keys = torch.stack(self._keys)
        likeness = F.normalize(keys - keys.mean(0), dim=-1).flatten(1) @ F.normalize(query.cpu(), dim=-1).flatten()
        return sorted(likeness.topk(min(count, len(self.frames))).indices.tolist())

    def _redundant(self) -> int:
        """The newer of the two frames with the most similar mean keys: the cosine, mean over layers and heads."""
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
