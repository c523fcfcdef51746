"""Trains the causal DiT on PCA latents: flow matching with teacher forcing."""

from pathlib import Path

import torch
from torch import Tensor, nn

from lolrt.models.dit import CausalDiT, DiTConfig
from lolrt.muon import Muon
from lolrt.train.tiny.data import SINK_FRAMES
from lolrt.train.tiny.run import Run, autocast
from lolrt.train.tiny.teacher_forcing import CHUNK, PAST_CHUNKS, TeacherForcing
from lolrt.train.tiny.text import TEXT_DIM, TEXT_LEN, embed, value_table

PEAK_LR = 2e-3
BATCH = 8
CONTEXT_NOISE, CONTEXT_SHARE = 0.3, 0.8  # noise U(0, 0.3) on 80 % of the history: a rollout's own history is imperfect
SIGMA_MEAN, SIGMA_STD = 0.4, 1.3  # of the logit of the noise level; few-step sampling leans on the high levels
FIRST_CHUNKS = 4  # for each clip of a batch, as many first chunks of other clips: nothing precedes them, so they are the hardest
OBJECT_WEIGHT = 2.0  # added where the object is
WORD_DROP = 0.12  # each word is left out this often, so that partial prompts work


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
    return Muon([p for name, p in named.items() if name in hidden], [p for name, p in named.items() if name not in hidden])


def flow_errors(
    forward: TeacherForcing, batch: dict[str, Tensor], table: Tensor, std: float, generator: torch.Generator, drop: float
) -> Tensor:
    """Squared errors of the flow, weighted by the object: [batch, chunks]. Context noise, noise levels and dropped words are
    drawn anew.
    """
    z = batch["latents"].float() / std
    count, frames = z.shape[:2]
    index = torch.arange(frames)
    positions = index + batch["gap"][:, None] * (index >= SINK_FRAMES)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def per_frame(x: Tensor) -> Tensor:
        return x.repeat_interleave(CHUNK, 1)

    chunks = (count, frames // CHUNK)
    sigma = per_frame(torch.sigmoid(torch.randn(chunks, generator=generator) * SIGMA_STD + SIGMA_MEAN))
    context_sigma = per_frame(CONTEXT_NOISE * rand(*chunks) * (rand(*chunks) < CONTEXT_SHARE))
    noise, context_noise = torch.randn(2, *z.shape, generator=generator)
    s, c = sigma[..., None, None, None], context_sigma[..., None, None, None]
    text = embed(table, batch["words"], rand(*batch["words"].shape) >= drop)
    with autocast():
        flow = forward(z.lerp(context_noise, c), z.lerp(noise, s), context_sigma, sigma, text, positions)
    weight = 1 + OBJECT_WEIGHT * batch["object"].float() / 255
    error = (flow - (noise - z)).square().mean(2) * (weight / weight.mean())
    return error.unflatten(1, (-1, CHUNK)).mean((2, 3, 4))


def mean_errors(errors: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
    """Means of errors [batch, chunks] over first chunks and over the later ones whose recent past is in the clip: behind a gap
    [batch], that of the first two is not.
    """
    chunk = torch.arange(errors.shape[1])
    known = (gap[:, None] == 0) | (chunk > PAST_CHUNKS)
    return errors[:, 0].mean(), errors[:, 1:][known[:, 1:]].mean()


def train_dit(work: Path, seed: int, minutes: float, config: DiTConfig, *, batch: int = BATCH, compiled: bool = True) -> None:
    """Trains for a number of minutes on one thread; leaves `dit.pt` in `work`."""
    torch.manual_seed(seed)
    data, held_out = (torch.load(work / f"{name}.pt", mmap=True) for name in ("train", "held_out"))
    std = latents_std(work)
    table = value_table(seed)
    model = CausalDiT(config)
    initialize(model, seed)
    run = Run("dit", work, model, split_parameters(model), minutes, PEAK_LR)
    clip, (height, width) = data["latents"].shape[1], data["latents"].shape[3:]
    forward = TeacherForcing(model, clip, height, width, compiled=compiled)
    forward_first = TeacherForcing(model, CHUNK, height, width, compiled=compiled)
    averaged = TeacherForcing(run.averaged, clip, height, width)
    keys = ("latents", "words", "object", "gap")
    while run.going():
        generator = run.generator()
        picks = torch.randint(len(data["latents"]), (batch * (1 + FIRST_CHUNKS),), generator=generator).split(batch * FIRST_CHUNKS)
        firsts = {key: data[key][picks[0]] for key in ("words", "gap")}
        firsts |= {key: data[key][picks[0], :CHUNK] for key in ("latents", "object")}
        clips = {key: data[key][picks[1]] for key in keys}
        alone = flow_errors(forward_first, firsts, table, std, generator, WORD_DROP).mean()
        first, later = mean_errors(flow_errors(forward, clips, table, std, generator, WORD_DROP), clips["gap"])
        first = (FIRST_CHUNKS * alone + first) / (FIRST_CHUNKS + 1)
        run.step((first + later) / 2)
        if run.report_due():
            with torch.no_grad():
                clips = {key: held_out[key][:16] for key in keys}
                errors = flow_errors(averaged, clips, table, std, torch.Generator().manual_seed(seed), 0.0)
                first, later = mean_errors(errors, clips["gap"])
            run.report(f"held-out first chunk {first:.4f} later {later:.4f}")


def latents_std(work: Path) -> float:
    """The one standard deviation that all latent channels are divided by before they reach the DiT."""
    return float(torch.load(work / "train.pt", mmap=True)["latents"][:500].float().std())
