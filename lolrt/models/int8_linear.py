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
    tensors or other values, and are left out of copies and pickles, which would share or lose their memory."""

    def __init__(self) -> None:
        self._made: tuple[list[Tensor], list[tuple[int, int]], int8.Int8Weights] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedOnce, ()

    def of(self, *layers: Int8Linear) -> int8.Int8Weights:
        tensors = [x for layer in layers for x in (layer.weight, layer.weight_scale, layer.bias)]
        state = [(x.data_ptr(), 0 if x.is_inference() else x._version) for x in tensors]
        # The tensors that were packed are held, so that their addresses are not those of others.
        if self._made is None or self._made[1] != state:
            joined = (torch.cat([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "weight_scale", "bias"))
            self._made = [x.detach() for x in tensors], state, int8.pack(*joined)
        return self._made[2]
