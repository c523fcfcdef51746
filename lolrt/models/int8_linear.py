"""Linear layers with weights of 8 bits, whose inputs are quantised row by row (W8A8)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from lolrt.ops import int8


class Int8Linear(nn.Module):
    """y = (weight * weight_scale) x' + bias, where x' is x in 8 bits with a scale for each row."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, dtype=torch.int8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.packed = PackedOnce()

    def forward(self, x: Tensor) -> Tensor:
        return int8.linear(x, self.packed.of(self))


class PackedOnce:
    """The packed weights of one layer, or of several with the same input, for one product. They are packed again when a layer gets other
    tensors, and are left out of copies and pickles, which would share or lose their memory."""

    def __init__(self) -> None:
        self._made: tuple[tuple[int, ...], int8.Int8Weights] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedOnce, ()

    def of(self, *layers: Int8Linear) -> int8.Int8Weights:
        memory = tuple(x.data_ptr() for layer in layers for x in (layer.weight, layer.weight_scale, layer.bias))
        if self._made is None or self._made[0] != memory:
            joined = (torch.cat([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "weight_scale", "bias"))
            self._made = memory, int8.pack(*joined)
        return self._made[1]
