"""Pages of float8_e4m3fn, packed by torch's own cast and the layout that lolrt.h describes."""

from __future__ import annotations

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
DIM = 128
# The positions of the 16 channels of a group.
KEY_ORDER = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
VALUE_ORDER = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [tokens, heads, dim] as float8_e4m3fn, and float32 [heads]: the smallest power of two with which no element of the head exceeds
    448."""
    most = x.double().abs().amax((0, 2))
    mantissa, exponent = torch.frexp((most / 448).clamp(min=2.0**-100))
    scale = torch.ldexp(torch.ones_like(most), exponent - (mantissa == 0.5).int()).float()
    scale[~(most <= 448 * 2.0**7)] = torch.nan
    return (x.float() / scale[:, None]).to(FP8), scale


def dequantised(x: Tensor) -> Tensor:
    """The values of x [tokens, heads, dim] that a page keeps; exact in bfloat16."""
    codes, scale = quantised(x)
    return (codes.float() * scale[:, None]).bfloat16()


def parts(page: Tensor, tokens: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of K and V, bytes [heads, tokens, dim], and of the scales, float32 [heads, 2], of a page [page_elements]."""
    part = -(-heads * tokens * DIM // 64) * 64
    k, v = (page[start : start + heads * tokens * DIM].view(torch.uint8).view(heads, tokens, DIM) for start in (0, part))
    return k, v, page[2 * part : 2 * part + 8 * heads].view(torch.float32).view(heads, 2)


def fill(page: Tensor, k: Tensor, v: Tensor) -> None:
    """Writes k and v [tokens, heads, dim] into a page [page_elements]."""
    tokens, heads, _ = k.shape
    *places, scales = parts(page, tokens, heads)
    for i, (x, order, place) in enumerate(zip((k, v), (KEY_ORDER, VALUE_ORDER), places, strict=True)):
        codes, scales[:, i] = quantised(x)
        groups = codes.view(torch.uint8).transpose(0, 1).unflatten(-1, (-1, 16))
        place.copy_(groups[..., order].flatten(-2))
