"""The common parts of the trainings of a causal DiT, by flow matching with teacher forcing."""

import torch
from torch import Tensor, nn

from lolrt.models.dit import CausalDiT, DiTConfig
from lolrt.muon import Muon
from lolrt.pipeline import preferred_dtype
from lolrt.train.run import autocast
from lolrt.train.teacher_forcing import TeacherForcing
from lolrt.train.text import TEXT_DIM, TEXT_LEN

CONTEXT_NOISE, CONTEXT_SHARE = 0.3, 0.8  # noise U(0, 0.3) on 80 % of the history: a rollout's own history is imperfect
RESAMPLED_FROM, RESAMPLING_STEPS = (0.2, 0.8), (1.0, 0.4)  # noise level that a history is made anew from, and the steps, as its shares
SIGMA_MEAN, SIGMA_STD = 0.4, 1.3  # of the logit of the noise level; few-step sampling depends on the high levels


def dit_config(z_dim: int, dim: int = 256, layers: int = 6) -> DiTConfig:
    return DiTConfig(
        dim=dim, ffn_dim=4 * dim, freq_dim=256, text_dim=TEXT_DIM, text_len=TEXT_LEN, in_dim=z_dim, out_dim=z_dim,
        num_heads=dim // 64, num_layers=layers, eps=1e-6, patch_size=(1, 2, 2), rope_dims=(44, 10, 10),
    )  # fmt: skip


def initialize(model: CausalDiT, seed: int) -> None:
    """Xavier for matrices, zeros for biases and the head: the untrained model predicts no flow."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name.endswith("modulation"):
            nn.init.normal_(p, std=model.config.dim**-0.5, generator=generator)
        elif p.dim() >= 2:
            nn.init.xavier_uniform_(p.data.flatten(1), generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
        else:
            nn.init.ones_(p)
    nn.init.zeros_(model.head.head.weight)


def split_parameters(model: CausalDiT) -> Muon:
    hidden = {name for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2}
    named = dict(model.named_parameters())
    return Muon(
        [p for name, p in named.items() if name in hidden], [p for name, p in named.items() if name not in hidden], preferred_dtype()
    )


@torch.no_grad()
def resampled(forward: TeacherForcing, latents: Tensor, text: Tensor, positions: Tensor, generator: torch.Generator) -> Tensor:
    """The clips [batch, frames, z, h, w] as the model itself makes them from a noised copy, with the errors that a rollout has: all
    chunks at once, each behind the clean chunks before it. A clip has one noise level. (Self-resampling, arXiv 2512.15702.)
    """
    low, high = RESAMPLED_FROM
    start = low + (high - low) * torch.rand(len(latents), 1, generator=generator)
    clean = torch.zeros(latents.shape[:2])
    made = latents
    for share in RESAMPLING_STEPS:
        sigma = (start * share).expand_as(clean)
        noisy = made.lerp(torch.randn(latents.shape, generator=generator), sigma[..., None, None, None])
        with autocast():
            flow = forward(latents, noisy, clean, sigma, text, positions)
        made = noisy - sigma[..., None, None, None] * flow
    return made


def flow_errors(
    forward: TeacherForcing, latents: Tensor, text: Tensor, positions: Tensor, weight: Tensor, generator: torch.Generator,
    history: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The squared errors of the flow, [batch, chunks]. Each call draws new noise levels, noise, and noise on the context.

    latents: [batch, frames, z, h, w], normalised. text and positions: as `TeacherForcing` takes them. weight: [batch, frames, h, w], of
    each latent pixel's error. history: what the chunks see of the clip, by default the clip itself.
    """
    count, frames = latents.shape[:2]

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    chunk = forward.chunking.frames

    def per_frame(x: Tensor) -> Tensor:
        return x.repeat_interleave(chunk, 1)

    chunks = (count, frames // chunk)
    sigma = per_frame(torch.sigmoid(torch.randn(chunks, generator=generator) * SIGMA_STD + SIGMA_MEAN))
    context_sigma = per_frame(CONTEXT_NOISE * rand(*chunks) * (rand(*chunks) < CONTEXT_SHARE))
    noise, context_noise = torch.randn(2, *latents.shape, generator=generator)
    s, c = sigma[..., None, None, None], context_sigma[..., None, None, None]
    with autocast():
        seen = latents if history is None else history
        flow = forward(seen.lerp(context_noise, c), latents.lerp(noise, s), context_sigma, sigma, text, positions)
    error = (flow - (noise - latents)).square().mean(2) * (weight / weight.mean())
    return error.unflatten(1, (-1, chunk)).mean((2, 3, 4))
