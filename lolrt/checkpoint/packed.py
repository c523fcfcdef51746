"""Weights in another form than floats of their shape, such as 8-bit values and scales. They are unpacked on request."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lolrt.checkpoint import mapped

# How many values are unpacked at a time. Unpacking needs a few times as many bytes in addition to the result.
PIECE = 1 << 20


class Packed(ABC):
    """A weight of the shape `shape`. stored: the tensors that it is made from, mapped from the file.

    form: the name of the format, for people. fault: the reason why it cannot be unpacked, or ""; found from names, shapes and dtypes alone.
    """

    shape: tuple[int, ...]
    stored: tuple[Tensor, ...]
    form: str
    fault: str = ""

    @abstractmethod
    def rows(self, first: int, last: int) -> Tensor:
        """The rows from `first` up to `last`, float32 [rows, columns], of the weight as a matrix of its first dimension by all others.

        Raises `lolrt.CheckpointError` if other stored data, such as scales, has impossible values.
        """

    def unpack(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The weight. Each value is rounded to float32 as the format says, and then to `dtype`.

        Needs memory for the result, which is `out` if that is given, and for one piece of it.
        """
        count = self.shape[0] if self.shape else 1
        out = torch.empty(self.shape, dtype=dtype, device="cpu") if out is None else out
        matrix = out.view(count, -1) if out.numel() else out
        step = max(1, PIECE // max(1, math.prod(self.shape[1:])))
        for first in range(0, count if out.numel() else 0, step):
            matrix[first : first + step] = self.rows(first, min(first + step, count))
        return out

    def numel(self) -> int:
        return math.prod(self.shape)


# A weight as it is in a file.
Weight = Tensor | Packed


def unpacked(weight: Weight) -> Tensor:
    """A weight as one tensor, float32 if it is packed. If it cannot be unpacked, the stored values are returned unchanged."""
    if not isinstance(weight, Packed):
        return weight
    return weight.stored[0] if weight.fault else weight.unpack(torch.float32)


def stored(weights: Mapping[str, Weight]) -> dict[str, Tensor]:
    """The tensors that the weights are made from, each under its own name."""
    return {
        name if i == 0 else f"{name}[{i}]": tensor
        for name, weight in weights.items()
        for i, tensor in enumerate(weight.stored if isinstance(weight, Packed) else (weight,))
    }


def give_back(weights: Iterable[Weight]) -> None:
    """Tells the system that the pages of these weights are not needed now; see `mapped.give_back`."""
    for weight in weights:
        for tensor in weight.stored if isinstance(weight, Packed) else (weight,):
            mapped.give_back(tensor)
