"""The peers: the ops in plain torch, as the public code of the models computes them.

Source: Self-Forcing `wan/modules/causal_model.py`, Wan2.1 `wan/modules/model.py`. Tensors are [1, tokens of all frames, heads, dim].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def angles(frames: range, rows: int, columns: int, dims: tuple[int, int, int], theta: float = 10000.0) -> Tensor:
    """Unit complex numbers of every token's place in time, row and column: complex128 [frames * rows * columns, 1, sum(dims) / 2]."""
    grid = (len(frames), rows, columns)
    parts = []
    for axis, (dim, positions) in enumerate(zip(dims, (frames, range(rows), range(columns)), strict=True)):
        angle = torch.outer(torch.tensor(positions, dtype=torch.float64), theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim))
        shape = [1, 1, 1, dim // 2]
        shape[axis] = grid[axis]
        parts.append(torch.polar(torch.ones_like(angle), angle).view(shape).expand(*grid, -1))
    return torch.cat(parts, dim=-1).reshape(-1, 1, sum(dims) // 2)


def rope(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary embedding by `angles`, in complex128."""
    turned = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turns
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def rope_float32(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same without complex numbers, which torch.compile can fuse. cos, sin: float32 [tokens, 1, dim / 2]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).type_as(x)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over all heads of a token: normalised in float32, weighted in x's dtype. weight: [heads, dim]."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=(-2, -1), keepdim=True) + eps)).type_as(x) * weight


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 8 bits around 128, and the scale of each."""
    scale = x.abs().amax(-1, keepdim=True).float() / 127
    return (x.float() / scale + 128).round_().to(torch.uint8), scale


def int8_linear(x: Tensor, values: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """A linear layer in 8 bits: values int8 [in, out], scale [out]; each row of x has its own scale."""
    rows = x.flatten(0, -2)
    step = rows.abs().amax(-1, keepdim=True).float() / 127
    sums = torch._int_mm((rows.float() / step).round_().to(torch.int8), values)
    return (sums * step * scale + bias).to(x.dtype).view(*x.shape[:-1], -1)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as int8, with a scale for each row."""
    scale = weight.abs().amax(1) / 127
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def modulated_norm(x: Tensor, residual: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The new x and the normalised output; x and residual [frames, tokens, channels], the others [frames, 1, channels], in one dtype."""
    x = x + residual * gate
    return x, F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift
