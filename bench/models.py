"""Whole models against the same models as published: a pass of one layer, a chunk, the VAE's decoder.

Both sides have the same weights: the embedded model's in cases named tiny, random ones otherwise. FLOP count only the products
(attention, linear layers, convolutions). Bytes count the weights once per pass, and the pages of the window.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

import lolrt
from bench.published import PublishedDiT, PublishedStream
from lolrt.bench.case import BF16, FP32, Case, Trial, random
from lolrt.bench.measure import Run
from lolrt.engine.engine import Engine
from lolrt.engine.kv_window import Window
from lolrt.engine.sampler import Sampler
from lolrt.models.dit import CausalDiT, DiTConfig
from lolrt.positions.rope import Rope
from lolrt.session.config import StreamConfig
from lolrt.session.session import Session

PLAIN = Rope(sigma=0.0)
WINDOW = Window()


@functools.cache
def embedded(dtype: torch.dtype) -> lolrt.Pipeline:
    return lolrt.load("tiny", dtype)


def embedded_vae(dtype: torch.dtype) -> lolrt.CausalVAE:
    return cast(lolrt.CausalVAE, embedded(dtype).vae)


@dataclass(frozen=True)
class Model:
    """A DiT and the size of its latent frames."""

    name: str
    config: DiTConfig
    latent: tuple[int, int]
    sampler: Sampler = Sampler()
    window: Window = WINDOW

    @property
    def tokens(self) -> int:
        return self.latent[0] * self.latent[1] // 4

    def pass_flops(self) -> float:
        """FLOP of one forward over a full window."""
        config, window, queries = self.config, self.window, self.window.chunk_frames * self.tokens
        linear = 2 * queries * (6 * config.dim**2 + 2 * config.dim * config.ffn_dim)  # q, k, v, o; q and o of the text; feed-forward
        attention = 4 * queries * (window.pages * self.tokens + config.text_len) * config.dim
        return float(config.num_layers * (linear + attention))

    def pass_bytes(self, dtype: torch.dtype) -> float:
        config, window = self.config, self.window
        weights = 8 * config.dim**2 + 2 * config.dim * config.ffn_dim
        return float(config.num_layers * (weights + 2 * window.pages * self.tokens * config.dim) * dtype.itemsize)

    def pair(self, dtype: torch.dtype) -> tuple[CausalDiT, PublishedDiT]:
        """Ours and the published one, with the same weights."""
        if self.name == "tiny":
            dit = embedded(dtype).dit
        else:
            torch.manual_seed(0)
            dit = CausalDiT(self.config).to(dtype)
        published = PublishedDiT(self.config).to(dtype)
        published.load_state_dict(dit.state_dict())
        return dit, published

    def prompt(self) -> Tensor:
        return random(self.config.text_len, self.config.text_dim)


@functools.cache
def tiny() -> Model:
    pipe = embedded(FP32)
    factor = pipe.vae.config.spatial_factor
    # The first chunk has extra passes; a chunk over a full window is measured.
    sampler = replace(pipe.sampler, first_timesteps=())
    return Model("tiny", pipe.dit.config, (pipe.height // factor, pipe.width // factor), sampler)


ONE_LAYER = Model("1.3B, one layer", DiTConfig(num_layers=1), (60, 104))
# As Causal-Forcing++ in 2 steps.
FRAME_WISE = replace(ONE_LAYER, name="1.3B, one layer, frame by frame", sampler=Sampler((1000, 500)), window=Window(chunk_frames=1))


def dit_pass(model: Model, dtype: torch.dtype, **flags: Any) -> Case:
    """One denoise pass over a full window: the blocks, and the patch embedding and head around them."""

    @torch.inference_mode()
    def make(compiled: bool) -> Trial:
        dit, published = model.pair(dtype)
        sample = random(model.window.chunk_frames, model.config.in_dim, *model.latent)
        prompt = model.prompt()
        published_text = published.encode_text(prompt)
        engine = Engine(dit, *model.latent, pages=model.window.pool_pages)
        session = Session(engine, prompt, StreamConfig(rope=PLAIN, window=model.window))
        modulation = dit.modulations(torch.tensor([750.0]))[0]
        published_caches = published.caches(model.window, model.tokens)

        def ours() -> Tensor:
            return dit(session.pass_inputs(sample, modulation, pages, *session.positions(pages)))

        @torch.inference_mode()
        def theirs(first_frame: int = model.window.pages - model.window.chunk_frames) -> Tensor:
            return published(sample, 750.0, first_frame, published_caches, published_text)

        for first_frame in range(0, model.window.pages, model.window.chunk_frames):
            pages = session.window.advance(first_frame, model.window.chunk_frames)
            ours()
            theirs(first_frame)
        return Trial(ours, {"published": theirs})

    return Case("dit_pass", model.name, dtype, model.pass_flops(), model.pass_bytes(dtype), "flops", make, **flags)


def chunk(model: Model, dtype: torch.dtype, **flags: Any) -> Case:
    """The latents of a chunk, with all its passes, once the window is full."""

    def make(compiled: bool) -> Trial:
        dit, published = model.pair(dtype)
        prompt = model.prompt()
        ours = lolrt.LatentStream(dit, prompt, *model.latent, rope=PLAIN, window=model.window, sampler=model.sampler)
        theirs = PublishedStream(published, prompt, *model.latent, window=model.window, sampler=model.sampler)
        for _ in range(model.window.pages // model.window.chunk_frames):
            next(ours)
            next(theirs)
        return Trial(lambda: next(ours).latents, {"published": lambda: next(theirs)})

    passes = len(model.sampler.timesteps) + 1
    flops, moved = passes * model.pass_flops(), passes * model.pass_bytes(dtype)
    return Case("chunk", model.name, dtype, flops, moved, "flops", make, roundings=passes, **flags)


def vae_decode(name: str, config: lolrt.VAEConfig, latent: tuple[int, int], dtype: torch.dtype, **flags: Any) -> Case:
    """One latent frame within a stream. The peer, if diffusers is installed, is its AutoencoderKLWan with the same weights."""

    @torch.inference_mode()
    def make(compiled: bool) -> Trial:
        torch.manual_seed(0)
        vae = embedded_vae(dtype) if name == "tiny" else lolrt.CausalVAE(config).to(dtype)
        latents = random(1, config.z_dim, *latent)
        peers = {"diffusers": diffusers_decode(vae, latents)} if importlib.util.find_spec("diffusers") else {}
        state: dict[str, Tensor] = {}

        def ours() -> Tensor:
            return vae.decode(latents, state)

        for run in (ours, *peers.values()):  # the first frame of a stream differs: it gives one video frame
            run()
        return Trial(ours, peers)

    weights, flops = decoder_work(config, latent)
    return Case("vae_decode", name, dtype, flops, weights * dtype.itemsize, "flops", make, **flags)


def diffusers_decode(vae: lolrt.CausalVAE, latents: Tensor) -> Run:
    """The step of AutoencoderKLWan's own decode, which decodes a clip frame by frame: here each call decodes the next frame."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    config = vae.config
    model: Any = AutoencoderKLWan(
        base_dim=config.dim,
        z_dim=config.z_dim,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temporal_downsample),
        latents_mean=list(config.latents_mean),
        latents_std=list(config.latents_std),
    )
    model.load_state_dict(convert_wan_vae_to_diffusers(dict(vae.state_dict())))
    torch.nn.Module.to(model, vae.conv2.weight.dtype)  # the class warns about modules that it would keep in float32, but has none
    model.clear_cache()
    frames = itertools.count()

    @torch.inference_mode()
    def decode() -> Tensor:
        raw = vae.denormalize(latents.transpose(0, 1)[None]).to(model.dtype)
        x = model.post_quant_conv(raw)
        video = model.decoder(x, feat_cache=model._feat_map, feat_idx=[0], first_chunk=next(frames) == 0)
        return video[0].transpose(0, 1).float().clamp_(-1, 1)

    return decode


def decoder_work(config: lolrt.VAEConfig, latent: tuple[int, int]) -> tuple[float, float]:
    """Weights of the decoder, and FLOP of its convolutions and attention for one latent frame after the first."""
    weights = flops = 0.0
    pixels, frames = latent[0] * latent[1], 1

    def convolve(taps: int, channels: int, out: int) -> None:
        nonlocal weights, flops
        weights += taps * channels * out
        flops += 2.0 * taps * channels * out * pixels * frames

    def residual(channels: int, out: int) -> None:
        convolve(27, channels, out)
        convolve(27, out, out)
        if channels != out:
            convolve(1, channels, out)

    dims = [config.dim * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
    convolve(27, config.z_dim, dims[0])
    residual(dims[0], dims[0])
    convolve(1, dims[0], 4 * dims[0])
    flops += 4.0 * pixels**2 * dims[0]
    residual(dims[0], dims[0])
    for level, (channels, out) in enumerate(itertools.pairwise(dims)):
        residual(channels // 2 if level else channels, out)
        for _ in range(config.num_res_blocks):
            residual(out, out)
        if level < len(config.dim_mult) - 1:
            if tuple(reversed(config.temporal_downsample))[level]:
                convolve(3, out, 2 * out)
                frames *= 2
            pixels *= 4
            convolve(9, out, out // 2)
    convolve(27, out, 3)
    return weights, flops


MODEL_CASES: tuple[Case, ...] = (
    dit_pass(tiny(), BF16),
    dit_pass(ONE_LAYER, BF16, every_thread_count=False, best_isa_only=True),
    chunk(tiny(), BF16, quick=True),
    chunk(tiny(), FP32),
    chunk(ONE_LAYER, BF16, every_thread_count=False, best_isa_only=True),
    chunk(FRAME_WISE, BF16, every_thread_count=False, best_isa_only=True),
    vae_decode("tiny", embedded_vae(FP32).config, tiny().latent, BF16, quick=True),
    vae_decode("tiny", embedded_vae(FP32).config, tiny().latent, FP32),
    vae_decode("Wan2.1, latent 15 x 26", lolrt.VAEConfig(), (15, 26), BF16, every_thread_count=False, best_isa_only=True),
)
