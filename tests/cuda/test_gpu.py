"""The class that copies tensors to a GPU and back in these tests, tested with the CPU's kernels."""

from __future__ import annotations

import pytest
import torch
from emulated import AbiError
from gpu import Gpu

from lolrt import _core


def test_strided_and_shared_tensors_come_back_as_they_went() -> None:
    q, k, v = torch.randn(2, 5, 3, 4, 64).bfloat16().unbind(2)  # thirds of one linear layer's output
    weight = torch.randn(4, 64).bfloat16()
    outs, pools = (
        [torch.zeros(2, 4, 5, 64).bfloat16().transpose(1, 2) for _ in range(2)],
        torch.zeros(2, 3, _core.page_elements("bfloat16", 5, 4, 64), dtype=torch.bfloat16),
    )
    table = torch.tensor([2, 0], dtype=torch.int32)
    _core.kv_write(q, k, v, weight, weight, 1e-6, None, 0, outs[0], pools[0], table)
    Gpu("cpu").kv_write(q=q, k=k, v=v, q_weight=weight, k_weight=weight, eps=1e-6, q_out=outs[1], pages=pools[1], page_table=table)
    assert torch.equal(*outs) and torch.equal(*pools) and outs[1].any()


def test_what_is_done_in_place_is_done_in_place() -> None:
    wide, ones = torch.randn(2, 3, 80).bfloat16(), torch.ones(1, 64)
    before, expected = wide.clone(), torch.empty(2, 3, 64).bfloat16()
    x = wide[..., 8:72]
    _core.modulated_norm(x, None, None, ones, ones, 1e-6, expected)
    Gpu("cpu").modulated_norm(x=x, scale=ones, shift=ones, eps=1e-6, out=x)
    assert torch.equal(x, expected)
    assert torch.equal(wide[..., :8], before[..., :8]) and torch.equal(wide[..., 72:], before[..., 72:])


def test_attention_gets_a_workspace() -> None:
    q, pages = torch.randn(1, 2, 1, 64).bfloat16(), torch.randn(1, _core.page_elements("bfloat16", 2, 1, 64)).bfloat16()
    shared = dict(q=q, pages=pages, page_table=torch.zeros(1, dtype=torch.int32), page_tokens=2)
    out, mass = torch.full_like(q, torch.nan), torch.zeros(1, 1, 1)
    Gpu("cpu").frame_attention(**shared, out=out, mass=mass)
    assert out.isfinite().all() and mass.item() == pytest.approx(1)
    with pytest.raises(AbiError, match="q: expected float32 or bfloat16") as error:
        Gpu("cpu").frame_attention(**shared | {"q": q.half()}, out=out)
    assert error.value.status == 1
