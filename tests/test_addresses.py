"""Addresses beyond 2^31 elements and 4 GiB, for every op on the CPU. Each tensor that may have strides is tested once with such a stride
in each of its dimensions, which must not change a bit; tensors that must be contiguous are made as large. Memory is sparse: what is not
accessed takes none."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable

import pytest
import torch
from rule import DTYPES, empty_pages, name_of
from sparse import APART, apart, sparse
from torch import Tensor

from lolrt import _core

HEADS, TOKENS, DIM = 3, 5, 64
Call = Callable[[dict[str, Tensor], torch.dtype], None]


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def frame_attention(t: dict[str, Tensor], dtype: torch.dtype) -> None:
    table = torch.tensor([2, 0], dtype=torch.int32)
    shared = (t["q"], t["pages"], table, TOKENS, None, None)
    workspace = torch.empty(_core.frame_attention_workspace(*shared, t["out"], None), dtype=torch.uint8)
    _core.frame_attention(*shared, 0.0, t["out"], None, workspace)


def kv_write(t: dict[str, Tensor], dtype: torch.dtype) -> None:
    table, weight = torch.tensor([2, 0], dtype=torch.int32), torch.ones(HEADS, DIM, dtype=dtype)
    _core.kv_write(t["q"], t["k"], t["v"], weight, None, 1e-6, None, 0, t["out"], t["pages"], table)


def modulated_norm(t: dict[str, Tensor], dtype: torch.dtype) -> None:
    gate, ones = randn(2, DIM), torch.ones(1, DIM)
    _core.modulated_norm(t["out2"], t["x"], gate, ones, ones, 1e-6, t["out"])


def gelu(t: dict[str, Tensor], dtype: torch.dtype) -> None:
    _core.gelu(t["out"])


def quantize_rows(t: dict[str, Tensor], dtype: torch.dtype) -> None:
    _core.quantize_rows(t["x"], t["q"], torch.empty(2, TOKENS))


def dequantize_rows(t: dict[str, Tensor], dtype: torch.dtype) -> None:
    _core.dequantize_rows(t["sums"], torch.ones(2, TOKENS), torch.ones(DIM), t["out"])


def channel_norm(t: dict[str, Tensor], dtype: torch.dtype) -> None:
    _core.channel_norm(t["pixels"], torch.ones(16), True, t["margins"])


def conv3d(t: dict[str, Tensor], dtype: torch.dtype) -> None:
    _core.conv3d(t["past"], t["wide"], randn(1, 3, 3, 3, 16, 16), randn(1, 16), t["residual"], t["pixels"])


def tensors(op: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a call. "out" and other outputs are filled first, so that they can be compared whole."""
    heads, rows = (2, TOKENS, HEADS, DIM), (2, TOKENS, DIM)
    pages = empty_pages(dtype, 3, TOKENS, HEADS, DIM).fill_(0.5)
    return {
        "frame_attention": {"q": randn(*heads, dtype=dtype), "pages": randn(*pages.shape, dtype=dtype), "out": randn(*heads, dtype=dtype)},
        "kv_write": {name: randn(*heads, dtype=dtype) for name in ("q", "k", "v", "out")} | {"pages": pages},
        "modulated_norm": {name: randn(*rows, dtype=dtype) for name in ("x", "out", "out2")},
        "gelu": {"out": randn(*rows, dtype=dtype)},
        "quantize_rows": {"x": randn(*rows, dtype=dtype), "q": torch.zeros(rows, dtype=torch.uint8)},
        "dequantize_rows": {"sums": randn(*rows), "out": randn(*rows, dtype=dtype)},
        "channel_norm": {"pixels": randn(2, 3, 4, 16), "margins": torch.zeros(2, 5, 6, 16)},
        "conv3d": {
            "past": randn(2, 5, 6, 16), "wide": randn(2, 5, 6, 16), "residual": randn(2, 3, 4, 16), "pixels": torch.zeros(2, 3, 4, 16),
        },
    }[op]  # fmt: skip


# How many dimensions, counted from the first, may have strides; for some tensors fewer.
FREE = {"pages": 1, "past": 2, "wide": 2}
OPS: dict[str, tuple[Call, int]] = {
    "frame_attention": (frame_attention, 3), "kv_write": (kv_write, 3), "modulated_norm": (modulated_norm, 2), "gelu": (gelu, 2),
    "quantize_rows": (quantize_rows, 2), "dequantize_rows": (dequantize_rows, 2),
    "channel_norm": (channel_norm, 3), "conv3d": (conv3d, 3),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("op", OPS)
def test_rows_that_are_far_apart(op: str, dtype: torch.dtype) -> None:
    call, dims = OPS[op]
    if dtype != torch.float32 and "pixels" in tensors(op, dtype):
        pytest.skip("one of the VAE's ops, which are in float32")
    packed = tensors(op, dtype)
    call(packed, dtype)
    for name in packed:
        for dim in range(FREE.get(name, dims)):
            far = tensors(op, dtype)
            far[name] = apart(far[name], dim)
            call(far, dtype)
            assert all(torch.equal(far[each], packed[each]) for each in packed), f"{name}, dimension {dim}"


@pytest.mark.whole
@pytest.mark.parametrize("isa", _core.isas())
def test_a_rotation_of_more_elements(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rotation of the last page of many, most of which are not present."""
    frames, pages, pairs = 520, 65536, 32
    before = _core.isa()
    _core.set_isa(isa)
    try:
        q, table = randn(frames, 1, 1, DIM), torch.full((pages,), -1, dtype=torch.int32)
        pool, out = randn(2, _core.page_elements("float32", 1, 1, DIM)), torch.empty(frames, 1, 1, DIM)
        angles = randn(1, frames, 1, pairs)
        rotation = sparse(pages, frames, 1, pairs, 2, dtype=torch.float32)
        assert rotation.numel() > 2**31
        table[-1], rotation[-1:] = 1, torch.stack([angles.cos(), angles.sin()], -1)
        shared = (q, pool, table, 1, rotation, None)
        workspace = torch.empty(_core.frame_attention_workspace(*shared, out, None), dtype=torch.uint8)
        _core.frame_attention(*shared, 0.0, out, None, workspace)
        expected, one = torch.empty_like(out), (q, pool, table[-1:].clone(), 1, rotation[-1:].clone(), None)
        _core.frame_attention(*one, 0.0, expected, None, workspace)
        assert torch.equal(out, expected)
    finally:
        _core.set_isa(before)


def repeated(elements: int, part: int, own_tail: int) -> tuple[Tensor, Tensor]:
    """float32 [elements] that repeats the same `part` elements of memory, except for a tail; and that part."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    shared_fixed = 0x01 | 0x10
    whole = sparse(elements, dtype=torch.float32)
    file = os.memfd_create("repeated")
    os.ftruncate(file, part * 4)
    for start in range(0, elements - own_tail - part + 1, part):
        address = libc.mmap(whole.data_ptr() + start * 4, part * 4, mmap.PROT_READ | mmap.PROT_WRITE, shared_fixed, file, 0)
        assert address == whole.data_ptr() + start * 4
    os.close(file)
    return whole, whole[:part]


@pytest.mark.slow
def test_a_sampler_step_of_more_elements() -> None:
    """A little more than 2^31 elements, nearly all of them in the same memory."""
    part, tail = 2**22, 1000
    elements = 2**31 + part
    values, out = (repeated(elements, part, part) for _ in range(2))
    for x in (values[1], values[0][-part:]):
        x.copy_(randn(part))
    _core.sampler_step(values[0], 0.9, values[0], 0.0, None, out[0])
    for x, result in ((values[1], out[1]), (values[0][-part:], out[0][-part:])):
        assert torch.equal(result[-tail:], (x[-tail:].double() - 0.9 * x[-tail:].double()).float())
    assert elements > APART


@pytest.mark.slow
def test_attention_to_a_page_of_more_elements() -> None:
    """With very many heads, K of the last head lies beyond 2^31 elements, and V beyond that. The result is that of a page with that head
    only."""
    heads, tokens, dim, dtype = 4096, 4112, 128, torch.bfloat16
    one = tokens * dim
    page, large = empty_pages(dtype, 1, tokens, 1, dim), sparse(1, 2 * heads * one, dtype=dtype)
    assert page.numel() == 2 * one and large.numel() == _core.page_elements("bfloat16", tokens, heads, dim) and heads * one > 2**31
    k, v = (randn(1, tokens, 1, dim + start, dtype=dtype)[..., start:] for start in range(2))
    table = torch.zeros(1, dtype=torch.int32)
    _core.kv_write(None, k, v, None, None, 0.0, None, 0, None, page, table)
    large[0, heads * one - one : heads * one], large[0, -one:] = page[0, :one], page[0, one:]
    outs = []
    for pool, count in ((page, 1), (large, heads)):
        q = torch.zeros(1, 1, count, dim, dtype=dtype)
        q[:, :, -1] = randn(1, 1, dim, dtype=dtype)
        outs.append(torch.empty_like(q))
        shared = (q, pool, table, tokens, None, None)
        workspace = torch.empty(_core.frame_attention_workspace(*shared, outs[-1], None), dtype=torch.uint8)
        _core.frame_attention(*shared, 0.0, outs[-1], None, workspace)
    assert torch.equal(outs[1][:, :, -1:], outs[0]) and outs[0].any() and not outs[1][:, :, :-1].any()
