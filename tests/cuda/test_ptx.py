"""The PTX that nvcc makes of csrc/cuda for sm_80, and of attention's smaller tile for sm_86: interpreted, not run on a GPU. It is
compared with the float64 oracle by the rule of rule.py, and with the emulator. A call fails if the interpreter finds an error. The cases
are those of the emulator's tests."""

from __future__ import annotations

from dataclasses import replace

import oracle
import pytest
import test_emulated_attention as attention
import test_emulated_fp8 as fp8
import test_emulated_rows as rows
import torch
from batched import NOT_THERE, BatchedAttention
from batched import compare as compare_batch
from emulated import Emulated
from fp8 import FP8
from interpreted import Interpreted
from rule import check, cos_sin, fp64, name_of
from test_emulated_attention import SHAPES, CudaAttention, compare, kinds, name_of_shape
from test_emulated_fp8 import fp8_attention, write
from test_row_ops import public_step

pytestmark = pytest.mark.whole

dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)


@kinds
@pytest.mark.parametrize("shape", SHAPES[1:7], ids=name_of_shape)
def test_attention_matches_the_oracle(ptx: Interpreted, dtype: torch.dtype, dim: int, shape: dict) -> None:
    compare(CudaAttention(dtype, dim=dim, cuda=ptx, **shape))


@kinds
def test_small_tiles(ptx_of_small_tiles: Interpreted, dtype: torch.dtype, dim: int) -> None:
    """Blocks of two frames; whole tiles and a tail."""
    bias = torch.tensor([[0.5], [-2.0]])
    compare(CudaAttention(dtype, dim=dim, tokens=70, page_tokens=77, pages=2, frames=2, heads=1, bias=bias, cuda=ptx_of_small_tiles))


@kinds
def test_a_tile_that_is_cut(ptx: Interpreted, dtype: torch.dtype, dim: int) -> None:
    compare(CudaAttention(dtype, dim=dim, tokens=9, page_tokens=520, pages=2, frames=1, heads=1, cuda=ptx))


TABLE = [[1, NOT_THERE, 0], [NOT_THERE, NOT_THERE, 1], [NOT_THERE] * 3]


def test_a_batch(ptx: Interpreted) -> None:
    compare_batch(BatchedAttention(ptx, table=TABLE, dim=64, page_tokens=9))


def test_a_batch_of_pages_of_float8(ptx: Interpreted) -> None:
    compare_batch(BatchedAttention(ptx, table=TABLE[1:], page_dtype=FP8, heads=1), probes=(True,))


def test_a_batch_of_small_tiles(ptx_of_small_tiles: Interpreted) -> None:
    compare_batch(BatchedAttention(ptx_of_small_tiles, table=TABLE, page_tokens=40, heads=1), probes=(False,))


def test_tiles_that_are_cut_in_a_batch(ptx: Interpreted) -> None:
    compare_batch(BatchedAttention(ptx, table=[[0, 1], [NOT_THERE, 0]], dim=64, page_tokens=520, heads=1, frames=1), probes=(True,))


@pytest.mark.parametrize("device", [860, 870, 890, 900, 1000, 1200])
def test_later_devices_by_the_ptx_of_sm_80(ptx: Interpreted, device: int) -> None:
    """If the driver compiles the PTX for later devices, on request or because there is no other code, the kernels are those of sm_80.
    The kernels for the device's own tile size contain no code."""
    ptx.device = device
    try:
        compare(CudaAttention(torch.bfloat16, dim=128, tokens=9, page_tokens=20, pages=2, frames=1, heads=1, cuda=ptx))
    finally:
        ptx.device = 0


def test_a_window_of_sinks_alone(ptx: Interpreted) -> None:
    attention.test_a_window_of_sinks_alone(ptx)


@kinds
def test_bias_is_added_to_the_scores(ptx: Interpreted, dtype: torch.dtype, dim: int) -> None:
    attention.test_bias_is_added_to_the_scores(ptx, dtype, dim)


def test_a_head_without_pages_gives_zeros(ptx: Interpreted) -> None:
    attention.test_a_head_without_pages_gives_zeros(ptx)


def test_scores_of_any_size(ptx: Interpreted) -> None:
    attention.test_scores_of_any_size(ptx, torch.bfloat16, 64)


def test_nan_in_use_is_not_swallowed(ptx: Interpreted) -> None:
    attention.test_nan_in_use_is_not_swallowed(ptx)


@kinds
def test_same_bits_at_any_frame_and_wherever_the_pages_lie(ptx: Interpreted, dtype: torch.dtype, dim: int) -> None:
    attention.test_same_bits_at_any_frame_and_wherever_the_pages_lie(ptx, dtype, dim)


def test_strided_queries_and_outputs(ptx: Interpreted) -> None:
    attention.test_strided_queries_and_outputs(ptx, torch.bfloat16, 128)


@kinds
def test_no_bank_conflicts(ptx: Interpreted, dtype: torch.dtype, dim: int) -> None:
    """The same numbers of products and matrix loads as the emulator's, and no bank conflicts, of loads and stores either."""
    ptx.counts()
    CudaAttention(dtype, dim=dim, tokens=128, page_tokens=70, pages=2, frames=1, heads=1, cuda=ptx).run(probe=True)
    assert ptx.counts()["other_conflicts"] == 0
    attention.test_no_bank_conflicts(ptx, dtype, dim)


@kinds
def test_attention_does_what_the_emulator_does(ptx: Interpreted, emulated_library: Emulated, dtype: torch.dtype, dim: int) -> None:
    """The same products, loads and copies. Results differ by the roundings within a product and of 2^x: a few results, by at most one
    rounding of the largest output."""
    case = CudaAttention(dtype, dim=dim, tokens=70, page_tokens=90, pages=2, frames=2, cuda=ptx)
    ptx.counts()
    out, mass = case.run(probe=True)
    counts = ptx.counts()
    emulated_library.counts()
    expected, expected_mass = replace(case, cuda=emulated_library).run(probe=True)
    same = emulated_library.counts()
    assert {name: counts[name] for name in same} == same
    torch.testing.assert_close(out, expected, rtol=0, atol=torch.finfo(dtype).eps * expected.abs().max().item())
    torch.testing.assert_close(mass, expected_mass, rtol=0, atol=2**-18)
    assert (out != expected).float().mean() < 0.02


@pytest.mark.parametrize(
    "shape",
    [
        dict(tokens=1, page_tokens=1, pages=1, frames=1, heads=3),
        dict(tokens=70, page_tokens=77, pages=3, frames=2, heads=2),
        dict(tokens=3, page_tokens=113, pages=2, heads=1, frames=3, pairs=0),
        dict(tokens=9, page_tokens=520, pages=2, frames=1, heads=1),  # a tile that is cut
    ],
    ids=lambda shape: "-".join(f"{k}{v}" for k, v in shape.items()),
)
def test_attention_to_pages_of_float8(ptx: Interpreted, shape: dict) -> None:
    compare(fp8_attention(ptx, **shape))


def test_pages_of_float8_on_sm_86(ptx_of_small_tiles: Interpreted) -> None:
    compare(fp8_attention(ptx_of_small_tiles, tokens=70, page_tokens=45, pages=2, frames=2, heads=1, bias=torch.tensor([[0.5], [-2.0]])))


def test_small_numbers_of_float8(ptx: Interpreted) -> None:
    fp8.test_small_numbers_beside_a_large_one(ptx, 9)


def test_nan_in_a_page_of_float8(ptx: Interpreted) -> None:
    fp8.test_nan_in_use_is_not_swallowed(ptx, "v")


def test_no_bank_conflicts_of_float8(ptx: Interpreted) -> None:
    ptx.counts()
    fp8_attention(ptx, tokens=128, page_tokens=70, pages=2, frames=1, heads=1).run(probe=True)
    assert ptx.counts()["other_conflicts"] == 0
    fp8.test_no_bank_conflicts(ptx)


def test_pages_of_float8_are_torchs_cast(ptx: Interpreted) -> None:
    fp8.test_kv_write_is_torchs_cast(ptx, True, 5, 3, 42, 44)
    fp8.test_kv_write_is_torchs_cast(ptx, False, 40, 5, 0, 0)
    fp8.test_what_has_no_scale_is_nan(ptx, torch.nan)
    fp8.test_every_bfloat16_is_cast_as_by_torch(ptx, 7)


@dtypes
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("tokens", "heads", "dim", "pairs", "first"), [(5, 4, 64, 10, 44), (1, 3, 8, 0, 0), (17, 1, 24, 5, 2), (2, 12, 128, 64, 0)]
)
def test_kv_write_matches_the_oracle(
    ptx: Interpreted, dtype: torch.dtype, normalise: bool, tokens: int, heads: int, dim: int, pairs: int, first: int
) -> None:
    rows.test_kv_write_matches_the_oracle(ptx, dtype, normalise, tokens, heads, dim, pairs, first)


@dtypes
@pytest.mark.parametrize(("with_residual", "with_gate"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("frames", "tokens", "channels"), [(1, 3, 1536), (2, 9, 50), (2, 1, 3), (2, 3, 264)])
def test_modulated_norm_matches_the_oracle(
    ptx: Interpreted, dtype: torch.dtype, with_residual: bool, with_gate: bool, frames: int, tokens: int, channels: int
) -> None:
    rows.test_modulated_norm_matches_the_oracle(ptx, dtype, with_residual, with_gate, frames, tokens, channels)


@dtypes
@pytest.mark.parametrize(("frames", "tokens", "channels", "offset"), [(1, 1, 1, 1), (3, 7, 70, 1), (2, 3, 264, 0)])
def test_gelu_matches_the_oracle(ptx: Interpreted, dtype: torch.dtype, frames: int, tokens: int, channels: int, offset: int) -> None:
    rows.test_gelu_matches_the_oracle(ptx, dtype, frames, tokens, channels, offset)


@dtypes
def test_gelu_of_small_and_of_large_numbers(ptx: Interpreted, dtype: torch.dtype) -> None:
    rows.test_gelu_of_small_and_of_large_numbers(ptx, dtype)


@pytest.mark.parametrize("noisy", [True, False])
def test_sampler_step_is_the_published_one(ptx: Interpreted, noisy: bool) -> None:
    """By the oracle's rule, and bit by bit: two blocks, the second incomplete."""
    rows.test_sampler_step_is_the_published_one(ptx, 300, noisy)
    sample, velocity, noise = torch.randn(3, 300)
    out = torch.empty(300)
    ptx.sampler_step(level=0.9, after=0.3, sample=sample, velocity=velocity, noise=noise if noisy else None, out=out)
    ref = oracle.sampler_step(fp64(sample), 0.9, fp64(velocity), 0.3, fp64(noise) if noisy else None)
    check(out, public_step(sample, 0.9, velocity, 0.3, noise if noisy else None), ref, 2)


def test_every_kernel_is_run(ptx: Interpreted, ptx_of_small_tiles: Interpreted) -> None:
    """Every kernel that the library has for these architectures."""
    for cuda in (ptx, ptx_of_small_tiles):
        for dtype, dim in attention.KINDS:
            for probe in (False, True):
                CudaAttention(dtype, dim=dim, tokens=3, page_tokens=3, pages=1, frames=1, heads=1, cuda=cuda).run(probe=probe)
        for probe in (False, True):
            fp8_attention(cuda, tokens=3, page_tokens=3, pages=1, frames=1, heads=1).run(probe=probe)
        CudaAttention(torch.bfloat16, dim=64, tokens=3, page_tokens=520, pages=2, frames=1, heads=1, cuda=cuda).run()  # a tile that is cut
    x = torch.randn(1, 2, 1, 8).bfloat16()
    ptx.kv_write(q=x, q_out=torch.empty_like(x))
    write(ptx, x.repeat(1, 1, 1, 16), x.repeat(1, 1, 1, 16), torch.float8_e4m3fn)
    ptx.gelu(x[:, :, 0].clone())
    ptx.modulated_norm(x=x[:, :, 0], scale=torch.ones(1, 8), shift=torch.ones(1, 8), out=torch.empty(1, 2, 8).bfloat16(), eps=1e-6)
    ptx.sampler_step(level=0.9, after=0.0, sample=torch.ones(4), velocity=torch.ones(4), out=torch.empty(4))
    assert ptx.not_run() == ptx_of_small_tiles.not_run() == set()


@dtypes
def test_kv_write_has_the_emulators_bits(ptx: Interpreted, emulated_library: Emulated, dtype: torch.dtype) -> None:
    """All of its operations are exact or rounded once, in the same order."""
    x, weight = torch.randn(2, 9, 3, 4, 64).to(dtype), torch.randn(4, 64).to(dtype)
    q, k, v = x.unbind(2)
    table = torch.tensor([2, 0], dtype=torch.int32)
    results = []
    for cuda in (ptx, emulated_library):
        q_out = torch.full_like(q, torch.nan)
        pool = torch.full((3, cuda.page_elements(dtype, 9, 4, 64)), torch.nan, dtype=dtype)
        angles = cos_sin(6 * torch.rand(9, 10, generator=torch.Generator().manual_seed(1)).double()).float()
        cuda.kv_write(
            q=q, k=k, v=v, q_weight=weight, k_weight=weight, q_out=q_out, pages=pool, page_table=table, eps=1e-6, rotation=angles,
            rotation_first_channel=44,
        )  # fmt: skip
        results.append((q_out.view(torch.int16), pool.view(torch.int16)))
    assert all(torch.equal(mine, expected) for mine, expected in zip(*results, strict=True))


@dtypes
@pytest.mark.parametrize("channels", [264, 50])
def test_modulated_norm_has_the_emulators_bits(ptx: Interpreted, emulated_library: Emulated, dtype: torch.dtype, channels: int) -> None:
    x, residual = torch.randn(2, 2, 5, channels).to(dtype)
    gate, scale, shift = torch.randn(3, 2, channels)
    results = []
    for cuda in (ptx, emulated_library):
        updated, out = x.clone(), torch.empty_like(x)
        cuda.modulated_norm(x=updated, residual=residual, gate=gate, scale=scale, shift=shift, out=out, eps=1e-6)
        results.append(torch.stack([updated, out]))
    assert torch.equal(*results)
