"""frame_attention with a batch: every instruction set against the float64 oracle, and each entry, bit for bit, against a call of its
own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rule import DTYPES, check, cos_sin, empty_pages, fp64, name_of, rope
from torch import Tensor

from lolrt import _core

pytestmark = pytest.mark.usefixtures("isa")

ABSENT = -1


def attend(
    q: Tensor, pool: Tensor, page_table: Tensor, page_tokens: int, rotation: Tensor | None, bias: Tensor | None, mass: Tensor | None
) -> Tensor:
    """One call. What it does not write stays NaN; so does workspace that it reads before it has written it."""
    out = torch.full(q.shape, torch.nan, dtype=q.dtype)
    shared = (q, pool, page_table, page_tokens, rotation, bias)
    workspace = torch.full((_core.frame_attention_workspace(*shared, out, mass),), 0xFF, dtype=torch.uint8)
    _core.frame_attention(*shared, 0.0, out, mass, workspace)
    return out


@dataclass
class Batch:
    """Random inputs of one call. Whatever no entry may read is NaN: pages that no row lists, and rotations and biases of absent pages."""

    dtype: torch.dtype
    table: list[list[int]]
    frames: int = 2
    """Frames of one entry."""
    tokens: int = 24
    heads: int = 2
    dim: int = 64
    page_tokens: int = 24
    pairs: int = 22
    has_bias: bool = True
    left_out: float = 0.2
    """The approximate share of biases that are -inf."""

    def __post_init__(self) -> None:
        self.page_table = torch.tensor(self.table, dtype=torch.int32)
        self.batch, self.pages = self.page_table.shape
        self.there = self.page_table != ABSENT
        generator = torch.Generator().manual_seed(self.tokens * 1000 + self.page_tokens + self.dim)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        pool_pages = max(int(self.page_table.max()) + 2, 1)
        self.q = normal(self.batch * self.frames, self.tokens, self.heads, self.dim).to(self.dtype)
        self.k, self.v = (normal(pool_pages, self.page_tokens, self.heads, self.dim).to(self.dtype) for _ in range(2))
        # Each entry has its own frame numbers, also for the pages that entries share.
        self.query_frames = 100 + torch.arange(self.batch * self.frames).view(self.batch, self.frames)
        self.page_frames = torch.randint(0, 100, (self.batch, self.pages), generator=generator)
        self.radians = 1e4 ** (-torch.arange(self.pairs) / max(self.pairs, 1)).double() * torch.tensor([[1.0], [0.7], [1.3]])[: self.heads]
        self.rotation = self.bias = None
        if self.pairs:
            offsets = self.query_frames[:, None] - self.page_frames[:, :, None]
            self.rotation = cos_sin(offsets[..., None, None] * self.radians).float()
            self.rotation[~self.there] = torch.nan
        if self.has_bias:
            self.bias = normal(self.batch, self.pages, self.heads)
            self.bias[torch.rand(self.bias.shape, generator=generator) < self.left_out] = -torch.inf
            self.bias[~self.there] = torch.nan
        self.pool = self.pool_of(self.page_table[self.there].unique())

    def pool_of(self, pages: Tensor) -> Tensor:
        """A pool with these pages; the others are NaN."""
        pool = empty_pages(self.dtype, len(self.k), self.page_tokens, self.heads, self.dim)
        if len(pages):
            _core.kv_write(None, self.k[pages], self.v[pages], None, None, 0.0, None, 0, None, pool, pages.int())
        return pool

    def empty_mass(self) -> Tensor:
        return torch.full((self.batch, self.pages, self.frames, self.heads), torch.nan)

    def run(self, mass: Tensor | None = None) -> Tensor:
        return attend(self.q, self.pool, self.page_table, self.page_tokens, self.rotation, self.bias, mass)

    def group(self, entry: int) -> slice:
        return slice(entry * self.frames, (entry + 1) * self.frames)

    def alone(self, entry: int, mass: Tensor | None = None) -> Tensor:
        """The entry without a batch and without absent pages, from a pool with only its own pages."""
        there = self.there[entry]
        if not there.any():
            if mass is not None:
                mass.zero_()
            return torch.zeros_like(self.q[self.group(entry)])
        pages = self.page_table[entry, there]
        rotation, bias = (None if x is None else x[entry, there] for x in (self.rotation, self.bias))
        spent = None if mass is None else torch.full((len(pages), self.frames, self.heads), torch.nan)
        out = attend(self.q[self.group(entry)], self.pool_of(pages.unique()), pages, self.page_tokens, rotation, bias, spent)
        if mass is not None:
            mass.zero_()[there] = spent
        return out

    def oracle(self) -> tuple[np.ndarray, np.ndarray]:
        table = self.page_table.numpy()
        return oracle.batched_frame_attention(fp64(self.q), fp64(self.k), fp64(self.v), table, fp64(self.rotation), fp64(self.bias))

    def torch(self) -> Tensor:
        """Entry by entry: Q and K rotated by their absolute frames, then scaled dot product attention; 0 for an entry without pages."""
        outs = []
        for entry, there in enumerate(self.there):
            q, pages = self.q[self.group(entry)], self.page_table[entry, there]
            k, v = self.k[pages], self.v[pages]
            if self.pairs:
                q = rope(q, self.query_frames[entry][:, None, None, None] * self.radians)
                k = rope(k, self.page_frames[entry, there][:, None, None, None] * self.radians)
            bias = torch.zeros(len(pages), self.heads) if self.bias is None else self.bias[entry, there]
            mask = bias.T.repeat_interleave(self.page_tokens, 1)[:, None].to(self.dtype)
            rows = [x.flatten(0, 1).transpose(0, 1) for x in (q, k, v)]
            out = F.scaled_dot_product_attention(*rows, attn_mask=mask) if len(pages) else torch.zeros_like(rows[0])
            out = torch.where(mask.isneginf().all(-1, keepdim=True), 0, out)
            outs.append(out.transpose(0, 1).unflatten(0, (self.frames, self.tokens)))
        return torch.cat(outs)


def check_bits(case: Batch) -> None:
    mass, alone = case.empty_mass(), case.empty_mass()
    out = case.run(mass)
    expected = torch.cat([case.alone(entry, alone[entry]) for entry in range(case.batch)])
    assert torch.equal(out, expected), (
        f"entries {[e for e in range(case.batch) if not torch.equal(*(x[case.group(e)] for x in (out, expected)))]}"
    )
    assert torch.equal(mass, alone)
    assert torch.equal(case.run(), expected), "the probe changes the output"
    assert torch.equal(torch.cat([case.alone(entry) for entry in range(case.batch)]), expected)


# Three entries: one shares a page with the next and has a gap, one is full, and one has fewer pages and none at the start.
TABLE = [[3, -1, 0, 5, -1], [4, 3, 1, 2, 0], [-1, -1, 6, -1, 2]]
BATCHES = [
    dict(),
    dict(table=[[2, 0, 1]]),
    dict(table=[[0], [0], [-1], [1]], tokens=1, page_tokens=1, frames=1),
    dict(table=[[-1, -1], [1, -1], [-1, 0]], frames=3, tokens=7, page_tokens=33, dim=128, heads=1),
    dict(tokens=97, page_tokens=63, frames=1, heads=3),
    dict(tokens=9, page_tokens=17, dim=38, pairs=3),
    dict(tokens=12, page_tokens=129, pairs=0, has_bias=False),
    dict(tokens=6, page_tokens=40, dim=256, pairs=128, heads=1, frames=1),
    dict(tokens=34, page_tokens=1, dim=40, pairs=8),
    dict(tokens=530, page_tokens=20, dim=32, pairs=16, heads=1, frames=1),
]


def batch(dtype: torch.dtype, **sizes: object) -> Batch:
    return Batch(dtype, **{"table": TABLE, **sizes})


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("sizes", BATCHES, ids=lambda sizes: "-".join(f"{k}{v}" for k, v in sizes.items()) or "default")
def test_a_batch_matches_the_oracle(dtype: torch.dtype, sizes: dict) -> None:
    case = batch(dtype, **sizes)
    mass = case.empty_mass()
    out = case.run(mass)
    ref, ref_mass = case.oracle()
    check(out, case.torch(), ref, case.dim)
    assert np.abs(fp64(mass) - ref_mass).max() <= (1e-5 if dtype == torch.float32 else 2e-2)
    assert (mass[~case.there] == 0).all()
    check_bits(case)


@pytest.mark.whole
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_neighbours_leave_no_trace(dtype: torch.dtype, data: st.DataObject) -> None:
    """Any mix of entries: with any number of pages, gaps anywhere, shared pages, no pages, and pages that are left out."""
    entries, pages = data.draw(st.integers(1, 5), "batch"), data.draw(st.integers(1, 7), "pages")
    row = st.lists(st.integers(-1, 6) | st.just(ABSENT), min_size=pages, max_size=pages)
    dim = data.draw(st.sampled_from([2, 38, 64]), "dim")
    check_bits(
        Batch(
            dtype,
            data.draw(st.lists(row, min_size=entries, max_size=entries), "table"),
            frames=data.draw(st.integers(1, 3), "frames"),
            tokens=data.draw(st.integers(1, 40) | st.just(100), "tokens"),
            heads=data.draw(st.integers(1, 3), "heads"),
            dim=dim,
            page_tokens=data.draw(st.integers(1, 33) | st.integers(1, 140), "page_tokens"),
            pairs=data.draw(st.integers(0, dim // 2), "pairs"),
            has_bias=data.draw(st.booleans(), "has_bias"),
            left_out=data.draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]), "left_out"),
        )
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_a_row_for_every_frame_gives_the_bits_of_a_row_for_a_group(dtype: torch.dtype) -> None:
    """This is how a caller passes groups of different sizes."""
    case = batch(dtype, frames=3)
    mass = case.empty_mass()
    expected = case.run(mass)
    table = case.page_table.repeat_interleave(case.frames, 0)
    rotation = case.rotation.transpose(1, 2).reshape(len(table), case.pages, 1, case.heads, case.pairs, 2)
    row_mass = torch.full((len(table), case.pages, 1, case.heads), torch.nan)
    bias = case.bias.repeat_interleave(case.frames, 0)
    assert torch.equal(attend(case.q, case.pool, table, case.page_tokens, rotation, bias, row_mass), expected)
    assert torch.equal(row_mass.view(case.batch, case.frames, case.pages, case.heads).transpose(1, 2), mass)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_absent_pages_without_a_batch(dtype: torch.dtype) -> None:
    """A table with one dimension, and one with two and a single row."""
    for row in (*TABLE, [-1] * 5):
        case = batch(dtype, table=[row])
        rotation, bias = case.rotation[0], case.bias[0]
        mass, row_mass, alone = torch.full_like(case.empty_mass()[0], torch.nan), case.empty_mass(), case.empty_mass()
        expected = case.alone(0, alone[0])
        assert torch.equal(attend(case.q, case.pool, case.page_table[0], case.page_tokens, rotation, bias, mass), expected)
        assert torch.equal(case.run(row_mass), expected)
        assert torch.equal(mass, alone[0]) and torch.equal(row_mass, alone)
        assert case.there.any() or (expected == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_same_bits_in_any_order_and_for_any_number_of_threads(dtype: torch.dtype) -> None:
    case = batch(dtype, tokens=130, page_tokens=70)
    _core.set_threads(1)
    mass = case.empty_mass()
    out = case.run(mass).unflatten(0, (case.batch, case.frames))
    order = torch.tensor([2, 0, 1])
    case.q = case.q.unflatten(0, (case.batch, case.frames))[order].flatten(0, 1)
    case.page_table, case.rotation, case.bias = case.page_table[order], case.rotation[order], case.bias[order]
    for threads in (1, 2, 5):
        _core.set_threads(threads)
        mass_again = case.empty_mass()
        assert torch.equal(case.run(mass_again).unflatten(0, (case.batch, case.frames)), out[order])
        assert torch.equal(mass_again, mass[order])


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_nan_stays_in_its_entry(dtype: torch.dtype) -> None:
    """NaN of queries, and of keys and values of a page that the other entries do not list. One thread, so that all entries use its
    scratch memory."""
    case = batch(dtype)
    _core.set_threads(1)
    mass = case.empty_mass()
    expected = case.run(mass)
    case.q[case.group(1)] = torch.nan
    case.pool[4] = torch.nan
    spoilt_mass = case.empty_mass()
    spoilt = case.run(spoilt_mass)
    for entry in (0, 2):
        assert torch.equal(spoilt[case.group(entry)], expected[case.group(entry)])
        assert torch.equal(spoilt_mass[entry], mass[entry])
    listed = (case.bias[1] != -torch.inf).any(0)
    assert spoilt[case.group(1)][:, :, listed].isnan().all()
