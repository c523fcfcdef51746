"""Inputs of frame_attention with a batch, with NaN wherever nothing may be read, and the result of each entry in a call of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from emulated import Emulated
from fp8 import FP8, dequantised, fill
from gpu import Gpu
from rule import check, cos_sin, fp64
from test_emulated_attention import CudaAttention
from torch import Tensor

NOT_THERE = -1


@dataclass
class BatchedAttention:
    """Random inputs. Pages lie in one pool, and entries may share them; the frame number of a page differs from entry to entry. Pages
    that no entry lists are NaN, and so are rotation and bias of absent pages. Queries are a third of wider rows."""

    cuda: Emulated | Gpu
    table: list[list[int]]
    """Pages of each entry; NOT_THERE anywhere."""
    dtype: torch.dtype = torch.bfloat16
    page_dtype: torch.dtype | None = None
    """FP8, or the dtype of the queries."""
    dim: int = 128
    frames: int = 2
    """Frames of an entry."""
    tokens: int = 9
    heads: int = 2
    page_tokens: int = 20
    pairs: int = 22
    bias: bool = True
    """Finite ones, and one page left out for a head."""

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.tokens * 1000 + self.page_tokens + self.dim)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.page_table = torch.tensor(self.table, dtype=torch.int32)
        self.batch, self.pages = self.page_table.shape
        self.there = self.page_table >= 0
        used = sorted(set(self.page_table[self.there].tolist()))
        pool_pages = max(used, default=0) + 2
        wide = normal(self.batch * self.frames, self.tokens, self.heads, 3 * self.dim).to(self.dtype)
        self.q = wide[..., self.dim : 2 * self.dim]
        stored = self.page_dtype or self.dtype
        elements = self.cuda.page_elements(stored, self.page_tokens, self.heads, self.dim)
        self.pool = torch.full((pool_pages, elements), torch.nan, dtype=stored)
        self.k, self.v = (normal(pool_pages, self.page_tokens, self.heads, self.dim).to(self.dtype) for _ in range(2))
        for page in used:
            self._write(page)
        # Frame numbers of hours of video; each entry has its own.
        self.query_frames = torch.randint(10**6, 2 * 10**6, (self.batch, 1), generator=generator) + torch.arange(self.frames)
        self.page_frames = self.query_frames[:, :1] - torch.randint(0, 500, (self.batch, self.pages), generator=generator)
        jitter = 1 + 0.8 * (2 * torch.rand(self.heads, 1, generator=generator) - 1)
        self.radians = (jitter * 1e4 ** (-torch.arange(self.pairs) / max(self.pairs, 1))).double()
        offsets = (self.query_frames[:, None] - self.page_frames[:, :, None]).double()
        self.rotation = cos_sin(offsets[..., None, None] * self.radians).float() if self.pairs else None
        self.biases = 3 * normal(self.batch, self.pages, self.heads) if self.bias else None
        if self.biases is not None:
            self.biases[0, 0, 0] = -torch.inf
        for poisoned in (self.rotation, self.biases):
            if poisoned is not None:
                poisoned[~self.there] = torch.nan

    def _write(self, page: int) -> None:
        if self.page_dtype == FP8:
            fill(self.pool[page], self.k[page], self.v[page])
            self.k[page], self.v[page] = dequantised(self.k[page]), dequantised(self.v[page])
            return
        count = self.heads * self.page_tokens * self.dim
        values = -(-count // 32) * 32
        self.pool[page, :count] = self.k[page].transpose(0, 1).flatten()
        self.pool[page, values : values + count] = self.v[page].transpose(0, 1).flatten()

    def run(self, probe: bool = False, out: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """All entries in one call; mass [batch, pages, frames, heads]."""
        return self._run(self.q, self.page_table, self.rotation, self.biases, probe, out)

    def run_alone(self, entry: int, probe: bool = False) -> tuple[Tensor, Tensor | None]:
        """One entry without a batch; mass [pages, frames, heads]."""
        rows = slice(entry * self.frames, (entry + 1) * self.frames)
        rotation, bias = (None if x is None else x[entry] for x in (self.rotation, self.biases))
        return self._run(self.q[rows], self.page_table[entry], rotation, bias, probe)

    def _run(
        self, q: Tensor, page_table: Tensor, rotation: Tensor | None, bias: Tensor | None, probe: bool, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        out = torch.full(q.shape, torch.nan, dtype=self.dtype) if out is None else out
        frames = len(q) // (1 if page_table.ndim == 1 else len(page_table))
        mass = torch.full((*page_table.shape, frames, self.heads), torch.nan) if probe else None
        self.cuda.frame_attention(
            q=q, pages=self.pool, page_table=page_table, page_tokens=self.page_tokens, rotation=rotation, bias=bias, out=out, mass=mass
        )
        return out, mass

    def expected(self) -> tuple[np.ndarray, np.ndarray, Tensor]:
        """Output and mass by the oracle, of each entry on its pages, and the output by torch in the queries' dtype."""
        out, mass = np.zeros(self.q.shape), np.zeros((self.batch, self.pages, self.frames, self.heads))
        baseline = torch.zeros(self.q.shape, dtype=self.dtype)
        for entry, there in enumerate(self.there):
            if not there.any():
                continue
            case = CudaAttention(
                self.dtype, self.frames, self.tokens, self.heads, self.dim, int(there.sum()), self.page_tokens, self.pairs,
                bias=None if self.biases is None else self.biases[entry, there], cuda=self.cuda,
            )  # fmt: skip
            rows = slice(entry * self.frames, (entry + 1) * self.frames)
            listed = self.page_table[entry, there].long()
            case.q, case.k, case.v, case.radians = self.q[rows], self.k[listed], self.v[listed], self.radians
            case.query_frames, case.page_frames = self.query_frames[entry], self.page_frames[entry, there]
            out[rows], mass[entry, there.numpy()] = case.oracle()
            baseline[rows] = case.torch().nan_to_num(0.0)  # if a head has no page, torch divides 0 by 0
        return out, mass, baseline


def compare(case: BatchedAttention, probes: Sequence[bool] = (True, False)) -> None:
    """Compares with the oracle by the rule of rule.py, and bit by bit with the result of each entry alone, with the probe and without."""
    out, mass = case.run(probes[0])
    ref, ref_mass, baseline = case.expected()
    assert torch.isfinite(out).all() and (mass is None or torch.isfinite(mass).all()), "not finite"
    check(out, baseline, ref, case.dim + case.pages * case.page_tokens)
    if mass is not None:
        assert np.abs(fp64(mass) - ref_mass).max() <= (2e-2 if case.dtype == torch.bfloat16 else 2e-3), "mass"
        assert (mass[~case.there] == 0).all() and (mass >= 0).all(), "mass"
    nothing = (~case.there.any(1)).repeat_interleave(case.frames)
    assert (out[nothing] == 0).all(), "what has no page is not 0"
    assert all(torch.equal(case.run(probe)[0], out) for probe in probes[1:]), "the probe changes the output"
    for entry in range(case.batch):
        expected, expected_mass = case.run_alone(entry, probes[0])
        assert torch.equal(out[entry * case.frames : (entry + 1) * case.frames], expected), "bits depend on the neighbours"
        assert mass is None or torch.equal(mass[entry], expected_mass), "bits of the mass depend on the neighbours"
