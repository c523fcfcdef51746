"""How the kernels of every instruction set are held to the float64 oracle, by one rule:

    max|out - ref| <= 2 * max|torch - ref| + atol

where `torch` is what public code computes in the tensors' own dtype, and atol is one rounding of the largest output to that dtype
and the random walk of the float32 roundings in the longest sum (2^-24 each, of a product and of its sum, sqrt(2 terms) of them).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lolrt import _core

DTYPES = [torch.float32, torch.bfloat16]


def fp64(x: Tensor | None) -> np.ndarray | None:
    return None if x is None else x.double().numpy()


def check(out: Tensor, baseline: Tensor, ref: np.ndarray, terms: int) -> None:
    """The rule of this file, for results of sums of `terms` terms."""
    atol = (torch.finfo(out.dtype).eps / 2 + (2 * terms) ** 0.5 * 2**-24) * np.abs(ref).max()
    error, allowed = np.abs(fp64(out) - ref).max(), np.abs(fp64(baseline) - ref).max()
    assert np.isfinite(fp64(out)).all()
    assert error <= 2 * allowed + atol, f"error {error:.3g}, torch's {allowed:.3g}, atol {atol:.3g}"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def empty_pages(dtype: torch.dtype, count: int, tokens: int, heads: int, dim: int) -> Tensor:
    """A pool in which every element that is not written stays NaN."""
    return torch.full((count, _core.page_elements(name_of(dtype), tokens, heads, dim)), torch.nan, dtype=dtype)


def unpack(page: Tensor, tokens: int, heads: int, dim: int) -> tuple[Tensor, Tensor]:
    """K and V [tokens, heads, dim] of a page, by the layout that lolrt.h describes."""
    depth = 2 if page.dtype == torch.bfloat16 else 1
    blocks, groups, channels = -(-tokens // 16), -(-tokens // depth), -(-dim // 16)
    keys = page[: heads * blocks * 16 * dim].view(heads, blocks, dim // depth, 16, depth)
    keys = keys.permute(0, 1, 3, 2, 4).reshape(heads, blocks * 16, dim)
    align = 64 // page.element_size()
    start = -(-heads * blocks * 16 * dim // align) * align
    values = page[start : start + heads * channels * groups * 16 * depth].view(heads, channels, groups, 16, depth)
    values = values.permute(0, 2, 4, 1, 3).reshape(heads, groups * depth, channels * 16)
    return keys[:, :tokens].transpose(0, 1), values[:, :tokens, :dim].transpose(0, 1)


def rope(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding as public code does it: complex128, rounded to x's dtype. angles: float64 [..., pairs], of the first pairs."""
    channels = 2 * angles.shape[-1]
    turned = torch.view_as_complex(x[..., :channels].double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([torch.view_as_real(turned).flatten(-2), x[..., channels:].double()], -1).to(x.dtype)


def cos_sin(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], -1)
