"""Calls the kernels on torch tensors, and registers them with `torch.library`. The schema of an op says what it takes and writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lolrt import _core

_local = threading.local()


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    """Inside, the device of x is the current one, which the kernels want."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _run(kernel: Callable[..., None], x: Tensor, *arguments: Any) -> None:
    """Calls a kernel on the device of its tensor x."""
    if not x.is_cuda:
        kernel(*arguments)
        return
    with _device_of(x):
        kernel(*arguments, stream=torch.cuda.current_stream().cuda_stream)


def kv_write(
    k: Tensor, v: Tensor, pages: Tensor, page_table: Tensor,
    weight: Tensor | None, rotation: Tensor | None, rotation_first_channel: int, eps: float,
) -> None:  # fmt: skip
    _run(_core.kv_write, k, None, k, v, None, weight, eps, rotation, rotation_first_channel, None, pages, page_table)


def normalize_queries(q: Tensor, weight: Tensor, rotation: Tensor | None, rotation_first_channel: int, eps: float) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _run(_core.kv_write, q, q, None, None, weight, None, eps, rotation, rotation_first_channel, out, None, None)
    return out


def frame_attention(
    q: Tensor, pages: Tensor, page_table: Tensor, page_tokens: int,
    rotation: Tensor | None, bias: Tensor | None, mass: Tensor | None = None,
) -> Tensor:  # fmt: skip
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    with _device_of(q):  # whose multiprocessors say how much it is
        needed = _core.frame_attention_workspace(q, pages, page_table, page_tokens, rotation, bias, out, mass)
    workspace = _workspace(needed, q.device)
    _run(_core.frame_attention, q, q, pages, page_table, page_tokens, rotation, bias, 0.0, out, mass, workspace)
    return out


def _workspace(needed: int, device: torch.device) -> Tensor:
    """A workspace. On the CPU each thread keeps its own for the next call. On CUDA it is a new tensor, whose memory torch's allocator
    reuses for the next call on the stream."""
    if device.type == "cuda":
        return torch.empty(needed, dtype=torch.uint8, device=device)
    workspace: Tensor | None = getattr(_local, "workspace", None)
    if workspace is None or workspace.numel() < needed:
        workspace = _local.workspace = torch.empty(needed, dtype=torch.uint8, device=device)
    return workspace


def modulated_norm(
    x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, gate: Tensor | None, eps: float
) -> Tensor:  # fmt: skip
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _run(_core.modulated_norm, x, x, residual, gate, scale, shift, eps, out)
    return out


def gelu(x: Tensor) -> None:
    _run(_core.gelu, x, x)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    q, scale = _rows_of_bytes(x)
    _core.quantize_rows(x, q, scale)
    return q, scale


def _rows_of_bytes(x: Tensor) -> tuple[Tensor, Tensor]:
    q = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    return q, torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)


def dequantize_rows(x: Tensor, scale: Tensor, bias: Tensor, out: Tensor) -> None:
    _core.dequantize_rows(x, scale, bias, out)


def sampler_step(sample: Tensor, level: float, velocity: Tensor, after: float, noise: Tensor | None) -> Tensor:
    for name, x in ("sample", sample), ("velocity", velocity), ("noise", noise):
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"sampler_step: {name}: expected a torch tensor, as the sample is one; got {type(x).__name__}")
        if x.shape != sample.shape:
            raise ValueError(f"sampler_step: {name} is {list(x.shape)}; expected the sample's shape, {list(sample.shape)}")
        if not x.is_contiguous() and x.data_ptr() == 0:  # as after its storage was resized to nothing, of which torch would make a copy
            raise ValueError(f"sampler_step: {name}: its data pointer is NULL")
    out = torch.empty(sample.shape, dtype=torch.float32, device=sample.device)
    flat = [None if x is None else x.reshape(-1) for x in (sample, velocity, noise)]
    _run(_core.sampler_step, sample, flat[0], level, flat[1], after, flat[2], out.view(-1))
    return out


def channel_norm(x: Tensor, gamma: Tensor, out: Tensor, silu: bool) -> None:
    _core.channel_norm(x, gamma, silu, out)


def conv3d(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, past: Tensor | None, residual: Tensor | None) -> None:
    _core.conv3d(past, x, weight, bias, residual, out)


def _check_devices(*arguments: object) -> None:
    """Raises unless all tensors are on one device."""
    devices = {x.device for x in arguments if isinstance(x, Tensor)}
    if len(devices) > 1:
        raise ValueError(f"tensors are on {', '.join(sorted(map(str, devices)))}; expected all on one device: move them there")


def _like_first(first: Tensor, *others: object) -> Tensor:
    _check_devices(first, *others)
    return torch.empty_like(first, memory_format=torch.contiguous_format)


def _nothing(*arguments: object) -> None:
    _check_devices(*arguments)


_BOTH = ("CPU", "CUDA")

ARGUMENTS: dict[str, list[tuple[str, str]]] = {}
"""For each op, the names of its arguments and their types: "Tensor", "Tensor(a!)" (written), "Tensor?" (may be None) and so on."""

SCHEMAS: dict[str, str] = {}

# A program may have loaded liblolrt_torch before, which has registered all of them on the CPU from C++.
_from_cpp = hasattr(torch.ops.lolrt, "gelu")
_library = torch.library.Library("lolrt", "FRAGMENT" if _from_cpp else "DEF")
for _schema, _implementation, _fake, _keys in (
    (
        "kv_write(Tensor k, Tensor v, Tensor(a!) pages, Tensor page_table, Tensor? weight, Tensor? rotation, "
        "int rotation_first_channel, float eps) -> ()",
        kv_write,
        _nothing,
        _BOTH,
    ),
    (
        "normalize_queries(Tensor q, Tensor weight, Tensor? rotation, int rotation_first_channel, float eps) -> Tensor",
        normalize_queries,
        _like_first,
        _BOTH,
    ),
    # Two ops of one function: where an op may write a tensor that is absent, Inductor asks for a part of its only result.
    (
        "frame_attention(Tensor q, Tensor pages, Tensor page_table, int page_tokens, Tensor? rotation, Tensor? bias) -> Tensor",
        frame_attention,
        _like_first,
        _BOTH,
    ),
    (
        "frame_attention_probed(Tensor q, Tensor pages, Tensor page_table, int page_tokens, Tensor? rotation, Tensor? bias, "
        "Tensor(a!) mass) -> Tensor",
        frame_attention,
        _like_first,
        _BOTH,
    ),
    (
        "modulated_norm(Tensor(a!) x, Tensor scale, Tensor shift, Tensor? residual, Tensor? gate, float eps) -> Tensor",
        modulated_norm,
        _like_first,
        _BOTH,
    ),
    ("gelu(Tensor(a!) x) -> ()", gelu, _nothing, _BOTH),
    ("quantize_rows(Tensor x) -> (Tensor, Tensor)", quantize_rows, _rows_of_bytes, ("CPU",)),
    ("dequantize_rows(Tensor x, Tensor scale, Tensor bias, Tensor(a!) out) -> ()", dequantize_rows, _nothing, ("CPU",)),
    (
        "sampler_step(Tensor sample, float level, Tensor velocity, float after, Tensor? noise) -> Tensor",
        sampler_step,
        _like_first,
        _BOTH,
    ),
    ("channel_norm(Tensor x, Tensor gamma, Tensor(a!) out, bool silu) -> ()", channel_norm, _nothing, ("CPU",)),
    (
        "conv3d(Tensor x, Tensor weight, Tensor bias, Tensor(a!) out, Tensor? past, Tensor? residual) -> ()",
        conv3d,
        _nothing,
        ("CPU",),
    ),
):
    _name, _, _rest = _schema.partition("(")
    ARGUMENTS[_name] = [(each.split()[1], each.split()[0]) for each in _rest.partition(") ->")[0].split(", ")]
    SCHEMAS[_name] = _schema
    if not _from_cpp:
        _library.define(_schema)
    for _key in _keys:
        if not (_from_cpp and _key == "CPU"):
            _library.impl(_name, _implementation, _key)
    torch.library.register_fake(f"lolrt::{_name}", _fake, lib=_library)
