"""The sink gate: a bias on the attention scores of the sink pages, always, or only when the model would fall back to the sinks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lolrt.errors import MOST_FRAMES, Error, check_real

# A bias of as many nats leaves nothing of a page, or of the other pages, in any dtype.
MOST_NATS = 10_000


@dataclass(frozen=True)
class SinkGate:
    """When attention to the sink pages is reduced, and by how much. Attention to a chunk's own pages is never reduced."""

    bias: float = 0.0
    """Added to the attention scores of sinks where the gate is shut, in nats; 0 is no gate, -inf leaves them out (`--sink-bias=-inf`).
    Their weight falls by a factor exp(bias) against the other pages'."""
    when: Literal["always", "realigned", "synchronised"] = "always"
    """When the gate is shut. "always": in every chunk. "realigned": in chunks whose phases have come back to the sinks', that is,
    `after_frames` or more behind the chunk, where the phase kernel, mean of cos(offset * frequency) over pairs, heads, layers, sinks and
    the chunk's frames, is `kernel_level` or more (LoL, arXiv 2601.16914, eq. 5 and its outlook: block the sinks at the kernel's maxima).
    "synchronised": in layers where more than `head_share` of the heads spend more on a sink page than on another, by a probe of the chunk's
    first denoise pass, which is run again with the gate shut (after DySink's anomaly gate, arXiv 2605.21028, which compares scores of mean
    queries)."""
    kernel_level: float = 0.5
    """Value of the phase kernel from which a "realigned" gate is shut."""
    after_frames: int = 100
    """Frames that the sinks are behind before a "realigned" gate is shut for the first time."""
    head_share: float = 0.8
    """Share of a layer's heads above which a "synchronised" gate is shut."""

    def __post_init__(self) -> None:
        check_real(bias=self.bias, kernel_level=self.kernel_level, after_frames=self.after_frames, head_share=self.head_share)
        if self.when not in ("always", "realigned", "synchronised"):
            raise Error(f'when is {self.when!r}; expected "always", "realigned" or "synchronised"')
        if self.bias != -math.inf and not abs(self.bias) <= MOST_NATS:
            raise Error(f"bias is {self.bias}; expected up to {MOST_NATS} nats, or -inf to leave the sinks out")
        if not -1 <= self.kernel_level <= 1:
            raise Error(f"kernel_level is {self.kernel_level}; expected -1 to 1, as a mean of cosines is")
        if not 0 <= self.after_frames <= MOST_FRAMES:
            raise Error(f"after_frames is {self.after_frames}; expected from 0 to {MOST_FRAMES:,} frames")
        if not 0 <= self.head_share < 1:
            raise Error(f"head_share is {self.head_share}; expected at least 0 and less than 1")

    @property
    def probes(self) -> bool:
        """Whether a probe of the chunk's first pass decides the gate, and not the positions before it."""
        return self.when == "synchronised" and self.bias != 0

    def before(self, rotation: Tensor, offsets: np.ndarray, sinks: int) -> Tensor | None:
        """The bias that the positions of a chunk decide, float32 [1, pages, heads]; None: no bias.

        rotation: float32 [layers, pages, frames, heads, pairs, 2]; offsets: int64 [pages, frames]; the first `sinks` pages are sinks.
        """
        if self.bias == 0 or self.when == "synchronised" or sinks == 0:
            return None
        if self.when == "realigned" and (
            offsets[:sinks].min() < self.after_frames or rotation[:, :sinks, ..., 0].mean() < self.kernel_level
        ):
            return None
        return self._bias(torch.ones(1, dtype=torch.bool), sinks, rotation.shape[1], rotation.shape[3])

    def after(self, mass: Tensor, sinks: int) -> Tensor | None:
        """The bias that the first pass of a chunk decides, float32 [layers, pages, heads]; None: no bias.

        mass: float32 [layers, pages, frames, heads]; the first `sinks` pages are sinks.
        """
        if sinks == 0:
            return None
        per_page = mass.mean(2)
        drawn = per_page[:, :sinks].mean(1) > per_page[:, sinks:].mean(1)  # [layers, heads]
        shut = drawn.float().mean(1) > self.head_share
        return self._bias(shut, sinks, mass.shape[1], mass.shape[3]) if shut.any() else None

    def _bias(self, shut: Tensor, sinks: int, pages: int, heads: int) -> Tensor:
        bias = torch.zeros(len(shut), pages, heads, dtype=torch.float32, device=shut.device)
        bias[shut, :sinks] = self.bias
        return bias
