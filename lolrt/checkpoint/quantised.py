"""Reads 8-bit weights: fp8 or int8 values with a scale for the whole weight, for each row, or for each block."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lolrt.checkpoint.packed import Packed
from lolrt.errors import CheckpointError

QUANTISED = {torch.float8_e4m3fn: "fp8 (e4m3)", torch.float8_e5m2: "fp8 (e5m2)", torch.int8: "int8"}

# The rows and columns of a block with one scale in TurboDiffusion's files. Blocks at the far edges are smaller.
BLOCK = 128


class Quantised(Packed):
    """The weight q * scale, in float32, with q in fp8 or int8; without a scale it is q itself.

    name and source: for errors. Sources: ComfyUI (QUANTIZATION.md), LightX2V (tools/convert), TurboDiffusion (turbodiffusion/ops/core.py).
    """

    def __init__(self, name: str, source: Path, values: Tensor, scale: Tensor | None, fault: str = "") -> None:
        self._name, self._source, self._values, self._scale = name, source, values, scale
        self.shape, self.stored = tuple(values.shape), (values,) if scale is None else (values, scale)
        self._shared_by = None if scale is None else _shared_by(self.shape, tuple(scale.shape))
        kind = QUANTISED.get(values.dtype, str(values.dtype).removeprefix("torch."))
        self.form = f"{kind} without scales" if scale is None else f"{kind} with a scale for each {self._shared_by}"
        self.fault = fault or self._misfit()

    def _misfit(self) -> str:
        """The fault in dtypes or shapes; "" if there is none."""
        if self._values.dtype not in QUANTISED:
            return f"values of {str(self._values.dtype).removeprefix('torch.')}; expected fp8 or int8"
        if self._scale is None:
            return "int8 and no scale" if self._values.dtype == torch.int8 else ""
        if not self._scale.is_floating_point():
            return f"scales of {str(self._scale.dtype).removeprefix('torch.')}; expected floats"
        if self._shared_by is None:
            return f"scales {list(self._scale.shape)} for {list(self.shape)}; expected one, one a row, or one a block of {BLOCK} x {BLOCK}"
        return ""

    @property
    def is_raw(self) -> bool:
        """Whether the values are the weight itself, without a scale."""
        return self._scale is None

    @cached_property
    def _scales(self) -> Tensor:
        assert self._scale is not None
        scales = self._scale.float()
        if not (scales.isfinite() & (scales > 0)).all():
            raise CheckpointError(f"{self._source}: scales of {self._name} are not above 0 and finite; fetch the file again")
        return scales

    def int8_rows(self) -> tuple[Tensor, Tensor] | None:
        """The values, int8, and a scale for each row, float32 [rows], if that is how a matrix is stored; otherwise None."""
        if self._values.dtype != torch.int8 or len(self.shape) != 2 or self._shared_by not in ("weight", "row"):
            return None
        return self._values, self._scales.reshape(-1).expand(self.shape[0])

    def rows(self, first: int, last: int) -> Tensor:
        values = self._values.reshape(self.shape[0] if self.shape else 1, -1)[first:last].float()
        if self._scale is None:
            return values
        if self._shared_by == "weight":
            return values.mul_(self._scales.reshape(1, 1))
        if self._shared_by == "row":
            return values.mul_(self._scales.reshape(-1, 1)[first:last])
        blocks = self._scales[torch.arange(first, last) // BLOCK]
        return values.mul_(blocks.repeat_interleave(BLOCK, 1)[:, : values.shape[1]])


def _shared_by(shape: tuple[int, ...], scales: tuple[int, ...]) -> str | None:
    """Which values of a weight of this shape share a scale; None if the number of scales fits no rule."""
    if all(size == 1 for size in scales):
        return "weight"
    if shape and scales in (shape[:1], (shape[0], 1)):
        return "row"
    if len(shape) == 2 and scales == tuple(-(-size // BLOCK) for size in shape):
        return f"block of {BLOCK} x {BLOCK}"
    return None
