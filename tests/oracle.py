"""The ops in NumPy and float64, written exactly as their formulas; every kernel is compared with them.

All take and return float64 arrays. Inputs should be values that the tensors' dtype can hold, so that the difference to a kernel
is the kernel's own rounding. Rotation tables are arrays [..., pairs, 2] of (cos, sin).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def rotate(x: F64, cos_sin: F64, first_channel: int = 0) -> F64:
    """Turns the pairs (2i, 2i + 1) of x [..., dim] from `first_channel` on by cos_sin [..., pairs, 2]."""
    y = x.copy()
    last_channel = first_channel + 2 * cos_sin.shape[-2]
    even, odd = x[..., first_channel:last_channel:2], x[..., first_channel + 1 : last_channel : 2]
    cos, sin = cos_sin[..., 0], cos_sin[..., 1]
    y[..., first_channel:last_channel:2] = even * cos - odd * sin
    y[..., first_channel + 1 : last_channel : 2] = even * sin + odd * cos
    return y


def project(x: F64, weight: F64 | None, eps: float, rotation: F64 | None, first_channel: int = 0) -> F64:
    """RMSNorm over all heads of x [frames, tokens, heads, dim], weight [heads, dim], rotation [tokens, pairs, 2]."""
    if weight is not None:
        x = x / np.sqrt((x**2).mean(axis=(2, 3), keepdims=True) + eps) * weight
    if rotation is not None:
        x = rotate(x, rotation[None, :, None], first_channel)
    return x


def quantize_rows(x: F64) -> tuple[F64, F64]:
    """x [frames, tokens, channels] in units of the scale of its row, not rounded, and the scales [frames, tokens]."""
    scale = np.maximum(np.abs(x).max(-1) / 127, 2.0**-100)
    return x / scale[..., None], scale


def frame_attention(
    q: F64, k: F64, v: F64, rotation: F64 | None = None, bias: F64 | None = None, scale: float | None = None
) -> tuple[F64, F64]:
    """q [frames, tokens, heads, dim], k and v [pages, page_tokens, heads, dim], rotation [pages, frames, heads, pairs, 2], bias
    [pages, heads]; returns out [frames, tokens, heads, dim] and mass [pages, frames, heads]."""
    frames, _, heads, dim = q.shape
    pages, page_tokens = k.shape[:2]
    out = np.zeros_like(q)
    mass = np.zeros((pages, frames, heads))
    for frame in range(frames):
        for head in range(heads):
            scores = np.empty((q.shape[1], pages, page_tokens))
            for page in range(pages):
                query = q[frame, :, head]
                if rotation is not None:
                    query = rotate(query, rotation[page, frame, head])
                scores[:, page] = query @ k[page, :, head].T * (scale or dim**-0.5)
                if bias is not None:
                    scores[:, page] += bias[page, head]
            if not np.isfinite(scores).any():
                continue  # every page is left out
            weights = np.exp(scores - scores.max(axis=(1, 2), keepdims=True))
            weights /= weights.sum(axis=(1, 2), keepdims=True)
            out[frame, :, head] = np.einsum("tpk,pkd->td", weights, v[:, :, head])
            mass[:, frame, head] = weights.sum(axis=2).mean(axis=0)
    return out, mass


def batched_frame_attention(
    q: F64,
    k: F64,
    v: F64,
    page_table: NDArray[np.integer],
    rotation: F64 | None = None,
    bias: F64 | None = None,
    scale: float | None = None,
) -> tuple[F64, F64]:
    """As `frame_attention`, each of equal groups of q's frames on the pages that its row of page_table [batch, pages] lists, which may be
    -1: k and v [pool_pages, page_tokens, heads, dim], rotation [batch, pages, frames / batch, heads, pairs, 2], bias [batch, pages,
    heads]; returns out and mass [batch, pages, frames / batch, heads]."""
    batch, pages = page_table.shape
    frames = len(q) // batch
    out, mass = np.zeros_like(q), np.zeros((batch, pages, frames, q.shape[2]))
    for entry, row in enumerate(page_table):
        there, group = row >= 0, slice(entry * frames, (entry + 1) * frames)
        turns, biases = (None if x is None else x[entry][there] for x in (rotation, bias))
        out[group], mass[entry, there] = frame_attention(q[group], k[row[there]], v[row[there]], turns, biases, scale)
    return out, mass


def sampler_step(sample: F64, level: float, velocity: F64, after: float, noise: F64 | None) -> F64:
    """Of one shape; noise None: the clean sample itself."""
    clean = sample - level * velocity
    return clean if noise is None else (1 - after) * clean + after * noise


def gelu(x: F64) -> F64:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def modulated_norm(x: F64, residual: F64 | None, gate: F64 | None, scale: F64, shift: F64, eps: float) -> tuple[F64, F64]:
    """x [frames, tokens, channels], gate, scale and shift [1 or frames, channels]; returns the new x and the output."""
    if residual is not None:
        x = x + (1.0 if gate is None else gate[:, None]) * residual
    centred = x - x.mean(axis=-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return x, unit * scale[:, None] + shift[:, None]


def channel_norm(x: F64, gamma: F64, silu: bool, margin: int) -> F64:
    """x [frames, rows, columns, channels], gamma [channels]; returns the normed image with a margin of zeros."""
    length = np.sqrt((x**2).sum(axis=-1, keepdims=True))
    y = x / np.maximum(length, 1e-12) * x.shape[-1] ** 0.5 * gamma
    if silu:
        y = y / (1 + np.exp(-y))
    return np.pad(y, ((0, 0), (margin, margin), (margin, margin), (0, 0)))


def conv3d(past: F64 | None, x: F64, weight: F64, bias: F64, residual: F64 | None) -> F64:
    """x [frames, rows, columns, in] after past [kernel_frames - 1, rows, columns, in], weight [out, in, kernel_frames, kernel_rows,
    kernel_columns], bias [out]; no padding in space, zeros for a missing past."""
    past = np.zeros((weight.shape[2] - 1, *x.shape[1:])) if past is None else past
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([past, x]), weight.shape[2:], axis=(0, 1, 2))
    out = np.einsum("fyxctij,octij->fyxo", windows, weight, optimize=True) + bias
    return out if residual is None else out + residual
