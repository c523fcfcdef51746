"""Linear layers in integers of 8 bits, on the CPU: rows of `quantize_rows` times packed weights, multiplied by oneDNN through torch.

Every product of integers is summed exactly, so that no bit of a row depends on the other rows, on how many there are, or on threads.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass

import torch
from torch import Tensor

from lolrt import ops
from lolrt.errors import Error

ZERO = 128  # of the rows of `quantize_rows`


@dataclass(frozen=True)
class Int8Weights:
    """The weights of a linear layer, in oneDNN's own layout."""

    packed: Tensor
    scale: Tensor
    """float32 [out]."""
    zeros: Tensor
    """The zero points of the weights: int64 [out], all 0."""
    bias: Tensor
    """float32 [out]."""


def pack(values: Tensor, scale: Tensor, bias: Tensor) -> Int8Weights:
    """Packs the weights values * scale: int8 [out, in] and float32 [out]; bias: [out]."""
    packed = torch.empty_like(values) if values.is_meta else torch.ops.onednn.qlinear_prepack(values, None)
    return Int8Weights(packed, scale.float(), torch.zeros(len(scale), dtype=torch.int64, device=scale.device), bias.float())


def linear(x: Tensor, weights: Int8Weights) -> Tensor:
    """x [..., in], float32 or bfloat16, times the weights plus the bias: [..., out] in x's dtype. Each row of x has a scale of its own."""
    rows = x.reshape(1, -1, x.shape[-1])
    q, scale = ops.quantize_rows(rows)
    sums = product(q[0], weights)[None]
    out = sums if x.dtype == torch.float32 else torch.empty(sums.shape, dtype=x.dtype, device=x.device)
    return ops.dequantize_rows(sums, scale, weights.bias, out).view(*x.shape[:-1], -1)


def product(q: Tensor, weights: Int8Weights) -> Tensor:
    """The sums over (q - 128) * weight, without the scales of the rows: float32 [rows, out]."""
    if q.is_meta:
        return torch.empty(len(q), len(weights.scale), device="meta")
    return torch.ops.onednn.qlinear_pointwise(
        q, 1.0, ZERO, weights.packed, weights.scale, weights.zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def check_int8(device: torch.device) -> None:
    """Raises `lolrt.Error` where linear layers cannot be computed in 8 bits: on CUDA, and on CPUs without VNNI."""
    if device.type != "cpu":
        raise Error(f"linear layers in int8 run on the CPU, and the device is {device}: leave linear out, or use the CPU")
    if not multiplies_exactly():
        raise Error(
            "linear layers in int8 need VNNI (AVX512-VNNI or AVX-VNNI), which this CPU, or what ONEDNN_MAX_CPU_ISA leaves of it, lacks: "
            "without it torch's 8-bit products overflow. Leave linear out"
        )


@functools.cache
def multiplies_exactly() -> bool:
    """Whether oneDNN's products of the largest numbers are right. Without VNNI, pairs of products saturate at 16 bits."""
    if platform.machine() not in ("x86_64", "AMD64"):  # where the product may be right, and hundreds of times slower
        return False
    rows, inputs, outputs = 16, 256, 64
    weights = pack(torch.full((outputs, inputs), 127, dtype=torch.int8), torch.ones(outputs), torch.zeros(outputs))
    sums = product(torch.full((rows, inputs), 255, dtype=torch.uint8), weights)
    return bool((sums == (255 - ZERO) * 127 * inputs).all())
