"""Trains `tiny`'s DiT on PCA latents."""

from pathlib import Path

import torch
from torch import Tensor

from lolrt.models.dit import CausalDiT, DiTConfig
from lolrt.train.run import Run
from lolrt.train.teacher_forcing import CHUNKWISE, Chunking, TeacherForcing
from lolrt.train.text import embed, value_table
from lolrt.train.tiny.data import SINK_FRAMES
from lolrt.train.tiny.scenes import VOCABULARY
from lolrt.train.train_dit import flow_errors, initialize, split_parameters

PEAK_LR = 2e-3
BATCH = 8
FIRST_CHUNKS = 4  # for each clip of a batch, as many first chunks of other clips: nothing precedes them, so they are the hardest
OBJECT_WEIGHT = 2.0  # added where the object is
WORD_DROP = 0.12  # each word is left out this often, so that partial prompts work


def clip_errors(
    forward: TeacherForcing, batch: dict[str, Tensor], table: Tensor, std: float, generator: torch.Generator, drop: float
) -> Tensor:
    """`flow_errors` of a batch of clips, with words dropped anew."""
    index = torch.arange(batch["latents"].shape[1])
    positions = index + batch["gap"][:, None] * (index >= SINK_FRAMES)
    text = embed(table, batch["words"], torch.rand(batch["words"].shape, generator=generator) >= drop)
    weight = 1 + OBJECT_WEIGHT * batch["object"].float() / 255
    return flow_errors(forward, batch["latents"].float() / std, text, positions, weight, generator)


def mean_errors(errors: Tensor, gap: Tensor, chunking: Chunking = CHUNKWISE) -> tuple[Tensor, Tensor]:
    """Means of errors [batch, chunks] over first chunks and over the later ones whose recent past is in the clip: behind a gap
    [batch], that of the first few is not.
    """
    chunk = torch.arange(errors.shape[1])
    known = (gap[:, None] == 0) | (chunk >= chunking.sinks + chunking.past)
    return errors[:, 0].mean(), errors[:, 1:][known[:, 1:]].mean()


def train_dit(
    work: Path, seed: int, minutes: float, config: DiTConfig, *, batch: int = BATCH, compiled: bool = True,
    chunking: Chunking = CHUNKWISE, start: CausalDiT | None = None,
) -> None:  # fmt: skip
    """Trains for a number of minutes on one thread; leaves `dit.pt` in `work`. start: the model whose weights it begins with."""
    torch.manual_seed(seed)
    data, held_out = (torch.load(work / f"{name}.pt", mmap=True) for name in ("train", "held_out"))
    std = latents_std(work)
    table = value_table(VOCABULARY, seed)
    model = CausalDiT(config)
    if start is None:
        initialize(model, seed)
    else:
        model.load_state_dict(start.state_dict())
    run = Run("dit", work, model, split_parameters(model), minutes, PEAK_LR)
    clip, (height, width) = data["latents"].shape[1], data["latents"].shape[3:]
    forward = TeacherForcing(model, clip, height, width, compiled=compiled, chunking=chunking)
    forward_first = TeacherForcing(model, chunking.frames, height, width, compiled=compiled, chunking=chunking)
    averaged = TeacherForcing(run.averaged, clip, height, width, chunking=chunking)
    keys = ("latents", "words", "object", "gap")
    while run.going():
        generator = run.generator()
        picks = torch.randint(len(data["latents"]), (batch * (1 + FIRST_CHUNKS),), generator=generator).split(batch * FIRST_CHUNKS)
        firsts = {key: data[key][picks[0]] for key in ("words", "gap")}
        firsts |= {key: data[key][picks[0], : chunking.frames] for key in ("latents", "object")}
        clips = {key: data[key][picks[1]] for key in keys}
        alone = clip_errors(forward_first, firsts, table, std, generator, WORD_DROP).mean()
        first, later = mean_errors(clip_errors(forward, clips, table, std, generator, WORD_DROP), clips["gap"], chunking)
        first = (FIRST_CHUNKS * alone + first) / (FIRST_CHUNKS + 1)
        run.step((first + later) / 2)
        if run.report_due():
            with torch.no_grad():
                clips = {key: held_out[key][:16] for key in keys}
                errors = clip_errors(averaged, clips, table, std, torch.Generator().manual_seed(seed), 0.0)
                first, later = mean_errors(errors, clips["gap"], chunking)
            run.report(f"held-out first chunk {first:.4f} later {later:.4f}")


def latents_std(work: Path) -> float:
    """The one standard deviation that all latent channels are divided by before they reach the DiT."""
    return float(torch.load(work / "train.pt", mmap=True)["latents"][:500].float().std())
