"""Trains `journey`'s DiT on PCA latents: teacher forcing, with prompts that change on the way."""

from pathlib import Path

import torch
from torch import Tensor

from lolrt.models.dit import CausalDiT, DiTConfig
from lolrt.train.journey.data import CLIP_LATENTS, SINK_FRAMES, Clips
from lolrt.train.journey.start import start_from
from lolrt.train.journey.world import VOCABULARY
from lolrt.train.run import Run
from lolrt.train.teacher_forcing import CHUNK, TeacherForcing
from lolrt.train.text import embed, value_table
from lolrt.train.train_dit import flow_errors, initialize, resampled, split_parameters

PEAK_LR = 2e-3
FIRST_CHUNKS = 2  # for each clip of a batch, as many first chunks of other clips
SUBJECT_WEIGHT = 2.0  # added where the subject is
WORD_DROP = 0.12  # each word that stays is left out this often, so that partial prompts work
OWN_PAST_FROM = 0.4  # share of the time from which on every second step has a history that the model itself made
TIME = list(VOCABULARY).index("time")  # never left out: without it, the day goes round


def frame_texts(table: Tensor, words: Tensor, keep: Tensor, frames: int) -> Tensor:
    """The text of each frame of a clip: [batch, frames, TEXT_LEN, TEXT_DIM]. The sinks keep that under which they were made.

    words: [batch, 2, groups], of the sinks and of the rest. keep: bool [batch, groups].
    """
    keep = (keep | (words[:, 0] != words[:, 1]))[:, None].expand_as(words).clone()
    keep[..., TIME] = True
    before, after = (embed(table, words[:, i], keep[:, i]) for i in (0, 1))
    index = (torch.arange(frames) >= SINK_FRAMES).long()
    return torch.stack([before, after], 1)[:, index]


def clip_errors(
    forward: TeacherForcing, batch: dict[str, Tensor], table: Tensor, generator: torch.Generator, drop: float, own_past: bool = False
) -> Tensor:
    """`flow_errors` of a batch of clips, or of first chunks; words are dropped anew. own_past: the history is the model's own."""
    frames, gap = batch["latents"].shape[1], batch["gap"][:, None]
    positions = torch.arange(frames) + gap * (torch.arange(frames) >= SINK_FRAMES)
    keep = torch.rand(batch["words"][:, 0].shape, generator=generator) >= drop
    text = frame_texts(table, batch["words"], keep, frames)
    text = torch.cat([text, text], 1) if frames > CHUNK else text
    weight = 1 + SUBJECT_WEIGHT * batch["subject"].float() / 255
    latents = batch["latents"].float()
    history = resampled(forward, latents, text, positions, generator) if own_past else None
    return flow_errors(forward, latents, text, positions, weight, generator, history)


def mean_errors(errors: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Means of errors [batch, chunks] over first chunks and over the later ones that count."""
    return errors[:, 0].mean(), errors[:, 1:][counts[:, 1:]].mean()


class Forwards:
    """The teacher-forced forward of whole clips and of first chunks."""

    def __init__(self, model: CausalDiT, height: int, width: int, compiled: bool = False) -> None:
        self.clip = TeacherForcing(model, CLIP_LATENTS, height, width, compiled=compiled)
        self.first = TeacherForcing(model, CHUNK, height, width, compiled=compiled)


def training_loss(
    forwards: Forwards, clips: Clips, step: int, batch: int, table: Tensor, generator: torch.Generator, own_past: bool
) -> Tensor:
    drawn = clips.draw(step, batch * (1 + FIRST_CHUNKS), generator)
    firsts = {key: value[batch:] for key, value in drawn.items()}
    firsts |= {key: firsts[key][:, :CHUNK] for key in ("latents", "subject")}
    alone = clip_errors(forwards.first, firsts, table, generator, WORD_DROP).mean()
    drawn = {key: value[:batch] for key, value in drawn.items()}
    first, later = mean_errors(clip_errors(forwards.clip, drawn, table, generator, WORD_DROP, own_past), drawn["counts"])
    return (0.5 * (FIRST_CHUNKS * alone + first) / (FIRST_CHUNKS + 1) + later) / 1.5


@torch.no_grad()
def held_out_report(model: CausalDiT, work: Path, table: Tensor, seed: int) -> str:
    """Errors of a model on the first held-out clips, always with the same noise."""
    held_out = {key: value[:12] for key, value in torch.load(work / "held-000.pt", mmap=True).items()}
    forward = TeacherForcing(model, CLIP_LATENTS, *held_out["latents"].shape[3:])
    errors = clip_errors(forward, held_out, table, torch.Generator().manual_seed(seed), 0.0)
    first, later = mean_errors(errors, held_out["counts"])
    return f"held-out first chunk {first:.4f} later {later:.4f}"


def train_dit(
    work: Path, seed: int, minutes: float, config: DiTConfig, clips: Clips, *, batch: int, compiled: bool, start: Path | None
) -> None:
    """Trains for a number of minutes on one thread; leaves `dit.pt` in `work`. start: the folder of an exported model, to go on from its
    weights."""
    torch.manual_seed(seed)
    table = value_table(VOCABULARY, seed)
    model = CausalDiT(config)
    initialize(model, seed)
    if start is not None:
        start_from(start, model)
    run = Run("dit", work, model, split_parameters(model), minutes, PEAK_LR, report_seconds=180)
    if not run.going():
        return
    forwards = Forwards(model, *clips.latent_size, compiled=compiled)
    while run.going():
        own_past = run.progress > OWN_PAST_FROM and run.step_number % 2 == 0
        run.step(training_loss(forwards, clips, run.step_number, batch, table, run.generator(), own_past))
        if run.report_due():
            run.report(held_out_report(run.averaged, work, table, seed))
