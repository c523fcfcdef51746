"""Weights that a file holds in another form than floats of their shape, such as 8 bits and scales; unpacked when they are asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lolrt.checkpoint import mapped

# Values that are unpacked at a time: what an unpacked tensor takes beside itself is a few times as many bytes.
PIECE = 1 << 20


class Packed(ABC):
    """A weight of `shape`; `stored` are the tensors that it is made from, mapped from the file.

    form: what it is packed in, for people. fault: what keeps it from being unpacked, "" where nothing does; only names, shapes and dtypes
    have been looked at.
    """

    shape: tuple[int, ...]
    stored: tuple[Tensor, ...]
    form: str
    fault: str = ""

    @abstractmethod
    def rows(self, first: int, last: int) -> Tensor:
        """Rows `first` to `last`, float32 [rows, columns]: the weight as a matrix of its first dimension and all others.

        Raises `lolrt.CheckpointError` for what is stored beside the values, such as scales, and cannot be.
        """

    def unpack(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The weight, each value rounded to float32 as its format says, and to `dtype` then.

        Memory: the result, which is `out` where that is given, and a piece of it.
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


# A weight as a file has it.
Weight = Tensor | Packed


def unpacked(weight: Weight) -> Tensor:
    """A weight as one tensor, float32 where it is packed; what it holds, as it is, where that cannot be unpacked."""
    if not isinstance(weight, Packed):
        return weight
    return weight.stored[0] if weight.fault else weight.unpack(torch.float32)


def stored(weights: Mapping[str, Weight]) -> dict[str, Tensor]:
    """The tensors that weights are made from, by names of their own."""
    return {
        name if i == 0 else f"{name}[{i}]": tensor
        for name, weight in weights.items()
        for i, tensor in enumerate(weight.stored if isinstance(weight, Packed) else (weight,))
    }


def give_back(weights: Iterable[Weight]) -> None:
    """Tells the system that the weights' pages are not needed for now, as `mapped.give_back` does."""
    for weight in weights:
        for tensor in weight.stored if isinstance(weight, Packed) else (weight,):
            mapped.give_back(tensor)
