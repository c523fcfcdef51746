"""What is measured on a GPU: the cases of `lolrt bench` that have CUDA kernels, more peers of attention, and a whole chunk."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

import lolrt
from bench.models import PLAIN, WINDOW, Model, vae_decode
from lolrt.bench import peers
from lolrt.bench.case import BF16, ONE_HEAD, TINY, WAN, Case, Shape, Trial, discard, random
from lolrt.bench.cases import CASES
from lolrt.bench.factories import batched_attention
from lolrt.bench.measure import Run

WHOLE = Model("1.3B", lolrt.DiTConfig(), (60, 104))
SHAPES = {shape.name: shape for shape in (TINY, ONE_HEAD, WAN)}
CPU_ONLY = ("channel_norm", "conv3d")
SESSIONS = 4  # of a batch at full size, whose windows hold from one chunk to all their pages

# Attention of [batch, tokens, heads, dim] alone, without any RoPE, in libraries that may be there: module, function, how it is called.
LIBRARIES: dict[str, tuple[str, str, Callable[[Callable[..., object], Tensor, Tensor, Tensor], object]]] = {
    "flash-attn": ("flash_attn", "flash_attn_func", lambda f, q, k, v: f(q, k, v)),
    "flash-attn 3": ("flash_attn_interface", "flash_attn_func", lambda f, q, k, v: f(q, k, v)),
    "FlashInfer": ("flashinfer", "single_prefill_with_kv_cache", lambda f, q, k, v: f(q[0], k[0], v[0], causal=False)),
}


def attention_peers(shape: Shape) -> dict[str, Run]:
    """torch's SDPA and the libraries that run here. Their results are not compared, because they compute other numbers than ours."""
    q = random(1, shape.frames * shape.tokens, shape.heads, shape.dim).to(BF16)
    k, v = (random(1, shape.pages * shape.tokens, shape.heads, shape.dim).to(BF16) for _ in range(2))
    runs: dict[str, Run] = {"SDPA alone": lambda: discard(peers.sdpa(q, k, v))}
    for name, (module, function, call) in LIBRARIES.items():
        if importlib.util.find_spec(module) is None:
            continue
        try:
            found = getattr(importlib.import_module(module), function)
            call(found, q, k, v)
        except Exception as error:  # whatever error a library raises on this GPU, the others are still measured
            print(f"{name} does not run here: {error}", file=sys.stderr)
            continue
        runs[f"{name} alone"] = lambda call=call, found=found: discard(call(found, q, k, v))  # type: ignore[misc]
    return runs


def with_peers(case: Case, more: Callable[[], Mapping[str, Run]]) -> Case:
    def make(compiled: bool) -> Trial:
        trial = case.make(compiled)
        return Trial(trial.ours, {**trial.peers, **more()})

    return replace(case, make=make)


def op_cases() -> list[Case]:
    """The cases of `lolrt.bench` in bfloat16 (the sampler's step in float32) whose head dimension has kernels, and a batch at full size."""
    found = []
    for case in (*CASES, batched_attention(WAN, BF16, SESSIONS)):
        name, _, extra = case.shape.partition(", ") if case.shape not in SHAPES else (case.shape, "", "")
        if case.op in CPU_ONLY or name == "odd" or (case.dtype != BF16 and case.op != "sampler_step"):
            continue
        if case.op == "frame_attention" and not extra:
            case = with_peers(case, lambda shape=SHAPES[case.shape]: attention_peers(shape))  # type: ignore[misc]
        found.append(case)
    return found


def chunk(model: Model, kv_dtype: torch.dtype | None = None) -> Case:
    """The latents of a chunk over a full window, with all passes and random weights; drawing the noise on the CPU is included. kv_dtype:
    as in `lolrt.LatentStream`; bytes are counted for bfloat16 pages."""

    def make(compiled: bool) -> Trial:
        torch.manual_seed(0)
        dit = lolrt.CausalDiT(model.config).to(BF16).requires_grad_(False)
        with torch.device("cpu"):  # as a user has it: only the model is on the GPU
            stream = lolrt.LatentStream(
                dit, model.prompt(), *model.latent, rope=PLAIN, window=WINDOW, sampler=model.sampler, kv_dtype=kv_dtype
            )

        def ours() -> Tensor:
            with torch.device("cpu"):
                return next(stream).latents

        for _ in range(WINDOW.pages // WINDOW.chunk_frames):
            ours()
        return Trial(ours, {})

    passes = len(model.sampler.timesteps) + 1
    flops, moved = passes * model.pass_flops(), passes * model.pass_bytes(BF16)
    name = model.name if kv_dtype is None else f"{model.name}, pages of 8 bits"
    return Case("chunk", name, BF16, flops, moved, "flops", make, roundings=passes)


def gpu_cases() -> list[Case]:
    vae = vae_decode("Wan2.1, latent 60 x 104", lolrt.VAEConfig(), (60, 104), BF16)
    return [*op_cases(), chunk(WHOLE), chunk(WHOLE, torch.float8_e4m3fn), vae]
