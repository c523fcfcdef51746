"""frame_attention of every instruction set against the float64 oracle, by the rule of rule.py, and what its bits must not depend on."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rule import DTYPES, check, cos_sin, empty_pages, fp64, name_of, rope
from torch import Tensor

from lolrt import _core

pytestmark = pytest.mark.usefixtures("isa")


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
        # The pool has more pages than are used, in random order. The others and all padding stay NaN.
        self.pool = self.empty_pool()
        self.page_table = torch.randperm(self.pages + 2, generator=generator)[: self.pages].int()
        self.write()

    def empty_pool(self) -> Tensor:
        return empty_pages(self.dtype, self.pages + 2, self.page_tokens, self.heads, self.dim)

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
    dict(tokens=530, page_tokens=40, pages=2, frames=1, heads=1, dim=32, pairs=16),
    dict(tokens=34, page_tokens=1, pages=9, dim=40, pairs=8),
    dict(tokens=8, page_tokens=16, pages=9, dim=72, pairs=8),
    dict(tokens=8, page_tokens=64, pages=5, dim=64),
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


@pytest.mark.whole
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_frame_attention_at_any_geometry(dtype: torch.dtype, data: st.DataObject) -> None:
    """Remainders of every kind: of query blocks, key tiles, value pairs, channel vectors, pages."""
    dim = data.draw(st.integers(1, 66).map(lambda n: 2 * n) | st.sampled_from([32, 64, 96, 128]), "dim")
    case = Attention(
        dtype,
        frames=data.draw(st.integers(1, 3), "frames"),
        tokens=data.draw(st.integers(1, 110), "tokens"),
        heads=data.draw(st.integers(1, 3), "heads"),
        dim=dim,
        pages=data.draw(st.integers(1, 9), "pages"),
        page_tokens=data.draw(st.integers(1, 33) | st.integers(1, 150), "page_tokens"),
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


def check_scores_of_any_size(case: Attention, mass_atol: float) -> None:
    """Weights that underflow, and a maximum that rises within each page and from page to page, so that earlier sums are rescaled."""
    case.k = (case.k * torch.linspace(0.1, 4, case.page_tokens)[:, None, None]).to(case.dtype)
    case.write()
    rising = torch.linspace(-200, 200, case.pages)[:, None].repeat(1, 2)
    for bias in (None, rising, rising.flip(0)):
        case.bias = bias
        out, mass = case.run(probe=True)
        ref, ref_mass = case.oracle()
        check(out, case.torch(), ref, case.dim)
        assert (mass >= 0).all() and np.abs(fp64(mass) - ref_mass).max() <= mass_atol


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("page_tokens", [200, 20])
def test_scores_of_any_size(dtype: torch.dtype, page_tokens: int) -> None:
    case = Attention(dtype, pages=4, page_tokens=page_tokens, scale=1.0)
    check_scores_of_any_size(case, 1e-4 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("bias", [-1e9, torch.finfo(torch.float32).min])
def test_a_finite_bias_may_shut_a_page_out(dtype: torch.dtype, bias: float) -> None:
    """Beside such a bias, scores are below the last place of float32, and the lowest number times log2(e) is -inf. Pages are longer than
    a panel."""
    case = Attention(dtype, pages=3, page_tokens=200, scale=1.0, bias=torch.tensor([[bias] * 2, [0.0] * 2, [bias] * 2]))
    out, mass = case.run(probe=True)
    ref, ref_mass = case.oracle()
    check(out, case.torch(), ref, case.dim)
    assert (mass[[0, 2]] == 0).all() and np.abs(fp64(mass) - ref_mass).max() <= (1e-4 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("bias", [-1e9, torch.finfo(torch.float32).min, torch.finfo(torch.float32).max])
def test_a_bias_that_all_pages_have_changes_nothing(dtype: torch.dtype, bias: float) -> None:
    """Even if the bias is as large as possible."""
    case = Attention(dtype, pages=3, page_tokens=70, scale=1.0)
    (ref, ref_mass), baseline = case.oracle(), case.torch()
    case.bias = torch.full((3, 2), bias)
    out, mass = case.run(probe=True)
    check(out, baseline, ref, case.dim)
    assert np.abs(fp64(mass) - ref_mass).max() <= (1e-4 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_scores_whose_last_place_is_large(dtype: torch.dtype) -> None:
    """In float32 the scores are 32 apart, so that no maximum keeps all weights small. Each query sees a single key."""
    case = Attention(dtype, pages=2, page_tokens=200, pairs=0, scale=1e7)
    out, mass = case.run(probe=True)
    ref, ref_mass = case.oracle()
    check(out, case.torch(), ref, case.dim)
    assert np.abs(fp64(mass) - ref_mass).max() <= 1e-5


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
    # Rows further apart than the length of a page, starting off any cache line.
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
