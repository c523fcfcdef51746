"""Anti-aliased shapes laid over each other on a block of frames."""

from __future__ import annotations

import torch
from torch import Tensor

from lolrt.train.journey.world import HEIGHT, WIDTH

SOFT = 1.8  # width of an edge in pixels: a little soft, as the codec cannot draw harder edges


def inside(distance: Tensor) -> Tensor:
    """Coverage of a pixel at a signed distance in pixels from an edge, negative inside."""
    return (0.5 - distance / SOFT).clamp(0, 1)


class Canvas:
    """Frames that are being painted. image: [T, 3, HEIGHT, WIDTH] in [0, 1]; mask: [T, HEIGHT, WIDTH], coverage of the subject."""

    def __init__(self, frames: int) -> None:
        self.image = torch.zeros(frames, 3, HEIGHT, WIDTH)
        self.mask = torch.zeros(frames, HEIGHT, WIDTH)

    def paint(self, coverage: Tensor, colour: Tensor, top: int = 0, *, is_subject: bool = False) -> None:
        """Lays a colour over the rows from `top` on, as far as coverage says.

        coverage: [T or 1, rows, WIDTH or 1]. colour: [3], [T, 3], or [T or 1, 3, rows or 1, WIDTH or 1].
        """
        rows = slice(top, top + coverage.shape[1])
        colour = colour.view(*([1] if colour.dim() == 1 else []), *colour.shape, 1, 1) if colour.dim() < 3 else colour
        image = self.image[:, :, rows]
        image += coverage[:, None] * (colour - image)
        if is_subject:
            torch.maximum(self.mask[:, rows], coverage, out=self.mask[:, rows])
