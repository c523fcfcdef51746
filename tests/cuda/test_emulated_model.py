"""Whole models on the CUDA kernels: emulated, and run on a GPU only if there is one. Everything above the kernels is the Python layer as
it ships. If the kernels are emulated, torch's matrix products run on the CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from emulated import Emulated
from emulated_device import EmulatedCore, OnCuda, computing_with
from safetensors.torch import load_file
from test_parity import BF16_MAX, BF16_RMS, POLICIES
from torch import Tensor

import lolrt
from lolrt import _core, memory_plan

pytestmark = pytest.mark.whole

BF16 = torch.bfloat16
# Chunks of the rollouts: at the fifth the window is full, from then on frames fall out of it.
CHUNKS = 6


@pytest.fixture(params=["emulated", "gpu"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The device of torch's tensors while the CUDA kernels work on them."""
    if request.param == "emulated":
        core = request.getfixturevalue("core")
        core.calls.clear()
        with computing_with(core):
            yield "cpu"
    elif not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    else:
        yield "cuda"


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def test_a_rollout_is_the_public_codes_within_the_gate_of_bf16(device: str, data: Path, rollout_inputs: dict[str, Tensor]) -> None:
    """Against Self-Forcing's own float64 run, with the tolerance of the CPU's kernels."""

    def noise(first_frame: int, n_frames: int, step: int) -> Tensor:
        if step == 0:
            return rollout_inputs["noise"][first_frame : first_frame + n_frames]
        return rollout_inputs["renoise"][first_frame // 3, step - 1]

    dit = lolrt.load_dit(data / "self_forcing_dmd_small.pt", BF16, device=device)
    stream = lolrt.LatentStream(dit, rollout_inputs["prompt_embeds"], 8, 8, noise=noise, rope=POLICIES["sfjit"])
    latents = torch.cat([chunk.latents.cpu() for chunk in islice(stream, CHUNKS)])
    error = latents - load_file(data / "rollouts.safetensors")["sfjit"][: len(latents)]
    assert rms(error) <= BF16_RMS and error.abs().max() <= BF16_MAX


# A seed with which rounding changes little: with some, two ways to round end in different pictures after all these passes.
SEED = 16


def test_the_embedded_model_makes_the_latents_of_the_cpus_kernels(device: str, core: EmulatedCore) -> None:
    """Its first two chunks, with all their passes (20 and 6, each including the cache pass), compared with the CPU's in bfloat16 and
    float32."""
    options = dict(seed=SEED, probe=True)
    pipe = lolrt.load("tiny", BF16, device=device)
    prompt = pipe.example_prompts[0]
    chunks = list(islice(pipe.latent_stream(prompt, **options), 2))
    for chunk in chunks:
        torch.testing.assert_close(chunk.mass.sum(-1).cpu(), torch.ones(6, 4, 3), atol=1e-3, rtol=0)
    if device == "cpu":
        layers = pipe.dit.config.num_layers
        passes = 20 + 1 + 6 + 1
        assert core.calls == {
            "kv_write": layers * (1 + 3 * passes),  # the text; queries of both attentions, keys and values
            "frame_attention": 2 * layers * passes,
            "frame_attention_workspace": 2 * layers * passes,
            "modulated_norm": (3 * layers + 1) * passes,
            "gelu": layers * passes,
            "sampler_step": passes - 2,
        }
    on_cuda = torch.cat([chunk.latents.cpu() for chunk in chunks])
    rounded, exact = {}, {}
    with computing_with(_core):  # the CPU's kernels
        for dtype, latents in ((BF16, rounded), (torch.float32, exact)):
            whole = lolrt.load("tiny", dtype)
            for seed in (SEED, SEED + 1, SEED + 2):
                latents[seed] = torch.cat([chunk.latents for chunk in islice(whole.latent_stream(prompt, seed=seed), 2)])
    # After 28 passes, bfloat16 alone changes this model's latents by up to several hundredths; how much depends on the noise and the CPU.
    # Two ways to round each differ from float32 by this much, and from each other by no more than both together.
    scatter = max(rms(rounded[seed] - exact[seed]) for seed in rounded)
    assert rms(on_cuda - exact[SEED]) <= 2 * scatter
    assert rms(on_cuda - rounded[SEED]) <= 2 * scatter


def small_model(dtype: torch.dtype) -> lolrt.CausalDiT:
    """A DiT with random weights: how a model acts on a policy does not depend on training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = lolrt.DiTConfig(dim=128, ffn_dim=256, text_dim=16, text_len=8, num_heads=2, num_layers=2)
        return lolrt.CausalDiT(config).requires_grad_(False).to(dtype)


@pytest.mark.parametrize(
    "window",
    [
        lolrt.Window(1, 2, 1, recall_frames=2, store_frames=3),
        lolrt.Window(1, 2, 1, gate=lolrt.SinkGate(-math.inf, "synchronised", head_share=0.0)),
    ],
    ids=["recall", "synchronised gate"],
)
def test_recall_and_a_synchronised_gate_decide_as_on_the_cpu(device: str, window: lolrt.Window) -> None:
    """Both decide by keys and queries, or attention mass, from the kernels: the same frames come back, the sinks are left out in the
    same layers and chunks, and the latents are as near as two ways to round are."""
    prompt = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))

    def rollout(dtype: torch.dtype, where: str) -> tuple[Tensor, list[object]]:
        dit = small_model(dtype).to(where)
        stream = lolrt.LatentStream(dit, prompt, 4, 4, window=window, sampler=lolrt.Sampler((1000, 500)), probe=True)
        chunks = list(islice(stream, 8))
        shut = [(chunk.mass[..., : chunk.sink_frames] == 0).all(-1).flatten(1).all(1).tolist() for chunk in chunks]
        return torch.cat([chunk.latents.cpu() for chunk in chunks]), [[chunk.page_frames for chunk in chunks], shut]

    on_cuda, decided = rollout(BF16, device)
    with computing_with(_core):
        (on_cpu, decided_on_cpu), (exact, decided_exactly) = rollout(BF16, "cpu"), rollout(torch.float32, "cpu")
    assert decided == decided_on_cpu == decided_exactly
    pages, shut = decided
    assert any(map(any, shut)) and not all(map(all, shut)) if window.gate.probes else len(pages[-1]) == 5
    assert rms(on_cuda - exact) <= 2 * rms(on_cpu - exact)
    assert rms(on_cuda - on_cpu) <= 2 * BF16_RMS * on_cpu.std().item()


@pytest.mark.parametrize("multiprocessors", [1, 54, 108, 128, 132, 142, 148])
def test_the_planned_workspace_is_what_the_kernels_ask_for(
    core: EmulatedCore, emulated_library: Emulated, multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the published size, for a GPU with this number of multiprocessors, and no less if there is no GPU to ask. The larger workspace
    of the kernels of sm_80 and sm_90 counts, because pages of 8 bits use the first on sm_90 as well."""
    config, window, tokens = lolrt.DiTConfig(), lolrt.Window(3, 9), 1560
    pages, heads = 12, config.num_heads
    q, pool = torch.empty(3, tokens, heads, 128, dtype=BF16), torch.empty(12, 2 * heads * tokens * 128, dtype=BF16)
    table, mass = torch.zeros(pages, dtype=torch.int32), torch.empty(pages, 3, heads)
    room_to_align = 63
    asked = []
    for architecture in (800, 900):
        emulated_library.settings(architecture=architecture, multiprocessors=multiprocessors)
        asked.append(core.frame_attention_workspace(q, pool, table, tokens, None, None, q, mass) - room_to_align)
    emulated_library.settings()
    assert memory_plan._cuda_workspace(config, window, tokens) >= max(asked)
    properties = SimpleNamespace(multi_processor_count=multiprocessors)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    assert memory_plan._cuda_workspace(config, window, tokens) == max(asked)


@pytest.mark.parametrize("by_offset", [False, True])
def test_arrays_of_other_libraries_reach_the_kernels(core: EmulatedCore, emulated_library: Emulated, by_offset: bool) -> None:
    """By DLPack's protocol alone, as with CuPy's arrays."""
    x = torch.randn(2, 3, 64).bfloat16()
    out = torch.randn(3, 3, 64).bfloat16()[1:].copy_(x)
    emulated_library.buffers([out])
    core._core.gelu(OnCuda(out, by_offset), stream=0)
    torch.testing.assert_close(out, torch.nn.functional.gelu(x, approximate="tanh"))
    # A workspace too: NaN is what lies before it.
    pages, table = torch.randn(2, 2 * 520 * 64).bfloat16(), torch.tensor([1, 0], dtype=torch.int32)
    results = []
    for start in (0, 1000):
        workspace = torch.full((1 << 20,), 0xFF, dtype=torch.uint8)[start:]
        arguments = [OnCuda(each, by_offset) for each in (x[:1, :1, None], pages, table)]
        results.append(torch.empty(1, 1, 1, 64, dtype=BF16))
        emulated_library.buffers([x, pages, table, workspace, results[-1]])
        last = OnCuda(results[-1], by_offset), None, OnCuda(workspace, by_offset)
        core._core.frame_attention(*arguments, 520, None, None, 0.0, *last)
    assert torch.equal(*results) and results[0].isfinite().all()


def test_what_does_not_belong_together_is_refused(core: EmulatedCore) -> None:
    x = torch.zeros(2, 3, 64, dtype=BF16)
    with pytest.raises(core._core.UnsupportedError, match="q_out is on device 1:0, expected 2:0"):
        q = x[None, :, :, :]
        core._core.kv_write(OnCuda(q), None, None, None, None, 0.0, None, 0, q.clone(), None, None)
    with pytest.raises(ValueError, match="workspace: expected a contiguous uint8 tensor of one dimension, where q is"):
        pages, table = torch.zeros(1, 256, dtype=BF16), torch.zeros(1, dtype=torch.int32)
        arguments = [OnCuda(t) for t in (torch.zeros(1, 2, 1, 64, dtype=BF16), pages, table)]
        core._core.frame_attention(*arguments, 2, None, None, 0.0, arguments[0], None, torch.empty(64, dtype=torch.uint8))
    with pytest.raises(core._core.UnsupportedError, match="channel_norm: x is on device type 2; there are kernels for the CPU"):
        core._core.channel_norm(OnCuda(x[None]), torch.ones(64), False, x[None])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_driver_the_binding_says_so() -> None:
    with pytest.raises(_core.UnsupportedError, match=r"gelu: .* no GPU or no driver|CUDA half does not load"):
        _core.gelu(OnCuda(torch.zeros(1, 1, 8, dtype=BF16)))
