"""Streams with pages of float8_e4m3fn: emulated, and run on a GPU only if there is one. They are compared with the CPU's bfloat16
kernels on K and V that torch has quantised."""

from __future__ import annotations

from itertools import islice
from types import ModuleType
from typing import Any

import pytest
import torch
from emulated_device import EmulatedCore, computing_with
from fp8 import FP8, dequantised, fill
from test_emulated_model import BF16, device, rms  # noqa: F401 - a fixture
from torch import Tensor

import lolrt
from lolrt import _core, ops
from lolrt.memory_plan import plan

pytestmark = pytest.mark.whole

PROMPT = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
CONFIG = lolrt.DiTConfig(dim=256, ffn_dim=256, text_dim=16, text_len=8, num_heads=2, num_layers=2)
WINDOW = lolrt.Window(1, 2, 1)


def model(dtype: torch.dtype, where: str = "cpu") -> lolrt.CausalDiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lolrt.CausalDiT(CONFIG).requires_grad_(False).to(dtype).to(where)


def stream_of(dit: lolrt.CausalDiT, window: lolrt.Window = WINDOW, kv_dtype: torch.dtype | None = None) -> lolrt.LatentStream:
    return lolrt.LatentStream(dit, PROMPT, 8, 8, window=window, sampler=lolrt.Sampler((1000, 500)), kv_dtype=kv_dtype)


def rollout(stream: lolrt.LatentStream, chunks: int = 6) -> tuple[Tensor, list[tuple[int, ...]]]:
    made = list(islice(stream, chunks))
    return torch.cat([chunk.latents.cpu() for chunk in made]), [chunk.page_frames for chunk in made]


class QuantisingCore:
    """The CPU's kernels, whose pages hold keys and values of frames rounded to float8_e4m3fn; those of the text are not rounded."""

    def __init__(self, core: ModuleType) -> None:
        self._core = core

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def kv_write(
        self,
        q: Any,
        k: Any,
        v: Any,
        q_weight: Any,
        k_weight: Any,
        eps: float,
        rotation: Any,
        first: int,
        q_out: Any,
        pages: Any,
        table: Any,
    ) -> None:
        if k is None or rotation is None:
            self._core.kv_write(q, k, v, q_weight, k_weight, eps, rotation, first, q_out, pages, table)
            return
        keys = torch.empty(k.shape, dtype=k.dtype)
        self._core.kv_write(k, None, None, k_weight, None, eps, rotation, first, keys, None, None)
        kept = (torch.stack([dequantised(frame) for frame in x]) for x in (keys, v))
        self._core.kv_write(None, *kept, None, None, 0.0, None, 0, None, pages, table)


@pytest.mark.parametrize("window", [WINDOW, lolrt.Window(1, 2, 1, recall_frames=2, store_frames=3)], ids=["window", "recall"])
def test_a_rollout_differs_by_what_the_pages_lose(device: str, window: lolrt.Window) -> None:  # noqa: F811
    """Latents differ by no more than two ways to round do; recalled frames, which depend on the keys, are the same."""
    on_cuda, pages = rollout(stream_of(model(BF16, device), window, FP8))
    with computing_with(_core):
        (on_cpu, _), (exact, _) = (rollout(stream_of(model(dtype), window)) for dtype in (BF16, torch.float32))
    with computing_with(QuantisingCore(_core)):
        quantised, quantised_pages = rollout(stream_of(model(BF16), window))
    assert pages == quantised_pages and len(pages[-1]) == 3 + window.recall_frames
    roundings, lost = rms(on_cpu - exact), rms(quantised - on_cpu)
    assert rms(on_cuda - quantised) <= roundings
    assert 0 < rms(on_cuda - on_cpu) <= lost + roundings
    assert lost <= 0.05 * on_cpu.std().item()


def test_a_saved_stream_goes_on_bit_by_bit_and_only_with_such_pages(device: str) -> None:  # noqa: F811
    dit = model(BF16, device)
    stream = stream_of(dit, kv_dtype=FP8)
    rollout(stream, 4)
    state = stream.state_dict()
    assert state["cache.pages"].dtype == FP8
    expected, _ = rollout(stream, 2)
    resumed = stream_of(dit, kv_dtype=FP8)
    resumed.load_state_dict(state)
    assert torch.equal(rollout(resumed, 2)[0], expected)
    with pytest.raises(lolrt.Error, match=r"model\.pages is float8_e4m3fn in the saved one and bfloat16 here"):
        stream_of(dit).load_state_dict(state)


def test_mean_key_is_that_of_the_numbers() -> None:
    k, v = torch.randn(2, 7, 3, 128).bfloat16()
    k = k * torch.tensor([1.0, 2.0**-9, 2.0**5])[:, None].bfloat16()
    page = torch.empty(ops.page_elements(FP8, 7, 3, 128, torch.device("cuda")), dtype=FP8)
    fill(page, k, v)
    torch.testing.assert_close(ops._row_keys(page, 7, 3, 128), dequantised(k).float().transpose(0, 1), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_there_are_no_such_pages_on_the_cpu(dtype: torch.dtype) -> None:
    with pytest.raises(lolrt.Error, match=r"pages of torch.float8_e4m3fn for a model of .* on cpu; expected its own type, on the CPU"):
        stream_of(model(dtype), kv_dtype=FP8)
    with pytest.raises(_core.UnsupportedError, match="there are pages of float8_e4m3fn on CUDA alone"):
        ops.page_elements(FP8, 7, 3, 128)
    with pytest.raises(_core.UnsupportedError, match="kv_write: pages: there are pages of float8_e4m3fn on CUDA alone"):
        x = torch.zeros(1, 1, 1, 128, dtype=dtype)
        _core.kv_write(None, x, x, None, None, 0.0, None, 0, None, torch.zeros(1, 4, dtype=FP8), torch.zeros(1, dtype=torch.int32))


def test_other_pages_and_models_are_refused(core: EmulatedCore) -> None:
    small_heads = lolrt.DiTConfig(dim=128, ffn_dim=256, text_dim=16, text_len=8, num_heads=2, num_layers=1)
    with computing_with(core):
        for dit, kv_dtype in ((model(torch.float16), FP8), (model(BF16), torch.float16)):
            with pytest.raises(lolrt.Error, match=f"pages of {kv_dtype} for a model of {dit.dtype} with heads of 128"):
                stream_of(dit, kv_dtype=kv_dtype)
    with pytest.raises(lolrt.Error, match=r"with heads of 64 channels on cuda; .*heads of 128 channels"):
        plan(small_heads, lolrt.VAEConfig(dim=16), 32, 48, device="cuda", kv_dtype=FP8)
    with pytest.raises(lolrt.Error, match=r"pages of torch.int8 for a model of .* on cuda; expected its own type, on the CPU"):
        plan(CONFIG, lolrt.VAEConfig(dim=16), 64, 96, device="cuda", kv_dtype=torch.int8)


def test_the_plan_counts_half_the_pages() -> None:
    full, half = (plan(CONFIG, lolrt.VAEConfig(dim=16), 64, 96, device="cuda", kv_dtype=kv_dtype).stream for kv_dtype in (None, FP8))
    name = "12 pages of 2 layers"
    tokens, heads, layers, pages = 24, 2, 2, 12
    assert full[name] == layers * pages * 2 * 2 * tokens * heads * 128
    assert half[name] == layers * pages * (2 * tokens * heads * 128 + 64)
    assert {x: full[x] for x in full if x != name} == {x: half[x] for x in half if x != name}
