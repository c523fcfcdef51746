"""Pictures whose subject is spoilt in the ways in which a video loses it: what a reader must tell from one whole subject."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WHOLE = "one whole subject"
GOOD = ("as drawn", "moved")  # what counts as one whole subject
FLAWS = ("erased", "faint", "in part", "torn", "small", "cut off", "doubled", "beside another", "of two colours")
KINDS = (*GOOD, *FLAWS)


class Layer(NamedTuple):
    """A subject cut out of its scene: colour [3, H, W] and coverage [H, W]."""

    colour: Tensor
    cover: Tensor

    def moved(self, right: float, down: float, scale: float = 1.0) -> Layer:
        """Moved by pixels, and scaled about the picture's middle."""
        height, width = self.cover.shape
        affine = torch.tensor([[1 / scale, 0, -2 * right / width / scale], [0, 1 / scale, -2 * down / height / scale]])
        grid = F.affine_grid(affine[None], [1, 4, height, width], align_corners=False)
        both = F.grid_sample(torch.cat([self.colour, self.cover[None]])[None], grid, align_corners=False)[0]
        return Layer(both[:3], both[3])

    def within(self, part: Tensor | float) -> Layer:
        """What of it lies in a part [H, W] of the picture, or all of it, let through like glass."""
        return Layer(self.colour, self.cover * part)

    def span(self) -> tuple[int, int]:
        """First and last column that it covers."""
        columns = (self.cover.amax(0) > 0.5).nonzero()
        return int(columns[0]), int(columns[-1])

    def over(self, picture: Tensor) -> Tensor:
        return torch.lerp(picture, self.colour, self.cover.expand_as(picture))


class Drawing(ABC):
    """Pictures of one moment of a world, float [3, H, W] of 0 .. 255, with its subject as it is or spoilt.

    whole: the picture as drawn. empty: the same without its subject.
    """

    def __init__(self, whole: Tensor, empty: Tensor, generator: torch.Generator) -> None:
        self.whole, self.empty, self.generator = whole, empty, generator

    @abstractmethod
    def subject(self) -> Layer:
        """The subject, cut out."""

    @abstractmethod
    def recoloured(self) -> Tensor:
        """The picture with its subject in another colour, which is drawn."""

    @abstractmethod
    def another(self) -> Layer:
        """A subject of another kind, which is drawn, cut out of the same moment."""

    def draw(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def sign(self) -> int:
        return 1 if self.draw(0, 1) < 0.5 else -1

    def half(self, layer: Layer) -> Tensor:
        """One side of a line through a subject, at any angle and within a few pixels of its middle, bool [H, W]."""
        y, x = torch.meshgrid(*map(torch.arange, layer.cover.shape), indexing="ij")
        middle_x, middle_y = ((at * layer.cover).sum() / layer.cover.sum() for at in (x, y))
        angle = self.draw(0, 2 * math.pi)
        return math.cos(angle) * (x - middle_x) + math.sin(angle) * (y - middle_y) > self.draw(-4, 4)

    def blotch(self, layer: Layer, share: float) -> Tensor:
        """Soft blotches that cover a share of a subject, [H, W]."""
        rough = torch.randn(1, 1, 9, 13, generator=self.generator)
        smooth = F.interpolate(rough, layer.cover.shape, mode="bicubic")[0, 0]
        return ((smooth - smooth[layer.cover > 0.5].quantile(1 - share)) * 4 + 0.5).clamp(0, 1)

    def pick_other(self, index: int, count: int) -> int:
        """Any of `count` indices but one."""
        return (index + 1 + int(self.draw(0, count - 1))) % count

    def picture(self, kind: str) -> Tensor:
        """Of one of the kinds of `GOOD` and `FLAWS`, float [3, H, W] of 0 .. 255."""
        if kind in ("as drawn", "erased"):
            return self.whole if kind == "as drawn" else self.empty
        layer = self.subject()
        if kind == "faint":
            return torch.lerp(self.empty, self.whole, self.draw(0.1, 0.7))
        if kind == "of two colours":
            part = self.half(layer).float() if self.draw(0, 1) < 0.5 else self.blotch(layer, self.draw(0.3, 0.7))
            return torch.lerp(self.whole, self.recoloured(), part)
        picture = self.empty
        for one in self._layers(kind, layer):
            picture = one.over(picture)
        return picture

    def _layers(self, kind: str, layer: Layer) -> list[Layer]:
        draw, sign = self.draw, self.sign
        first_column, last_column = layer.span()
        width = layer.cover.shape[1]
        if kind == "moved":  # to anywhere in the picture
            return [layer.moved(draw(1 - first_column, width - 2 - last_column), draw(-3, 3), draw(0.92, 1.08))]
        if kind == "in part":
            return [layer.within(self.blotch(layer, draw(0.2, 0.6)))]
        if kind == "torn":
            half, to = self.half(layer), sign() * draw(5, 16)
            first, second = layer.within(half), layer.within(~half)
            return [first] if draw(0, 1) < 0.4 else [first, second.moved(to, draw(-8, 8)).within(draw(0.4, 1))]
        if kind == "small":
            return [layer.moved(draw(-15, 15), draw(-6, 6), draw(0.2, 0.55))]
        if kind == "cut off":
            beyond = draw(0.25, 0.8) * (last_column - first_column)
            return [layer.moved(width + beyond - last_column if draw(0, 1) < 0.5 else -first_column - beyond, draw(-3, 3))]
        if kind == "doubled":
            apart = sign() * draw(0.3, 1.6) * (last_column - first_column)  # they may hide each other in part
            other = layer.moved(-apart / 2, draw(-5, 5), draw(0.9, 1.1)).within(draw(0.5, 1))
            return [layer.moved(apart / 2, 0), other] if draw(0, 1) < 0.5 else [other, layer.moved(apart / 2, 0)]
        if kind == "beside another":
            apart = sign() * draw(14, 45)
            return [layer.moved(apart / 2, 0), self.another().moved(-apart / 2, draw(-5, 5), draw(0.7, 1.1))]
        raise ValueError(kind)


class Examples(NamedTuple):
    pictures: Tensor
    """uint8 [n, height, width, 3]"""
    answers: dict[str, Tensor]
    """Index of the answer to each question, int64 [n], or `reader.UNKNOWN`; `WHOLE` is a question of yes (1) and no (0)."""
    kinds: list[str]
