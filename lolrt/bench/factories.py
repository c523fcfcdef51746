"""The functions that make the cases of each op: its tensors, on torch's default device, and its peers.

Work is counted by the formula of the op, not by the operations of a kernel. Attention: 4 query tokens x key tokens x dim FLOP per head,
and q, pages and output moved once. The other ops: every input read once, every output written once; their FLOP are counted where the case
is made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt import ops
from lolrt.bench import peers
from lolrt.bench.case import (
    BF16,
    FP32,
    WAN,
    Case,
    Images,
    Shape,
    Trial,
    discard,
    dtype_name,
    random,
)
from lolrt.bench.measure import Run
from lolrt.ops import int8
from lolrt.positions.rope import Rope, rotation_tables, spatial_rotation

EPS = 1e-6


def frame_attention(shape: Shape, dtype: torch.dtype, extra: Literal["", "probe", "bias", "int8 pages"] = "", **flags: Any) -> Case:
    """Peers: the public code's RoPE (only of q, because it caches rotated keys) and SDPA, in both dtypes, and the faster one counts; SDPA
    alone.

    With `extra`, the peer is our own op without it; beside pages of int8 the others are, too.
    """
    q_elements = shape.frames * shape.tokens * shape.heads * shape.dim
    kv_elements = 2 * shape.pages * shape.tokens * shape.heads * shape.dim

    def make(compiled: bool) -> Trial:
        q, k, v = (random(n, shape.tokens, shape.heads, shape.dim) for n in (shape.frames, shape.pages, shape.pages))
        chunk = range(shape.pages - shape.frames, shape.pages)
        q_turns, k_turns = (peers.angles(frames, shape.rows, shape.columns, shape.axes) for frames in (chunk, range(shape.pages)))
        spatial, first = _spatial_rotation(shape), shape.axes[0]
        placed = q.clone()
        placed[..., first:] = peers.rope(q[..., first:], torch.view_as_complex(spatial.double())[None, :, None])
        placed = placed.to(dtype)
        page_table = torch.arange(shape.pages, dtype=torch.int32)

        def written(stored: torch.dtype) -> Tensor:
            pages = torch.empty(shape.pages, ops.page_elements(stored, shape.tokens, shape.heads, shape.dim, k.device), dtype=stored)
            ops.kv_write(k.to(dtype), v.to(dtype), pages, page_table, rotation=spatial, rotation_first_channel=first)
            return pages

        pages = written(dtype)
        rope = Rope(sigma=0.0)
        increments = rope.increments(1, shape.heads, first // 2)
        rotation = rotation_tables(increments, rope.offsets(range(shape.pages), shape.frames))[0].to(q.device)
        mass = torch.empty(shape.pages, shape.frames, shape.heads) if extra == "probe" else None
        bias = torch.zeros(shape.pages, shape.heads) if extra == "bias" else None

        def ours(bias: Tensor | None = bias, mass: Tensor | None = mass, pages: Tensor = pages) -> Tensor:
            return ops.frame_attention(placed, pages, page_table, shape.tokens, rotation=rotation, bias=bias, mass=mass)

        if extra and extra != "int8 pages":
            return Trial(ours, {f"lolrt without {extra}": lambda: ours(None, None)})

        def published(other: torch.dtype) -> dict[str, Run]:
            flat_q, flat_k, flat_v = (x.to(other).flatten(0, 1)[None] for x in (q, k, v))
            turned_k = peers.rope(flat_k, k_turns)
            runs: dict[str, Run] = {f"RoPE + SDPA {dtype_name(other)}": lambda: peers.sdpa(peers.rope(flat_q, q_turns), turned_k, flat_v)}
            if other == dtype and shape is not WAN:
                turned_q = peers.rope(flat_q, q_turns)
                runs[f"SDPA {dtype_name(other)}"] = lambda: peers.sdpa(turned_q, turned_k, flat_v)
                if compiled:
                    cos, sin = q_turns.real.float(), q_turns.imag.float()
                    fused = torch.compile(lambda q, k, v: peers.sdpa(peers.rope_float32(q, cos, sin), k, v))
                    runs["torch.compile"] = lambda: fused(flat_q, turned_k, flat_v)
            return runs

        others = {name: run for other in dict.fromkeys((dtype, FP32)) for name, run in published(other).items()}
        if extra:
            return Trial(partial(ours, pages=written(torch.int8)), {f"lolrt without {extra}": ours} | others)
        return Trial(ours, others)

    flops = 4.0 * shape.frames * shape.tokens * shape.pages * shape.tokens * shape.heads * shape.dim
    name = f"{shape.name}, {extra}" if extra else shape.name
    return Case("frame_attention", name, dtype, flops, (2.0 * q_elements + kv_elements) * dtype.itemsize, "flops", make, **flags)


def batched_attention(shape: Shape, dtype: torch.dtype, sessions: int, **flags: Any) -> Case:
    """Sessions in one call, with windows between one chunk and all pages. Peers: our own op, and the public code's RoPE and SDPA, called
    for one session after the other.
    """
    counts = [shape.frames + (shape.pages - shape.frames) * session // (sessions - 1) for session in range(sessions)]
    q_elements = sessions * shape.frames * shape.tokens * shape.heads * shape.dim
    kv_elements = 2 * sum(counts) * shape.tokens * shape.heads * shape.dim

    def make(compiled: bool) -> Trial:
        q = random(sessions * shape.frames, shape.tokens, shape.heads, shape.dim).to(dtype)
        k, v = (random(sum(counts), shape.tokens, shape.heads, shape.dim).to(dtype) for _ in range(2))
        spatial, first = _spatial_rotation(shape), shape.axes[0]
        pages = torch.empty(sum(counts), ops.page_elements(dtype, shape.tokens, shape.heads, shape.dim, k.device), dtype=dtype)
        ops.kv_write(k, v, pages, torch.arange(sum(counts), dtype=torch.int32), rotation=spatial, rotation_first_channel=first)
        placed = q.clone()
        placed[..., first:] = peers.rope(q[..., first:], torch.view_as_complex(spatial.double())[None, :, None])
        rope = Rope(sigma=0.0)
        increments = rope.increments(1, shape.heads, first // 2)
        page_table = torch.full((sessions, shape.pages), -1, dtype=torch.int32)
        rotation = torch.zeros(sessions, shape.pages, shape.frames, shape.heads, first // 2, 2)
        ours_alone: list[Callable[[], Tensor]] = []
        published: list[Callable[[], Tensor]] = []
        for session, count in enumerate(counts):
            group = slice(session * shape.frames, (session + 1) * shape.frames)
            own = slice(sum(counts[:session]), sum(counts[: session + 1]))
            row = torch.arange(own.start, own.stop, dtype=torch.int32)
            turns = rotation_tables(increments, rope.offsets(range(count), shape.frames))[0].to(q.device)
            page_table[session, :count], rotation[session, :count] = row, turns
            ours_alone.append(partial(ops.frame_attention, placed[group], pages, row, shape.tokens, rotation=turns))
            flat_q, flat_k, flat_v = (x.flatten(0, 1)[None] for x in (q[group], k[own], v[own]))
            q_turns, k_turns = (
                peers.angles(frames, shape.rows, shape.columns, shape.axes) for frames in (range(count - shape.frames, count), range(count))
            )
            published.append(partial(_turned_sdpa, flat_q, peers.rope(flat_k, k_turns), flat_v, q_turns))

        def one_by_one(runs: list[Callable[[], Tensor]]) -> Run:
            return lambda: torch.cat([run().flatten(0, -3) for run in runs])

        return Trial(
            lambda: ops.frame_attention(placed, pages, page_table, shape.tokens, rotation=rotation),
            {"lolrt one by one": one_by_one(ours_alone), f"RoPE + SDPA {dtype_name(dtype)}": one_by_one(published)},
        )

    flops = 4.0 * shape.frames * shape.tokens * sum(counts) * shape.tokens * shape.heads * shape.dim
    moved = (2.0 * q_elements + kv_elements) * dtype.itemsize
    return Case("frame_attention", f"{shape.name}, {sessions} sessions", dtype, flops, moved, "flops", make, **flags)


def cross_attention(shape: Shape, dtype: torch.dtype, text_tokens: int = 512, **flags: Any) -> Case:
    """The same op on one page of text, without rotation. Peer: SDPA."""
    q_elements = shape.frames * shape.tokens * shape.heads * shape.dim
    kv_elements = 2 * text_tokens * shape.heads * shape.dim

    def make(compiled: bool) -> Trial:
        q = random(shape.frames, shape.tokens, shape.heads, shape.dim).to(dtype)
        k, v = (random(1, text_tokens, shape.heads, shape.dim).to(dtype) for _ in range(2))
        pages = torch.empty(1, ops.page_elements(dtype, text_tokens, shape.heads, shape.dim, k.device), dtype=dtype)
        page_table = torch.zeros(1, dtype=torch.int32)
        ops.kv_write(k, v, pages, page_table)
        flat_q = q.flatten(0, 1)[None]
        return Trial(
            lambda: ops.frame_attention(q, pages, page_table, text_tokens),
            {f"SDPA {dtype_name(dtype)}": lambda: peers.sdpa(flat_q, k, v)},
        )

    flops = 4.0 * shape.frames * shape.tokens * text_tokens * shape.heads * shape.dim
    bytes_moved = (2.0 * q_elements + kv_elements) * dtype.itemsize
    return Case("frame_attention", f"{shape.name}, text", dtype, flops, bytes_moved, "flops", make, **flags)


def kv_write(shape: Shape, dtype: torch.dtype, **flags: Any) -> Case:
    """Peers: RMSNorm, RoPE and the copies into a flat cache as published; a copy of the same bytes."""
    elements = shape.frames * shape.tokens * shape.heads * shape.dim

    def make(compiled: bool) -> Trial:
        k, v = (random(shape.frames, shape.tokens, shape.heads, shape.dim).to(dtype) for _ in range(2))
        weight, rotation, turns, first = _projection(shape, dtype)
        pages = torch.empty(shape.frames, ops.page_elements(dtype, shape.tokens, shape.heads, shape.dim, k.device), dtype=dtype)
        page_table = torch.arange(shape.frames, dtype=torch.int32)
        flat_k, flat_v = (x.flatten(0, 1)[None] for x in (k, v))
        cache_k, cache_v = torch.empty_like(flat_k), torch.empty_like(flat_v)
        both, copy = torch.cat([flat_k, flat_v]), torch.cat([flat_k, flat_v])

        def ours() -> None:
            ops.kv_write(k, v, pages, page_table, weight=weight, rotation=rotation, rotation_first_channel=first)

        def published() -> None:
            cache_k.copy_(peers.rope(peers.rms_norm(flat_k, weight, EPS), turns))
            cache_v.copy_(flat_v)

        runs: dict[str, Run] = {"torch": published, "memcpy": lambda: discard(copy.copy_(both))}
        if compiled:
            cos, sin = turns.real.float(), turns.imag.float()
            fused = torch.compile(lambda k, v: (peers.rope_float32(peers.rms_norm(k, weight, EPS), cos, sin), v.clone()))
            runs["torch.compile"] = lambda: discard(fused(flat_k, flat_v))
        return Trial(ours, runs)

    # FLOP per element of k: 2 for the sum of squares, 2 for the scale and the weight, 3 for the rotation.
    return Case("kv_write", shape.name, dtype, 7.0 * elements, 4.0 * elements * dtype.itemsize, "bytes", make, **flags)


def normalize_queries(shape: Shape, dtype: torch.dtype, **flags: Any) -> Case:
    """Peers: RMSNorm and RoPE as published."""
    elements = shape.frames * shape.tokens * shape.heads * shape.dim

    def make(compiled: bool) -> Trial:
        q = random(shape.frames, shape.tokens, shape.heads, shape.dim).to(dtype)
        weight, rotation, turns, first = _projection(shape, dtype)
        flat = q.flatten(0, 1)[None]
        runs: dict[str, Run] = {"torch": lambda: peers.rope(peers.rms_norm(flat, weight, EPS), turns)}
        if compiled:
            cos, sin = turns.real.float(), turns.imag.float()
            fused = torch.compile(lambda q: peers.rope_float32(peers.rms_norm(q, weight, EPS), cos, sin))
            runs["torch.compile"] = lambda: fused(flat)
        return Trial(lambda: ops.normalize_queries(q, weight=weight, rotation=rotation, rotation_first_channel=first), runs)

    return Case("normalize_queries", shape.name, dtype, 7.0 * elements, 2.0 * elements * dtype.itemsize, "bytes", make, **flags)


def modulated_norm(shape: Shape, dtype: torch.dtype, **flags: Any) -> Case:
    """With residual and gate. Peers: the same as published, every step in the tensors' dtype."""
    elements = shape.frames * shape.tokens * shape.heads * shape.dim

    def make(compiled: bool) -> Trial:
        x, residual = (random(shape.frames, shape.tokens, shape.heads * shape.dim).to(dtype) for _ in range(2))
        gate, scale, shift = (0.01 * random(1, shape.heads * shape.dim) for _ in range(3))
        their_gate, their_scale, their_shift = (row[:, None].to(dtype) for row in (gate, scale, shift))
        state, theirs = x.clone(), x.clone()
        one_plus_scale = 1 + scale

        def ours() -> Tensor:
            return ops.modulated_norm(state, one_plus_scale, shift, residual=residual, gate=gate, eps=EPS)

        runs: dict[str, Run] = {"torch": lambda: peers.modulated_norm(theirs, residual, their_gate, their_scale, their_shift)[1]}
        if compiled:
            fused = torch.compile(peers.modulated_norm)
            runs["torch.compile"] = lambda: fused(theirs, residual, their_gate, their_scale, their_shift)[1]
        return Trial(ours, runs)

    # FLOP per element: 2 for the gated residual, 3 for mean and variance, 4 for normalising, scale and shift.
    return Case("modulated_norm", shape.name, dtype, 9.0 * elements, 4.0 * elements * dtype.itemsize, "bytes", make, **flags)


def gelu(shape: Shape, dtype: torch.dtype, **flags: Any) -> Case:
    """In place, on values that it hardly changes, so that all rounds work on nearly the same values. Peer: torch's, which allocates."""
    elements = shape.frames * shape.tokens * shape.hidden

    def make(compiled: bool) -> Trial:
        x = 4 + random(shape.frames, shape.tokens, shape.hidden).abs().to(dtype)
        theirs = x.clone()

        def ours() -> Tensor:
            ops.gelu(x)
            return x

        return Trial(ours, {"torch": lambda: F.gelu(theirs, approximate="tanh")})

    # FLOP per element: 5 for the polynomial, 2 for the product, and a tanh, counted as 8.
    return Case("gelu", shape.name, dtype, 15.0 * elements, 2.0 * elements * dtype.itemsize, "bytes", make, **flags)


def quantize_rows(shape: Shape, dtype: torch.dtype, **flags: Any) -> Case:
    """Peer: the same in plain torch. Only the numbers are compared, which may differ by one where they were between two."""
    elements = shape.frames * shape.tokens * shape.heads * shape.dim

    def make(compiled: bool) -> Trial:
        x = random(shape.frames, shape.tokens, shape.heads * shape.dim).to(dtype)
        return Trial(lambda: ops.quantize_rows(x)[0], {"torch": lambda: peers.quantize_rows(x)[0]})

    # FLOP per element: 2 for the largest size, 2 for scaling and rounding.
    return Case("quantize_rows", shape.name, dtype, 4.0 * elements, elements * (dtype.itemsize + 1.0), "bytes", make, **flags)


def dequantize_rows(shape: Shape, dtype: torch.dtype, **flags: Any) -> Case:
    """Peer: the same in plain torch."""
    elements = shape.frames * shape.tokens * shape.heads * shape.dim

    def make(compiled: bool) -> Trial:
        x = random(shape.frames, shape.tokens, shape.heads * shape.dim)
        scale, bias = random(shape.frames, shape.tokens), random(shape.heads * shape.dim)
        out = torch.empty(x.shape, dtype=dtype)
        return Trial(
            lambda: ops.dequantize_rows(x, scale, bias, out),
            {"torch": lambda: torch.addcmul(bias, x, scale[..., None]).to(dtype)},
        )

    return Case("dequantize_rows", shape.name, dtype, 2.0 * elements, elements * (dtype.itemsize + 4.0), "bytes", make, **flags)


def int8_linear(shape: Shape, dtype: torch.dtype, **flags: Any) -> Case:
    """The first layer of the feed-forward with weights and inputs of 8 bits. Peers: torch's product in each dtype; the same in plain
    torch, with its product of int8; and oneDNN's product alone, which ours cannot be faster than."""
    rows, inputs, outputs = shape.frames * shape.tokens, shape.heads * shape.dim, shape.hidden

    def make(compiled: bool) -> Trial:
        x, weight, bias = random(shape.frames, shape.tokens, inputs), random(outputs, inputs) / inputs**0.5, random(outputs)
        values, scale = peers.quantize_weight(weight)
        packed = int8.pack(values, scale, bias)
        ours = x.to(dtype)
        runs: dict[str, Run] = {}
        for other in (BF16, FP32):
            layer = x.to(other), weight.to(other), bias.to(other)
            runs[f"torch {dtype_name(other)}"] = partial(F.linear, *layer)
        runs["torch int8"] = partial(peers.int8_linear, ours, values.t(), scale, bias)
        q, _ = ops.quantize_rows(ours.view(1, rows, inputs))
        runs["oneDNN int8 alone"] = lambda: discard(int8.product(q[0], packed))
        return Trial(lambda: int8.linear(ours, packed), runs)

    moved = dtype.itemsize * rows * (inputs + outputs) + inputs * outputs
    flops = 2.0 * rows * inputs * outputs
    return Case("int8_linear", shape.name, dtype, flops, float(moved), "flops", make, runs_here=int8.multiplies_exactly, **flags)


def sampler_step(name: str, elements: int, **flags: Any) -> Case:
    """To the next noise level. Peer: as published."""

    def make(compiled: bool) -> Trial:
        sample, velocity, noise = random(3, elements)

        def ours() -> Tensor:
            return ops.sampler_step(sample, 0.9, velocity, after=0.5, noise=noise)

        return Trial(ours, {"torch": lambda: 0.5 * (sample.double() - 0.9 * velocity.double()).float() + 0.5 * noise})

    return Case("sampler_step", name, FP32, 5.0 * elements, 16.0 * elements, "bytes", make, **flags)


def channel_norm(images: Images, dtype: torch.dtype, **flags: Any) -> Case:
    """With SiLU, and the margin that the convolution after it reads. Peer: as published, channels first, no margin."""

    def make(compiled: bool) -> Trial:
        x = random(images.frames, images.rows, images.columns, images.channels).to(dtype)
        gamma = 1 + 0.1 * random(images.channels)
        out = torch.empty(images.frames, images.rows + 2, images.columns + 2, images.channels, dtype=dtype)
        theirs, their_gamma = channels_first(x).contiguous(), gamma.view(-1, 1, 1, 1).to(dtype)

        def ours() -> Tensor:
            return channels_first(ops.channel_norm(x, gamma, out, silu=True)[:, 1:-1, 1:-1])

        return Trial(ours, {"torch": lambda: F.silu(F.normalize(theirs, dim=1) * images.channels**0.5 * their_gamma)})

    # FLOP per element: 2 for the sum of squares, 2 for scale and gamma, and a product with a sigmoid, counted as 8.
    moved = 2.0 * images.elements * dtype.itemsize
    return Case("channel_norm", images.name, dtype, 12.0 * images.elements, moved, "bytes", make, **flags)


def conv3d(images: Images, **flags: Any) -> Case:
    """3 x 3 x 3, with as many output as input channels, float32. Peer: as published: the past frames joined, padding, and torch's
    convolution."""
    weights = 27 * images.channels**2

    def make(compiled: bool) -> Trial:
        frames, rows, columns, channels = images.frames, images.rows, images.columns, images.channels
        whole = F.pad(random(2 + frames, rows, columns, channels), (0, 0, 1, 1, 1, 1))
        past, x = whole[:2], whole[2:]
        weight, bias = random(channels, channels, 3, 3, 3) / (27 * channels) ** 0.5, random(channels)
        packed_weight, packed_bias = ops.pack_convolution(weight, bias)
        out = torch.empty(frames, rows, columns, channels)
        inside = channels_first(whole[:, 1:-1, 1:-1])
        their_past, their_x = inside[:, :, :2].contiguous(), inside[:, :, 2:].contiguous()

        def published() -> Tensor:
            return F.conv3d(F.pad(torch.cat([their_past, their_x], 2), (1, 1, 1, 1)), weight, bias)

        return Trial(lambda: channels_first(ops.conv3d(x, packed_weight, packed_bias, out, past=past)), {"torch": published})

    flops = 2.0 * weights * images.frames * images.rows * images.columns
    moved = 4.0 * (2 * images.elements + weights)
    return Case("conv3d", images.name, FP32, flops, moved, "flops", make, **flags)


def channels_first(images: Tensor) -> Tensor:
    """[frames, rows, columns, channels] as [1, channels, frames, rows, columns]."""
    return images.permute(3, 0, 1, 2)[None]


def _spatial_rotation(shape: Shape) -> Tensor:
    return spatial_rotation(shape.rows, shape.columns, shape.axes[1] // 2, shape.axes[2] // 2).to(torch.get_default_device())


def _turned_sdpa(q: Tensor, k: Tensor, v: Tensor, q_turns: Tensor) -> Tensor:
    return peers.sdpa(peers.rope(q, q_turns), k, v)


def _projection(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, int]:
    """RMSNorm weight, our spatial rotation, the peer's full table without time, and our rotation's first channel."""
    weight = (1 + 0.1 * random(shape.heads, shape.dim)).to(dtype)
    rotation = _spatial_rotation(shape)
    # Only frame 0 is used: its temporal factors are 1, so both compute the same. The peer still multiplies by them.
    turns = peers.angles(range(1), shape.rows, shape.columns, shape.axes).repeat(shape.frames, 1, 1)
    return weight, rotation, turns, shape.axes[0]
