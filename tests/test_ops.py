"""The kernels of every instruction set against the float64 oracle, by one rule:

    max|out - ref| <= 2 * max|torch - ref| + atol

where `torch` is what public code computes in the tensors' own dtype, and atol is one rounding of the largest output to that dtype
and the random walk of the float32 roundings in the longest sum (2^-24 each, sqrt(terms) of them).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lolrt import _core

DTYPES = [torch.float32, torch.bfloat16]


pytestmark = pytest.mark.usefixtures("isa")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = _core.threads()
    yield
    _core.set_threads(before)


def fp64(x: Tensor | None) -> np.ndarray | None:
    return None if x is None else x.double().numpy()


def check(out: Tensor, baseline: Tensor, ref: np.ndarray, terms: int) -> None:
    """The rule of this file, for results of sums of `terms` terms."""
    atol = (torch.finfo(out.dtype).eps / 2 + terms**0.5 * 2**-24) * np.abs(ref).max()
    error, allowed = np.abs(fp64(out) - ref).max(), np.abs(fp64(baseline) - ref).max()
    assert np.isfinite(fp64(out)).all()
    assert error <= 2 * allowed + atol, f"error {error:.3g}, torch's {allowed:.3g}, atol {atol:.3g}"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def empty_pages(dtype: torch.dtype, count: int, tokens: int, heads: int, dim: int) -> Tensor:
    """A pool in which everything that is not written is NaN."""
    return torch.full((count, _core.page_elements(name_of(dtype), tokens, heads, dim)), torch.nan, dtype=dtype)


def unpack(page: Tensor, tokens: int, heads: int, dim: int) -> tuple[Tensor, Tensor]:
    """K and V [tokens, heads, dim] of a page, by the layout that lolrt.h describes."""
    depth = 2 if page.dtype == torch.bfloat16 else 1
    blocks, groups = -(-tokens // 16), -(-tokens // depth)
    keys = page[: heads * blocks * 16 * dim].view(heads, blocks, dim // depth, 16, depth)
    keys = keys.permute(0, 1, 3, 2, 4).reshape(heads, blocks * 16, dim)
    align = 64 // page.element_size()
    start = -(-heads * blocks * 16 * dim // align) * align
    values = page[start : start + heads * groups * depth * dim].view(heads, groups, dim, depth)
    values = values.permute(0, 1, 3, 2).reshape(heads, groups * depth, dim)
    return keys[:, :tokens].transpose(0, 1), values[:, :tokens].transpose(0, 1)


def rope(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding as public code does it: complex128, rounded to x's dtype. angles: float64 [..., pairs], of the first pairs."""
    channels = 2 * angles.shape[-1]
    turned = torch.view_as_complex(x[..., :channels].double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([torch.view_as_real(turned).flatten(-2), x[..., channels:].double()], -1).to(x.dtype)


def cos_sin(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], -1)


@dataclass
class Attention:
    """Random inputs of one call: queries at frames `query_frames`, pages at `page_frames`, frequencies that differ by head."""

    dtype: torch.dtype
    frames: int = 3
    tokens: int = 24
    heads: int = 2
    dim: int = 64
    pages: int = 12
    page_tokens: int = 24
    pairs: int = 22
    bias: Tensor | None = None
    scale: float = 0.0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.tokens * 1000 + self.page_tokens + self.dim)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.dtype)

        self.q = normal(self.frames, self.tokens, self.heads, self.dim)
        self.k = normal(self.pages, self.page_tokens, self.heads, self.dim)
        self.v = normal(self.pages, self.page_tokens, self.heads, self.dim)
        self.query_frames = 100 + torch.arange(self.frames)
        self.page_frames = torch.randperm(103, generator=generator)[: self.pages]
        jitter = 1 + 0.8 * (2 * torch.rand(self.heads, 1, generator=generator) - 1)
        self.radians = (jitter * 1e4 ** (-torch.arange(self.pairs) / max(self.pairs, 1))).double()
        # More pages than are used, in no order; the others and all padding stay NaN.
        self.pool = empty_pages(self.dtype, self.pages + 2, self.page_tokens, self.heads, self.dim)
        self.page_table = torch.randperm(self.pages + 2, generator=generator)[: self.pages].int()
        self.write()

    def write(self) -> None:
        _core.kv_write(None, self.k, self.v, None, None, 0.0, None, 0, None, self.pool, self.page_table)

    def rotation(self, shift_frames: int = 0) -> Tensor:
        turns = torch.empty(self.heads * self.pairs, dtype=torch.uint64)
        _core.phase_increments(self.radians.flatten(), turns)
        offsets = (self.query_frames + shift_frames) - (self.page_frames[:, None] + shift_frames)
        table = torch.empty(self.pages, self.frames, self.heads, self.pairs, 2)
        _core.rotation_table(turns.view(self.heads, self.pairs), offsets, table)
        return table

    def run(self, rotation: Tensor | None = None, probe: bool = False, out: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        rotation = self.rotation() if rotation is None and self.pairs else rotation
        out = torch.full_like(self.q, torch.nan) if out is None else out
        mass = torch.full((self.pages, self.frames, self.heads), torch.nan) if probe else None
        shared = (self.q, self.pool, self.page_table, self.page_tokens, rotation, self.bias)
        workspace = torch.empty(_core.frame_attention_workspace(*shared, out, mass), dtype=torch.uint8)
        _core.frame_attention(*shared, self.scale, out, mass, workspace)
        return out, mass

    def oracle(self) -> tuple[np.ndarray, np.ndarray]:
        offsets = (self.query_frames - self.page_frames[:, None]).double()
        angles = offsets[:, :, None, None] * self.radians
        rotation = fp64(cos_sin(angles)) if self.pairs else None
        return oracle.frame_attention(fp64(self.q), fp64(self.k), fp64(self.v), rotation, fp64(self.bias), self.scale or None)

    def torch(self) -> Tensor:
        """Q and K rotated by their absolute frames, then scaled dot product attention."""
        q, k = self.q, self.k
        if self.pairs:
            q = rope(q, self.query_frames[:, None, None, None] * self.radians)
            k = rope(k, self.page_frames[:, None, None, None] * self.radians)
        mask = None
        if self.bias is not None:
            mask = self.bias.T.repeat_interleave(self.page_tokens, 1)[:, None].to(self.dtype)
        rows = [x.flatten(0, 1).transpose(0, 1) for x in (q, k, self.v)]
        out = F.scaled_dot_product_attention(*rows, attn_mask=mask, scale=self.scale or None)
        return out.transpose(0, 1).unflatten(0, (self.frames, self.tokens))


ATTENTION_SHAPES = [
    dict(),
    dict(dim=128, heads=1, tokens=33, page_tokens=33, frames=1, pages=3),
    dict(tokens=1, page_tokens=1, pages=1, frames=1),
    dict(tokens=7, page_tokens=7, pages=5),
    dict(tokens=5, page_tokens=1560, pages=2, dim=128, heads=1, frames=2),
    dict(tokens=200, page_tokens=65, pages=2, frames=1, dim=128),
    dict(tokens=97, page_tokens=63, pages=3, frames=1, heads=3),
    dict(tokens=12, page_tokens=129, pages=2, pairs=0),
    dict(tokens=12, page_tokens=31, pages=4, pairs=32),
    dict(tokens=9, page_tokens=17, pages=3, dim=38, pairs=3),
    dict(tokens=9, page_tokens=18, pages=3, dim=2, pairs=1),
    dict(tokens=6, page_tokens=40, pages=3, dim=256, pairs=128, heads=1),
    dict(tokens=10, page_tokens=30, pages=3, scale=0.5),
    dict(tokens=290, page_tokens=275, pages=2, frames=1, heads=1, dim=32, pairs=16),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", ATTENTION_SHAPES, ids=lambda shape: "-".join(f"{k}{v}" for k, v in shape.items()) or "default")
def test_frame_attention_matches_the_oracle(dtype: torch.dtype, shape: dict) -> None:
    case = Attention(dtype, **shape)
    out, mass = case.run(probe=True)
    ref, ref_mass = case.oracle()
    check(out, case.torch(), ref, case.dim)
    assert np.abs(fp64(mass) - ref_mass).max() <= (1e-5 if dtype == torch.float32 else 2e-2)
    torch.testing.assert_close(mass.sum(0), torch.ones(case.frames, case.heads), atol=2e-6 * case.pages, rtol=0)
    plain, _ = case.run()
    assert torch.equal(plain, out), "the probe changes the output"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_frame_attention_at_any_geometry(dtype: torch.dtype, data: st.DataObject) -> None:
    """Tails of every kind: of query blocks, key tiles, value pairs, channel vectors, pages."""
    dim = data.draw(st.integers(1, 66).map(lambda n: 2 * n) | st.sampled_from([32, 64, 96, 128]), "dim")
    case = Attention(
        dtype,
        frames=data.draw(st.integers(1, 3), "frames"),
        tokens=data.draw(st.integers(1, 110), "tokens"),
        heads=data.draw(st.integers(1, 3), "heads"),
        dim=dim,
        pages=data.draw(st.integers(1, 4), "pages"),
        page_tokens=data.draw(st.integers(1, 150), "page_tokens"),
        pairs=data.draw(st.integers(0, dim // 2), "pairs"),
    )
    assume(case.q.numel() >= 64)  # the rule compares two maxima, which means little for a few numbers
    check(case.run()[0], case.torch(), case.oracle()[0], case.dim + case.pages * case.page_tokens)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_bias_is_added_to_the_scores(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    bias = 3 * torch.randn(5, 2, generator=generator)
    bias[1, 0] = -torch.inf
    case = Attention(dtype, pages=5, page_tokens=21, bias=bias)
    out, mass = case.run(probe=True)
    ref, ref_mass = case.oracle()
    check(out, case.torch(), ref, case.dim)
    assert np.abs(fp64(mass) - ref_mass).max() <= (1e-5 if dtype == torch.float32 else 2e-2)
    assert (mass[1, :, 0] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_head_without_pages_gives_zeros(dtype: torch.dtype) -> None:
    bias = torch.zeros(3, 2)
    bias[:, 1] = -torch.inf
    out, mass = Attention(dtype, pages=3, bias=bias).run(probe=True)
    assert (out[:, :, 1] == 0).all() and (mass[:, :, 1] == 0).all()
    assert (out[:, :, 0] != 0).any() and torch.isfinite(out).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_scores_of_any_size(dtype: torch.dtype) -> None:
    """Weights that underflow, and a maximum that rises within each page and from page to page, so that what is there is rescaled."""
    case = Attention(dtype, pages=4, page_tokens=200, scale=1.0)
    case.k = (case.k * torch.linspace(0.1, 4, case.page_tokens)[:, None, None]).to(dtype)
    case.write()
    rising = torch.linspace(-200, 200, case.pages)[:, None].repeat(1, 2)
    for bias in (None, rising, rising.flip(0)):
        case.bias = bias
        out, mass = case.run(probe=True)
        ref, ref_mass = case.oracle()
        check(out, case.torch(), ref, case.dim)
        assert np.abs(fp64(mass) - ref_mass).max() <= (1e-4 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_nan_in_use_is_not_swallowed(dtype: torch.dtype) -> None:
    case = Attention(dtype, pages=2, tokens=7)
    case.k[1, 5, 0, 3] = torch.nan
    case.write()
    out, _ = case.run()
    assert out[:, :, 0].isnan().all() and not out[:, :, 1].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_same_bits_at_any_frame_number(dtype: torch.dtype) -> None:
    case = Attention(dtype)
    near, far = case.rotation(), case.rotation(shift_frames=10**9)
    assert torch.equal(near, far)
    assert torch.equal(case.run(near)[0], case.run(far)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_same_bits_wherever_the_pages_lie(dtype: torch.dtype) -> None:
    case = Attention(dtype, page_tokens=35)
    expected, _ = case.run()
    # Rows further apart than a page is long, starting off any cache line.
    wide = torch.full((20, case.pool.shape[1] + 6), torch.nan, dtype=dtype)[:, 2:-4]
    placed = torch.randperm(20)[: case.pages].int()
    wide[placed.long()] = case.pool[case.page_table.long()]
    case.pool, case.page_table = wide, placed
    assert torch.equal(case.run()[0], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    case = Attention(dtype, tokens=130, page_tokens=70)
    _core.set_threads(1)
    out, mass = case.run(probe=True)
    for threads in (2, 5):
        _core.set_threads(threads)
        again, mass_again = case.run(probe=True)
        assert torch.equal(out, again) and torch.equal(mass, mass_again)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_same_bits_from_concurrent_callers(dtype: torch.dtype) -> None:
    case = Attention(dtype, tokens=60)
    expected, _ = case.run()
    results: list[Tensor] = []
    callers = [threading.Thread(target=lambda: results.extend(case.run()[0] for _ in range(20))) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 60 and all(torch.equal(out, expected) for out in results)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_no_rotation_and_rotation_by_zero_are_the_same_bits(dtype: torch.dtype) -> None:
    case = Attention(dtype)
    identity = torch.zeros(case.pages, case.frames, case.heads, case.pairs, 2)
    identity[..., 0] = 1
    rotated, _ = case.run(identity)
    case.pairs = 0
    assert torch.equal(case.run()[0], rotated)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_strided_queries_and_outputs(dtype: torch.dtype) -> None:
    case = Attention(dtype, tokens=13)
    expected, _ = case.run()
    packed = torch.randn(case.frames, case.heads, case.tokens, 3 * case.dim).to(dtype)
    before = packed.clone()
    view = packed[..., case.dim : 2 * case.dim].transpose(1, 2)
    view.copy_(case.q)
    case.q = view
    assert torch.equal(case.run()[0], expected)
    case.run(out=view)  # each query is read before its row is written
    assert torch.equal(view, expected)
    outside = torch.ones(3 * case.dim, dtype=torch.bool)
    outside[case.dim : 2 * case.dim] = False
    assert torch.equal(packed[..., outside], before[..., outside])


# ---- kv_write --------------------------------------------------------------------------------------------------------------


def public_projection(x: Tensor, weight: Tensor | None, eps: float, angles: Tensor | None, first: int) -> Tensor:
    """RMSNorm over all heads, weight and RoPE as in Wan's code; angles: float64 [tokens, pairs]."""
    if weight is not None:
        flat = x.flatten(2).float()
        flat = (flat * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.flatten()
        x = flat.view_as(x)
    if angles is not None:
        x = torch.cat([x[..., :first], rope(x[..., first:], angles[:, None])], -1)
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("tokens", "heads", "dim", "pairs", "first"),
    [(24, 4, 64, 10, 44), (33, 2, 128, 42, 44), (1, 3, 6, 0, 0), (17, 12, 128, 64, 0), (5, 2, 38, 5, 2), (16, 1, 2, 1, 0)],
)
def test_kv_write_matches_the_oracle(
    dtype: torch.dtype, normalise: bool, tokens: int, heads: int, dim: int, pairs: int, first: int
) -> None:
    generator = torch.Generator().manual_seed(tokens + dim)
    q, k, v = (3 * torch.randn(2, tokens, heads, dim, generator=generator).to(dtype) for _ in range(3))
    weights = [torch.randn(heads, dim, generator=generator).to(dtype) if normalise else None for _ in range(2)]
    angles = 6 * torch.rand(tokens, pairs, generator=generator).double() if pairs else None
    rotation = None if angles is None else cos_sin(angles).float()
    q_out = torch.full_like(q, torch.nan)
    pool = empty_pages(dtype, 4, tokens, heads, dim)
    table = torch.tensor([3, 1], dtype=torch.int32)
    _core.kv_write(q, k, v, *weights, 1e-6, rotation, first, q_out, pool, table)

    keys, values = (torch.stack(parts) for parts in zip(*(unpack(pool[page], tokens, heads, dim) for page in (3, 1)), strict=True))
    assert torch.equal(values, v)
    for out, x, weight in ((q_out, q, weights[0]), (keys, k, weights[1])):
        ref = oracle.project(fp64(x), fp64(weight), 1e-6, None if angles is None else fp64(cos_sin(angles)), first)
        check(out, public_projection(x, weight, 1e-6, angles, first), ref, heads * dim)
        if not normalise:
            still = [c for c in range(dim) if not first <= c < first + 2 * pairs]
            assert torch.equal(out[..., still], x[..., still])
    assert pool[[0, 2]].isnan().all()
    # Each half alone gives the same bits.
    q_alone, pool_alone = torch.empty_like(q), empty_pages(dtype, 4, tokens, heads, dim)
    _core.kv_write(q, None, None, weights[0], None, 1e-6, rotation, first, q_alone, None, None)
    _core.kv_write(None, k, v, None, weights[1], 1e-6, rotation, first, None, pool_alone, table)
    assert torch.equal(q_alone, q_out)
    assert torch.equal(pool_alone.view(torch.uint8), pool.view(torch.uint8))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_kv_write_at_any_geometry(dtype: torch.dtype, data: st.DataObject) -> None:
    """Tails of every kind: of token blocks, of tiles that are transposed, of the vectors before, in and after the rotated channels."""
    pairs_of_head = data.draw(st.integers(1, 70), "dim / 2")
    tokens, heads, dim = data.draw(st.integers(1, 50), "tokens"), data.draw(st.integers(1, 3), "heads"), 2 * pairs_of_head
    pairs = data.draw(st.integers(1, pairs_of_head), "pairs")
    first = 2 * data.draw(st.integers(0, pairs_of_head - pairs), "first / 2")
    generator = torch.Generator().manual_seed(tokens + dim)
    q, k, v = torch.randn(1, tokens, 3, heads, dim, generator=generator).to(dtype).unbind(2)
    weight = torch.randn(heads, dim, generator=generator).to(dtype)
    angles = 6 * torch.rand(tokens, pairs, generator=generator).double()
    q_out, pool = torch.full((1, tokens, heads, dim), torch.nan, dtype=dtype), empty_pages(dtype, 1, tokens, heads, dim)
    table = torch.zeros(1, dtype=torch.int32)
    _core.kv_write(q, k, v, weight, weight, 1e-6, cos_sin(angles).float(), first, q_out, pool, table)
    keys, values = unpack(pool[0], tokens, heads, dim)
    assert torch.equal(values, v[0])
    for out, x in ((q_out, q), (keys[None], k)):
        ref = oracle.project(fp64(x), fp64(weight), 1e-6, fp64(cos_sin(angles)), first)
        check(out, public_projection(x, weight, 1e-6, angles, first), ref, heads * dim)
    assert pool.isnan().sum() == pool.numel() - 2 * tokens * heads * dim, "padding is not written"


def test_kv_write_rounds_where_public_code_does() -> None:
    """After the norm, after the weight and after the rotation: all but the rarest results are the same bfloat16."""
    tokens, heads, dim = 100, 4, 128
    q = torch.randn(2, tokens, heads, dim).bfloat16()
    weight = torch.randn(heads, dim).bfloat16()
    angles = 6 * torch.rand(tokens, 42).double()
    out = torch.empty_like(q)
    _core.kv_write(q, None, None, weight, None, 1e-6, cos_sin(angles).float(), 44, out, None, None)
    different = out != public_projection(q, weight, 1e-6, angles, 44)
    assert different.float().mean() < 1e-3


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_kv_write_takes_strided_projections(dtype: torch.dtype) -> None:
    """q, k and v as the thirds of one linear layer's output; the same bits for any number of threads."""
    tokens, heads, dim = 100, 2, 64
    qkv = torch.randn(3, tokens, 3, heads, dim).to(dtype)
    weight = torch.randn(heads, dim).to(dtype)
    rotation = cos_sin(torch.rand(tokens, 10).double()).float()
    table = torch.arange(3, dtype=torch.int32)

    def run(threads: int, *projections: Tensor) -> tuple[Tensor, Tensor]:
        _core.set_threads(threads)
        pool = empty_pages(dtype, 3, tokens, heads, dim)
        out = torch.empty(3, heads, tokens, dim, dtype=dtype).transpose(1, 2)
        _core.kv_write(*projections, weight, weight, 1e-6, rotation, 44, out, pool, table)
        return out, pool.view(torch.uint8)

    expected = run(1, *(x.contiguous() for x in qkv.unbind(2)))
    for threads in (1, 3):
        out, pool = run(threads, *qkv.unbind(2))
        assert torch.equal(out, expected[0]) and torch.equal(pool, expected[1])


# ---- modulated_norm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("with_residual", "with_gate"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("frames", "tokens", "channels"), [(3, 24, 256), (1, 7, 1536), (2, 33, 50), (2, 1, 3), (1, 100, 1)])
def test_modulated_norm_matches_the_oracle(
    dtype: torch.dtype, with_residual: bool, with_gate: bool, frames: int, tokens: int, channels: int
) -> None:
    generator = torch.Generator().manual_seed(channels)
    x, residual = (torch.randn(frames, tokens, channels, generator=generator).to(dtype) + 2 for _ in range(2))
    gate, scale, shift = (torch.randn(n, channels, generator=generator) for n in (frames, 1, frames))
    updated, out = x.clone(), torch.full_like(x, torch.nan)
    _core.modulated_norm(updated, residual if with_residual else None, gate if with_gate else None, scale, shift, 1e-6, out)
    if not with_residual:
        assert torch.equal(updated, x)
    else:
        new_x, _ = oracle.modulated_norm(fp64(x), fp64(residual), fp64(gate) if with_gate else None, fp64(scale), fp64(shift), 1e-6)
        check(updated, x + (gate[:, None] if with_gate else torch.ones(1)).to(dtype) * residual, new_x, 1)
    # The norm is of the x that was stored.
    _, ref = oracle.modulated_norm(fp64(updated), None, None, fp64(scale), fp64(shift), 1e-6)
    norm = F.layer_norm(updated, (channels,), eps=1e-6)
    check(out, norm * scale[:, None].to(dtype) + shift[:, None].to(dtype), ref, channels)
    in_place = updated.clone()
    _core.modulated_norm(in_place, None, None, scale, shift, 1e-6, in_place)
    assert torch.equal(in_place, out)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_modulated_norm_takes_strided_rows_and_any_threads(dtype: torch.dtype) -> None:
    x = torch.randn(3, 400, 64).to(dtype)
    ones, zeros = torch.ones(3, 64), torch.zeros(1, 64)
    expected = torch.empty_like(x)
    _core.set_threads(1)
    _core.modulated_norm(x, None, None, ones, zeros, 1e-6, expected)
    _core.set_threads(4)
    wide, out = torch.zeros(400, 3, 100).to(dtype), torch.zeros(3, 400, 70).to(dtype)
    wide[..., 20:84] = x.transpose(0, 1)
    _core.modulated_norm(wide[..., 20:84].transpose(0, 1), None, None, ones, zeros, 1e-6, out[..., :64])
    assert torch.equal(out[..., :64], expected) and (out[..., 64:] == 0).all()


# ---- gelu ------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gelu_matches_the_oracle(dtype: torch.dtype, data: st.DataObject) -> None:
    """Rows of any length within wider ones, of values of any size; what lies beside them stays NaN."""
    frames, tokens, channels = (data.draw(st.integers(1, most), name) for name, most in (("frames", 3), ("tokens", 40), ("channels", 70)))
    size = data.draw(st.sampled_from([0.01, 1.0, 4.0, 30.0]), "size")
    wide = torch.full((frames, tokens, channels + 3), torch.nan, dtype=dtype)
    x = wide[..., 1 : 1 + channels]
    x.copy_(size * torch.randn(x.shape, generator=torch.Generator().manual_seed(channels)))
    before = x.clone()
    _core.gelu(x)
    check(x, F.gelu(before, approximate="tanh"), oracle.gelu(fp64(before)), 1)
    assert wide[..., 0].isnan().all() and wide[..., 1 + channels :].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gelu_relative_error(dtype: torch.dtype) -> None:
    """Where the result is small the rule of this file sees nothing: small inputs keep their relative accuracy, that of a rounding of
    the result and of the factor 1 / (1 + 2^y), whose 2^y has a relative error of 7.5e-5 in bfloat16."""
    x = torch.cat([torch.logspace(-30, 0, 301), -torch.logspace(-30, 0, 301)])[None, None].to(dtype)
    ref = oracle.gelu(fp64(x))
    out = x.clone()
    _core.gelu(out)
    allowed = 2**-8 + 7.5e-5 if dtype == torch.bfloat16 else 2**-21
    assert (np.abs(fp64(out) - ref) <= allowed * np.abs(ref)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gelu_far_out(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.inf, 3e38, 1e20, 50.0, 0.0, -50.0, -1e20, -3e38, -torch.inf, torch.nan] * 2).to(dtype)
    out = x[None, None].clone()
    _core.gelu(out)
    assert torch.equal(out[0, 0, :5], x[:5])
    assert (out[0, 0, 5:9].abs() < 1e-30).all() and out[0, 0, 9].isnan()
    assert torch.equal(out[0, 0, 10:19], out[0, 0, :9])


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gelu_gives_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    x = torch.randn(3, 301, 333).to(dtype)
    results = []
    for threads in (1, 2, 5):
        _core.set_threads(threads)
        results.append(x.clone())
        _core.gelu(results[-1])
    assert all(torch.equal(out, results[0]) for out in results)
