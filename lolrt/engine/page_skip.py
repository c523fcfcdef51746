"""Pages that are not worth reading: after the first pass of a chunk, heads leave out the pages that they hardly looked at.

For a query with the share E of its softmax weights on the pages that are left out, the output changes by exactly

    E (mean of V over what is left out - mean of V over what is kept),

each mean weighted by the softmax. So no channel changes by more than E (max V - min V) <= 2 E max|V|, and the mean of E over the queries
of a frame is less than `skip` times the number of pages that the head leaves out. That holds for the queries that were measured. In the
passes that follow, queries have moved, and E is what these would have given to the same pages.
"""

from __future__ import annotations

import math

from torch import Tensor


def unread(mass: Tensor, earlier: int, skip: float) -> Tensor:
    """The attention bias that leaves out the pages that a head gave less than `skip` of its attention to, in each frame of the chunk:
    float32 [layers, pages, heads], -inf or 0.

    mass: float32 [layers, pages, frames, heads]. The first `earlier` pages can be left out; those after them, the chunk's own, cannot.
    """
    bias = mass.new_zeros(mass.shape[0], mass.shape[1], mass.shape[3])
    bias[:, :earlier].masked_fill_(mass[:, :earlier].amax(2) < skip, -math.inf)
    return bias
