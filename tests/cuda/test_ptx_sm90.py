"""The PTX that nvcc makes of the attention kernel of sm_90a: interpreted, not run on a GPU. It is compared with the float64 oracle by
the rule of rule.py, and with the emulator. A call fails if the interpreter finds an error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_emulated_attention as attention
import torch
from batched import NOT_THERE, BatchedAttention
from batched import compare as compare_batch
from emulated import Emulated
from interpreted import Interpreted
from rule import name_of
from test_emulated_attention import CudaAttention, compare

pytestmark = pytest.mark.whole

dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=name_of)


@dtypes
@pytest.mark.parametrize(
    "shape",
    [
        dict(tokens=1, page_tokens=1, pages=1, heads=3),
        dict(tokens=40, page_tokens=250, pages=2, heads=1),  # two whole tiles and a tail
        dict(tokens=129, page_tokens=112, pages=3, heads=1, pairs=64),  # a row in the second block, whole tiles alone
        dict(tokens=3, page_tokens=113, pages=2, heads=1, frames=7, pairs=0),
        dict(tokens=40, page_tokens=20, pages=3, heads=5, pairs=4),  # three tiles of five, one after another
        dict(tokens=2, page_tokens=9, pages=2, heads=1, frames=70, pairs=1),  # 64 frames in a block
    ],
    ids=lambda shape: "-".join(f"{k}{v}" for k, v in shape.items()),
)
def test_attention_matches_the_oracle(ptx_of_sm90: Interpreted, dtype: torch.dtype, shape: dict) -> None:
    compare(CudaAttention(dtype, dim=128, cuda=ptx_of_sm90, **({"frames": 1} | shape)))


def test_a_batch(ptx_of_sm90: Interpreted) -> None:
    """The warps that copy, announce and multiply skip the same pages: first, last, in between and all of them."""
    table = [[1, NOT_THERE, 0], [NOT_THERE, 1, NOT_THERE], [NOT_THERE] * 3]
    compare_batch(BatchedAttention(ptx_of_sm90, table=table, page_tokens=130, heads=1), probes=(True,))


def test_a_window_of_sinks_alone(ptx_of_sm90: Interpreted) -> None:
    """Half a year after the last remaining page."""
    case = CudaAttention(torch.bfloat16, dim=128, pages=3, frames=1, tokens=20, page_tokens=20, cuda=ptx_of_sm90)
    case.page_frames, case.query_frames = torch.arange(3), 63_072_000 + torch.arange(1)
    compare(case)


@dtypes
def test_bias_is_added_to_the_scores(ptx_of_sm90: Interpreted, dtype: torch.dtype) -> None:
    """Some pages are left out."""
    attention.test_bias_is_added_to_the_scores(ptx_of_sm90, dtype, 128)


def test_a_head_without_pages_gives_zeros(ptx_of_sm90: Interpreted) -> None:
    bias = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]])
    out, mass = CudaAttention(torch.bfloat16, dim=128, tokens=7, pages=2, frames=1, bias=bias, cuda=ptx_of_sm90).run(probe=True)
    assert (out[:, :, 1] == 0).all() and (mass[:, :, 1] == 0).all()
    assert (out[:, :, 0] != 0).any() and torch.isfinite(out).all()


def test_a_maximum_that_rises(ptx_of_sm90: Interpreted) -> None:
    """The maximum rises within a page and from page to page, so that earlier sums are rescaled."""
    case = CudaAttention(torch.bfloat16, dim=128, tokens=11, pages=2, frames=1, page_tokens=150, heads=1, scale=1.0, cuda=ptx_of_sm90)
    case.k = (case.k * torch.linspace(0.1, 4, case.page_tokens)[:, None, None]).to(case.dtype)
    case.bias = torch.tensor([[0.0], [300.0]])
    case.write()
    compare(case)


def test_nan_in_use_is_not_swallowed(ptx_of_sm90: Interpreted) -> None:
    case = CudaAttention(torch.bfloat16, dim=128, pages=2, tokens=7, page_tokens=40, frames=1, cuda=ptx_of_sm90)
    case.k[1, 5, 0, 3] = torch.nan
    case.write()
    out, _ = case.run()
    assert out[:, :, 0].isnan().all() and not out[:, :, 1].isnan().any()


def test_same_bits_at_any_frame_and_wherever_the_pages_lie(ptx_of_sm90: Interpreted) -> None:
    case = CudaAttention(torch.bfloat16, dim=128, tokens=10, page_tokens=35, pages=2, frames=1, heads=1, cuda=ptx_of_sm90)
    expected, _ = case.run()
    assert torch.equal(case.run(case.rotation(shift_frames=10**9))[0], expected)
    pages = torch.full((9, case.pool.shape[1]), torch.nan, dtype=case.dtype)
    pages[[7, 2]] = case.pool[case.page_table.long()]
    case.pool, case.page_table = pages, torch.tensor([7, 2], dtype=torch.int32)
    assert torch.equal(case.run()[0], expected)


@dtypes
def test_it_does_what_the_emulator_does(ptx_of_sm90: Interpreted, emulated_library: Emulated, dtype: torch.dtype) -> None:
    """The same products and copies. Results differ by the roundings within a product and of 2^x: a few results, by at most one rounding
    of the largest output. There are no bank conflicts."""
    case = CudaAttention(dtype, dim=128, tokens=70, page_tokens=150, pages=2, frames=2, heads=1, cuda=ptx_of_sm90)
    ptx_of_sm90.counts()
    out, mass = case.run(probe=True)
    counts = ptx_of_sm90.counts()
    emulated_library.settings(architecture=900)
    emulated_library.counts()
    expected, expected_mass = replace(case, cuda=emulated_library).run(probe=True)
    same = emulated_library.counts()
    emulated_library.settings()
    assert {name: counts[name] for name in same} == same
    assert counts["bank_conflicts"] == counts["other_conflicts"] == 0
    torch.testing.assert_close(out, expected, rtol=0, atol=torch.finfo(dtype).eps * expected.abs().max().item())
    torch.testing.assert_close(mass, expected_mass, rtol=0, atol=2**-18)
    assert (out != expected).float().mean() < 0.02


def test_every_kernel_is_run(ptx_of_sm90: Interpreted) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for probe in (False, True):
            CudaAttention(dtype, dim=128, tokens=3, page_tokens=3, pages=1, frames=1, heads=1, cuda=ptx_of_sm90).run(probe=probe)
    assert ptx_of_sm90.not_run() == set()
