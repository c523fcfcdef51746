"""The custom ops of the models on torch tensors: thin calls of `lolrt._core`, registered with `torch.library`.

A direct call runs the kernel. Under `torch.compile`, on the meta device and for tensor subclasses the ops appear as `torch.ops.lolrt.*`
with fake implementations.
All ops compute in float32 and round once. On the CPU they take float32 or bfloat16, one dtype per call. On CUDA they take bfloat16 or
float16, and queue their work on torch's current stream of the tensors' device; `quantize_rows`, `dequantize_rows`, `channel_norm` and
`conv3d` are for the CPU only.

The ops compute no gradients. Tensors that require gradients are refused while torch records (`torch.inference_mode()` turns this off).
Writes in place are reported to torch, so a backward pass that needs the old values fails.

Instead of tensors the ops also take arrays of another library that supports DLPack, such as NumPy and CuPy, and work on their memory; all
arrays of a call must come from one library. New results are torch tensors, which the other library can take with `from_dlpack`. Nothing is
copied. On CUDA, torch's stream waits for the array's stream by DLPack's protocol. The array's stream does not wait for writes in place, so
use one stream for both:

    with torch.cuda.stream(torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)):
        ops.kv_write(k, v, pages, page_table)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt import _core
from lolrt.ops import library
from lolrt.ops.threads import compute_alone, respect_quota

respect_quota()
os.register_at_fork(after_in_child=compute_alone)

CPU = torch.device("cpu")


def _traced(x: Tensor) -> bool:
    """Whether to call the registered torch op: under torch.compile, for tensors without memory, and for objects that are not plain
    tensors."""
    return torch.compiler.is_compiling() or type(x) is not Tensor or x.is_meta


def _tensor(x: Any, name: str, kind: str = "Tensor") -> Any:
    """An array of another library as a tensor that shares its memory; a tensor, and what is no tensor by its kind (a type of an op's
    schema), unchanged.

    Raises TypeError for what is neither a tensor nor such an array, and ValueError for an array that torch would misread or crash on, and
    for a read-only array that the op writes.
    """
    if isinstance(x, Tensor) or not kind.startswith("Tensor") or (x is None and kind.endswith("?")):
        return x
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"{name}: expected a torch tensor, or an array that supports DLPack, such as NumPy's; got {type(x).__name__}")
    _core.check_array(name, x, "(a!)" in kind)
    return torch.from_dlpack(x)


def _torch_op(name: str, *arguments: Any) -> Any:
    """Calls the registered torch op, for tracing and for arrays of other libraries."""
    if not isinstance(arguments[0], Tensor):
        arguments = tuple(_tensor(x, *argument) for x, argument in zip(arguments, library.ARGUMENTS[name], strict=True))
    return getattr(torch.ops.lolrt, name)(*arguments)


def _refuse_gradients(op: str, *arguments: Any) -> None:
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments):
        raise ValueError(f"{op} computes no gradients; call it under torch.inference_mode(), or with detached tensors")


def _changed(*tensors: Any) -> None:
    """Tells autograd which tensors were written, because it cannot see that. Inference mode has no autograd."""
    if torch.is_inference_mode_enabled():
        return
    torch.autograd.graph.increment_version([x for x in tensors if isinstance(x, Tensor)])


_planning = False  # for CUDA


@contextmanager
def planned_for_cuda() -> Iterator[None]:
    """A context manager: tensors without memory that are made inside are treated as tensors on CUDA."""
    global _planning
    _planning = True
    try:
        yield
    finally:
        _planning = False


def on_cuda(device: torch.device) -> bool:
    return device.type == "cuda" or _planning


def page_elements(dtype: torch.dtype, tokens: int, heads: int, dim: int, device: torch.device = CPU) -> int:
    """The number of elements of one page of the KV cache: K and V of `tokens` tokens for all heads, in the layout of the device's kernels
    (csrc/include/lolrt/lolrt.h). It may also be one of 8 bits with scales, whatever k, v and q are: int8 on the CPU, and on CUDA
    float8_e4m3fn, which goes with bfloat16."""
    return _core.page_elements(str(dtype).removeprefix("torch."), tokens, heads, dim, "cuda" if on_cuda(device) else "cpu")


def kv_write(
    k: Tensor,
    v: Tensor,
    pages: Tensor,
    page_table: Tensor,
    *,
    weight: Tensor | None = None,
    rotation: Tensor | None = None,
    rotation_first_channel: int = 0,
    eps: float = 1e-6,
) -> None:
    """Writes the K and V projections of some frames into their pages, in place.

    k, v: [frames, tokens, heads, dim]; pages: [pool_pages, page_elements]; page_table: int32 [frames]; weight: [heads, dim] of the
    RMSNorm over all heads, None leaves k as it is; rotation: float32 [tokens, pairs, 2] of (cos, sin), applied to k's channels from
    `rotation_first_channel` on.
    """
    _refuse_gradients("kv_write", k, v, pages, weight, rotation)
    if _traced(k):
        _torch_op("kv_write", k, v, pages, page_table, weight, rotation, rotation_first_channel, eps)
    else:
        library.kv_write(k, v, pages, page_table, weight, rotation, rotation_first_channel, eps)
        _changed(pages)


def mean_key(page: Tensor, tokens: int, heads: int, dim: int) -> Tensor:
    """The mean of the keys in a page over its tokens, rotated spatially but not by time: float32 [heads, dim].

    page: [page_elements]. The layout is that of lolrt.h.
    """
    page = _tensor(page, "page")
    keys = (_row_keys if page.is_cuda else _packed_keys)(page, tokens, heads, dim)
    return keys.mean(1, dtype=torch.float32)


def _row_keys(page: Tensor, tokens: int, heads: int, dim: int) -> Tensor:
    """The keys in a page with CUDA's layout, [heads, tokens, dim]; float32 if the page stores scaled numbers."""
    rows = page[: heads * tokens * dim].view(heads, tokens, dim)
    if page.dtype != torch.float8_e4m3fn:
        return rows
    part = -(-rows.numel() // 64) * 64
    scales = page[2 * part : 2 * part + 8 * heads].view(torch.float32).view(heads, 2)
    # Of each 16 channels, channel 8 i + 2 j + k is at position 4 j + 2 i + k.
    groups = rows.float().view(heads, tokens, dim // 16, 4, 2, 2).transpose(-3, -2)
    return groups.reshape(heads, tokens, dim) * scales[:, :1, None]


def _packed_keys(page: Tensor, tokens: int, heads: int, dim: int) -> Tensor:
    """The keys in a page with the CPU's layout, [heads, tokens, dim]; float32 if the page stores scaled numbers."""
    lanes, adjacent = 16, {torch.int8: 4, torch.bfloat16: 2}.get(page.dtype, 1)
    blocks, row = -(-tokens // lanes), -(-dim // adjacent) * adjacent
    packed = page[: heads * blocks * lanes * row].view(heads, blocks, row // adjacent, lanes, adjacent)
    keys = packed.transpose(2, 3).reshape(heads, blocks * lanes, row)[:, :tokens, :dim]
    if page.dtype != torch.int8:
        return keys
    scales = 4 * heads * 3 * dim
    first = page.numel() - -(-scales // 64) * 64
    scale, middle, _ = page[first : first + scales].view(torch.float32).view(heads, 3, 1, dim).unbind(1)
    return middle + scale * (keys.view(torch.uint8).float() - 128)


def normalize_queries(
    q: Tensor,
    *,
    weight: Tensor,
    rotation: Tensor | None = None,
    rotation_first_channel: int = 0,
    eps: float = 1e-6,
) -> Tensor:
    """Normalises and rotates q [frames, tokens, heads, dim] as `kv_write` does with k. The result has the plain layout."""
    _refuse_gradients("normalize_queries", q, weight, rotation)
    if _traced(q):
        return _torch_op("normalize_queries", q, weight, rotation, rotation_first_channel, eps)
    return library.normalize_queries(q, weight, rotation, rotation_first_channel, eps)


def frame_attention(
    q: Tensor,
    pages: Tensor,
    page_table: Tensor,
    page_tokens: int,
    *,
    rotation: Tensor | None = None,
    bias: Tensor | None = None,
    mass: Tensor | None = None,
) -> Tensor:
    """Softmax attention of q [frames, tokens, heads, dim] to every token of the listed pages; returns the same shape.

    page_table: int32 [pages], in any order; page_tokens: tokens in a page. rotation: float32 [pages, frames, heads, pairs, 2], cos and
    sin of (t_q - t_k) * frequency, turning q's first 2 * pairs channels (pair i = channels 2 i and 2 i + 1). bias: float32
    [pages, heads], added to the scores. mass: float32 [pages, frames, heads], filled with the softmax weight spent on each page, mean
    over the frame's queries. Source: LoL (arXiv 2601.16914), Alg. 1, written with relative offsets.

    A batch: with page_table [batch, pages], the frames of q are `batch` groups of equal size, in order. Each group attends only to the
    pages of its own row, and has the same bits as in a separate call. rotation is then [batch, pages, frames / batch, heads, pairs, 2],
    bias [batch,
    pages, heads], mass [batch, pages, frames / batch, heads]. For groups of different sizes use batch = frames, with one row for every
    frame. An entry of -1, with or without a batch, is an absent page: it is not read, nor are its rotation and bias, and its mass is 0.
    The result of a frame without any page is 0.

    Raises ValueError when shapes or dtypes do not fit, and `lolrt._core.UnsupportedError` where there is no kernel: for a dim that is odd
    or more than 256 (on CUDA, any dim except 64 and 128), and for tensors on another device than q.
    """
    _refuse_gradients("frame_attention", q, pages, rotation, bias, mass)
    if _traced(q):
        arguments = (q, pages, page_table, page_tokens, rotation, bias)
        return _torch_op("frame_attention", *arguments) if mass is None else _torch_op("frame_attention_probed", *arguments, mass)
    out = library.frame_attention(q, pages, page_table, page_tokens, rotation, bias, mass)
    _changed(mass)
    return out


def modulated_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """x += gate * residual (in place, if a residual is given), then LayerNorm(x) * scale + shift, in one pass.

    x, residual: [frames, tokens, channels]; gate, scale, shift: float32 [1 or frames, channels]; gate None is 1.
    """
    _refuse_gradients("modulated_norm", x, scale, shift, residual, gate)
    if _traced(x):
        return _torch_op("modulated_norm", x, scale, shift, residual, gate, eps)
    out = library.modulated_norm(x, scale, shift, residual, gate, eps)
    if residual is not None:
        _changed(x)
    return out


def gelu(x: Tensor) -> None:
    """GELU by its tanh form, in place. x: [frames, tokens, channels]."""
    _refuse_gradients("gelu", x)
    if _traced(x):
        _torch_op("gelu", x)
    else:
        library.gelu(x)
        _changed(x)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 8 bits, each with a scale: x [frames, tokens, channels] -> uint8 in the same shape, and float32 [frames, tokens].

    The scale is max|x| / 127 of the row, at least 2^-100, and the numbers are 128 + round(x / scale). A row with a number that is not
    finite has the scale NaN.
    """
    _refuse_gradients("quantize_rows", x)
    if _traced(x):
        return _torch_op("quantize_rows", x)
    return library.quantize_rows(x)


def dequantize_rows(x: Tensor, scale: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Writes x * scale + bias to `out`, and returns `out`: what follows a product of integers with rows of `quantize_rows`.

    x: float32 [frames, tokens, channels]; scale: float32 [frames, tokens]; bias: float32 [channels]; out: float32 or bfloat16 in the
    shape of x, may be x itself.
    """
    _refuse_gradients("dequantize_rows", x, scale, bias, out)
    if _traced(x):
        _torch_op("dequantize_rows", x, scale, bias, out)
    else:
        library.dequantize_rows(x, scale, bias, out)
        _changed(out)
    return out


def sampler_step(sample: Tensor, level: float, velocity: Tensor, *, after: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """(1 - after) * clean + after * noise, clean being sample - level * velocity; without noise, clean. All float32, of one shape.

    The clean sample is computed in float64 and rounded once, as published. Raises ValueError when shapes or dtypes do not fit.
    """
    _refuse_gradients("sampler_step", sample, velocity, noise)
    if _traced(sample):
        return _torch_op("sampler_step", sample, level, velocity, after, noise)
    return library.sampler_step(sample, level, velocity, after, noise)


def channel_norm(x: Tensor, gamma: Tensor, out: Tensor, *, silu: bool) -> Tensor:
    """RMSNorm over the channels of each pixel, then SiLU if `silu`, written to the middle of `out`; returns `out`.

    x: [frames, rows, columns, channels]; gamma: float32 [channels]; out: [frames, rows + 2 m, columns + 2 m, channels], whose margin of
    m pixels is filled with zeros; its dtype may differ from x's.
    """
    _refuse_gradients("channel_norm", x, gamma, out)
    if _traced(x):
        _torch_op("channel_norm", x, gamma, out, silu)
    else:
        library.channel_norm(x, gamma, out, silu)
        _changed(out)
    return out


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    past: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Writes residual + bias + the convolution of `past` and x, without padding, to `out`, and returns `out`; all float32.

    x: [frames, rows, columns, in]; weight, bias: from `pack_convolution`; past: the frames before x, [kernel_frames - 1, rows, columns,
    in], None for zeros; residual: in the shape of out, may be out itself; out: [frames, rows - kernel_rows + 1, columns - kernel_columns +
    1, out].
    """
    _refuse_gradients("conv3d", x, weight, bias, out, past, residual)
    if _traced(x):
        _torch_op("conv3d", x, weight, bias, out, past, residual)
    else:
        library.conv3d(x, weight, bias, out, past, residual)
        _changed(out)
    return out


def pack_convolution(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Converts weight [out, in, frames, rows, columns] and bias [out] to the layout of `conv3d`: float32 in blocks of 16 output channels,
    the last block padded with zeros: [blocks, frames, rows, columns, in, 16] and [blocks, 16]."""
    weight, bias = _tensor(weight, "weight"), _tensor(bias, "bias")
    _refuse_gradients("pack_convolution", weight, bias)
    missing = -len(weight) % 16
    blocks = F.pad(weight.float(), (0, 0) * 4 + (0, missing)).unflatten(0, (-1, 16))
    return blocks.permute(0, 3, 4, 5, 2, 1).contiguous(), F.pad(bias.float(), (0, missing)).view(-1, 16)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotation: Tensor | None,
    bias: Tensor | None = None,
    probe: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Frame attention on plain tensors: packs k and v into pages and attends.

    q: [frames, tokens, heads, dim]; k, v: [pages, tokens, heads, dim], k spatially rotated but not by time; rotation: float32
    [pages, frames, heads, pairs, 2] (see `frame_attention`) or None; bias: float32 [pages, heads].
    Returns out [frames, tokens, heads, dim], and with `probe` also the mass, float32 [pages, frames, heads].
    Computes no gradients. Raises ValueError when shapes or dtypes do not fit, and for tensors that require gradients.
    """
    q, k, v = _tensor(q, "q"), _tensor(k, "k"), _tensor(v, "v")
    _refuse_gradients("attention", q, k, v, rotation, bias)
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            f"q is {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)}; expected q [frames, tokens, heads, dim] "
            "and k, v [pages, tokens, heads, dim] of the same heads and dim"
        )
    count, tokens, heads, dim = k.shape
    pages = torch.empty(count, page_elements(k.dtype, tokens, heads, dim, k.device), dtype=k.dtype, device=k.device)
    page_table = torch.arange(count, dtype=torch.int32, device=k.device)
    kv_write(k, v, pages, page_table)
    mass = torch.empty(count, q.shape[0], heads, dtype=torch.float32, device=q.device) if probe else None
    out = frame_attention(q, pages, page_table, tokens, rotation=rotation, bias=bias, mass=mass)
    return out if mass is None else (out, mass)
