"""The row ops of csrc/cuda: emulated, and run on a GPU only if there is one. They are compared with the float64 oracle by the rule of
rule.py."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from emulated import AbiError, Emulated
from rule import check, cos_sin, fp64, name_of
from test_row_ops import public_projection, public_step
from torch import Tensor

pytestmark = pytest.mark.whole

dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)


def parts(page: Tensor, tokens: int, heads: int, dim: int) -> tuple[Tensor, Tensor]:
    """K and V [tokens, heads, dim] of a page, by the layout that lolrt.h describes."""
    count = heads * tokens * dim
    values = -(-count // 32) * 32
    return tuple(page[start : start + count].view(heads, tokens, dim).transpose(0, 1) for start in (0, values))


@dtypes
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("tokens", "heads", "dim", "pairs", "first"),
    [(5, 4, 64, 10, 44), (3, 2, 128, 42, 44), (1, 3, 8, 0, 0), (17, 1, 24, 5, 2), (2, 12, 128, 64, 0)],
)
def test_kv_write_matches_the_oracle(
    cuda: Emulated, dtype: torch.dtype, normalise: bool, tokens: int, heads: int, dim: int, pairs: int, first: int
) -> None:
    generator = torch.Generator().manual_seed(tokens + dim)
    # Thirds of one linear layer's output.
    q, k, v = (3 * torch.randn(2, tokens, 3, heads, dim, generator=generator).to(dtype)).unbind(2)
    weights = [torch.randn(heads, dim, generator=generator).to(dtype) if normalise else None for _ in range(2)]
    angles = 6 * torch.rand(tokens, pairs, generator=generator).double() if pairs else None
    shared = dict(eps=1e-6, rotation=None if angles is None else cos_sin(angles).float(), rotation_first_channel=first)
    table = torch.tensor([3, 1], dtype=torch.int32)
    q_out = torch.full((2, heads, tokens, dim), torch.nan, dtype=dtype).transpose(1, 2)
    pool = torch.full((4, cuda.page_elements(dtype, tokens, heads, dim)), torch.nan, dtype=dtype)
    cuda.kv_write(q=q, k=k, v=v, q_weight=weights[0], k_weight=weights[1], q_out=q_out, pages=pool, page_table=table, **shared)

    keys, values = (torch.stack(part) for part in zip(*(parts(pool[page], tokens, heads, dim) for page in (3, 1)), strict=True))
    assert torch.equal(values, v)
    for out, x, weight in ((q_out, q, weights[0]), (keys, k, weights[1])):
        ref = oracle.project(fp64(x), fp64(weight), 1e-6, None if angles is None else fp64(cos_sin(angles)), first)
        check(out, public_projection(x, weight, 1e-6, angles, first), ref, heads * dim)
        if not normalise:
            still = [c for c in range(dim) if not first <= c < first + 2 * pairs]
            assert torch.equal(out[..., still], x[..., still])
    assert pool.isnan().sum() == pool.numel() - 4 * tokens * heads * dim, "padding and other pages are not written"

    q_alone, pool_alone = torch.full_like(q_out, torch.nan), torch.full_like(pool, torch.nan)
    cuda.kv_write(q=q, q_weight=weights[0], q_out=q_alone, **shared)
    cuda.kv_write(k=k, v=v, k_weight=weights[1], pages=pool_alone, page_table=table, **shared)
    assert torch.equal(q_alone, q_out) and torch.equal(pool_alone.view(torch.uint8), pool.view(torch.uint8))


def test_kv_write_rounds_where_public_code_does(cuda: Emulated) -> None:
    """Rounds after the norm, after the weight and after the rotation: all but the rarest results are the same bfloat16."""
    q, weight = torch.randn(2, 40, 4, 128).bfloat16(), torch.randn(4, 128).bfloat16()
    angles = 6 * torch.rand(40, 42).double()
    out = torch.empty_like(q)
    cuda.kv_write(q=q, q_weight=weight, eps=1e-6, rotation=cos_sin(angles).float(), rotation_first_channel=44, q_out=out)
    assert (out != public_projection(q, weight, 1e-6, angles, 44)).float().mean() < 1e-3


@dtypes
@pytest.mark.parametrize(("with_residual", "with_gate"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("frames", "tokens", "channels"), [(3, 5, 256), (1, 3, 1536), (2, 9, 50), (2, 1, 3), (1, 20, 1), (2, 3, 264)])
def test_modulated_norm_matches_the_oracle(
    cuda: Emulated, dtype: torch.dtype, with_residual: bool, with_gate: bool, frames: int, tokens: int, channels: int
) -> None:
    generator = torch.Generator().manual_seed(channels)
    x, residual = (torch.randn(frames, tokens, channels, generator=generator).to(dtype) + 2 for _ in range(2))
    gate, scale, shift = (torch.randn(n, channels, generator=generator) for n in (frames, 1, frames))
    # The padding beside the rows of both holds numbers that would change the result if they were read as channels.
    wide = torch.randn(2, frames, tokens, channels + 8, generator=generator).to(dtype)
    before = wide.clone()
    updated, out = wide[..., :channels]
    updated.copy_(x)
    shared = dict(scale=scale, shift=shift, eps=1e-6)
    cuda.modulated_norm(x=updated, residual=residual if with_residual else None, gate=gate if with_gate else None, out=out, **shared)
    assert torch.equal(wide[..., channels:], before[..., channels:])
    if not with_residual:
        assert torch.equal(updated, x)
    else:
        new_x, _ = oracle.modulated_norm(fp64(x), fp64(residual), fp64(gate) if with_gate else None, fp64(scale), fp64(shift), 1e-6)
        check(updated, x + (gate[:, None] if with_gate else torch.ones(1)).to(dtype) * residual, new_x, 1)
    # The norm is that of the x that was stored.
    _, ref = oracle.modulated_norm(fp64(updated), None, None, fp64(scale), fp64(shift), 1e-6)
    norm = F.layer_norm(updated, (channels,), eps=1e-6)
    check(out, norm * scale[:, None].to(dtype) + shift[:, None].to(dtype), ref, channels)
    in_place = updated.clone()
    cuda.modulated_norm(x=in_place, out=in_place, **shared)
    assert torch.equal(in_place, out)


@dtypes
@pytest.mark.parametrize(("frames", "tokens", "channels", "offset"), [(1, 1, 1, 1), (3, 7, 70, 1), (2, 3, 264, 0), (2, 5, 264, 4)])
def test_gelu_matches_the_oracle(cuda: Emulated, dtype: torch.dtype, frames: int, tokens: int, channels: int, offset: int) -> None:
    """Rows of any length and alignment inside wider ones, with values of any size; the numbers beside them do not change."""
    for size in (0.01, 1.0, 4.0, 30.0):
        wide = torch.randn(frames, tokens, channels + 8, generator=torch.Generator().manual_seed(7)).to(dtype)
        beside = wide.clone()
        x = wide[..., offset : offset + channels]
        x.copy_(size * torch.randn(x.shape, generator=torch.Generator().manual_seed(channels)))
        before = x.clone()
        cuda.gelu(x)
        check(x, F.gelu(before, approximate="tanh"), oracle.gelu(fp64(before)), 1)
        beside[..., offset : offset + channels] = x
        assert torch.equal(wide, beside)


@dtypes
def test_gelu_of_small_and_of_large_numbers(cuda: Emulated, dtype: torch.dtype) -> None:
    small = torch.cat([torch.logspace(-4, 0, 101), -torch.logspace(-4, 0, 101)])[None, None].to(dtype)
    out, ref = small.clone(), oracle.gelu(fp64(small))
    cuda.gelu(out)
    numbers = torch.finfo(dtype)
    assert (np.abs(fp64(out) - ref) <= (numbers.eps / 2 + 2**-20) * np.abs(ref) + numbers.tiny * numbers.eps).all()
    large = torch.tensor([torch.inf, 6e4, 50.0, 0.0, -50.0, -6e4, -torch.inf, torch.nan]).to(dtype)
    out = large[None, None].clone()
    cuda.gelu(out)
    assert torch.equal(out[0, 0, :4], large[:4]) and (out[0, 0, 4:7].float().abs() < 1e-30).all() and out[0, 0, 7].isnan()


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("elements", [1, 255, 1000])
def test_sampler_step_is_the_published_one(cuda: Emulated, elements: int, noisy: bool) -> None:
    sample, velocity, noise = torch.randn(3, elements, generator=torch.Generator().manual_seed(elements))
    expected = public_step(sample, 0.9, velocity, 0.3, noise if noisy else None)
    out = torch.full((elements + 2,), 3.0)
    cuda.sampler_step(level=0.9, after=0.3, sample=sample, velocity=velocity, noise=noise if noisy else None, out=out[1:-1])
    assert torch.equal(out[1:-1], expected) and out[0] == out[-1] == 3


def test_rows_that_do_not_fit(cuda: Emulated) -> None:
    x = torch.zeros(1, 3, 2, 12, dtype=torch.bfloat16)
    with pytest.raises(AbiError, match="kv_write: dim is 12; on CUDA it is a multiple of 8"):
        cuda.kv_write(q=x, q_out=x.clone())
    x = torch.zeros(1, 3, 2, 17, dtype=torch.bfloat16)[..., 1:]
    with pytest.raises(AbiError, match=r"kv_write: rows of q, .* are not 16-byte aligned"):
        cuda.kv_write(q=x, q_out=x.clone())
    with pytest.raises(AbiError, match="gelu: x: expected bfloat16 or float16, got float32"):
        cuda.gelu(torch.zeros(1, 1, 8))
