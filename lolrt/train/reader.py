"""A small convolutional network that answers questions about pictures: the judge of what a trained model draws.

It is trained on pictures whose answers are known, because a script drew them, and takes a minute or two of one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lolrt.models.vae.codec import Codec
from lolrt.train.run import autocast

CHANNELS = (24, 48, 96, 128)
BATCH, PEAK_LR = 64, 3e-3
UNKNOWN = -100  # an answer that an example has not: cross_entropy leaves it out

Questions = dict[str, list[str]]
"""Question -> its possible answers."""


class Reader(nn.Module):
    """Reads pictures, uint8 [n, height, width, 3], whose height and width are multiples of 16."""

    def __init__(self, questions: Questions, height: int, width: int) -> None:
        super().__init__()
        self.questions = questions
        layers: list[nn.Module] = []
        for before, after in zip((3, *CHANNELS), CHANNELS, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        features = CHANNELS[-1] * (height // 16) * (width // 16)
        self.heads = nn.ModuleDict({question: nn.Linear(features, len(answers)) for question, answers in questions.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits of the answers to each question, [n, answers]."""
        x = pictures.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        return self._answer(x)

    def _answer(self, x: Tensor) -> dict[str, Tensor]:
        features = F.dropout(self.trunk(x).flatten(1), 0.2, self.training)
        return {question: head(features) for question, head in self.heads.items()}

    @torch.inference_mode()
    def read(self, pictures: Tensor) -> dict[str, Tensor]:
        """The likeliest answer to each question, by its index, int64 [n]."""
        parts = [self.eval()(part) for part in pictures.split(256)]
        return {question: torch.cat([part[question].argmax(1) for part in parts]) for question in self.questions}

    def train_on(self, pictures: Tensor, answers: dict[str, Tensor], steps: int, seed: int) -> None:
        """Trains on pictures and the indices of their answers, or `UNKNOWN`. Light, sharpness and noise are varied: a model draws softer
        pictures than a script."""
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(self.parameters(), PEAK_LR, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps)
        self.train()
        for kernel in (p for p in self.parameters() if p.dim() == 4):
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        for _ in range(steps):
            pick = torch.randint(len(pictures), (BATCH,), generator=generator)
            x = varied(pictures[pick].permute(0, 3, 1, 2).float().div(127.5).sub(1), generator)
            with autocast():
                found = self._answer(x.contiguous(memory_format=torch.channels_last))
            right = {question: index[pick] for question, index in answers.items()}
            losses = [F.cross_entropy(logits.float(), right[question], ignore_index=UNKNOWN) for question, logits in found.items()]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()


def kept(path: Path, questions: Questions, height: int, width: int, train: Callable[[], Reader]) -> Reader:
    """The reader that a file holds, or else a new one, which is kept there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(train().state_dict(), path)
    reader = Reader(questions, height, width)
    reader.load_state_dict(torch.load(path))
    return reader.eval()


def first_run(there: Tensor, length: int) -> int | None:
    """Where the first `length` entries in a row begin that are true; bool [n]."""
    runs = there.unfold(0, length, 1).all(1).nonzero()
    return int(runs[0]) if len(runs) else None


@torch.inference_mode()
def through_codec(vae: Codec, pictures: Tensor) -> Tensor:
    """Pictures, uint8 [n, height, width, 3], as a model's VAE shows them."""
    shown = []
    for picture in pictures:
        latents = vae.encode(picture.permute(2, 0, 1)[None].float().div(127.5).sub(1), {})
        shown.append(vae.decode(latents, {})[0].add(1).mul(127.5).round().byte().permute(1, 2, 0))
    return torch.stack(shown)


def varied(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [n, 3, h, w] as a decoder might show them: a little bent, blurred, tinted, with blotches and noise."""
    n, _, height, width = x.shape

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape or (n, 1, 1, 1), generator=generator)

    coarse = F.interpolate(torch.randn(n, 2, 5, 7, generator=generator), (height, width), mode="bicubic")
    bend = (draw(0, 0.9) * coarse).permute(0, 2, 3, 1) * torch.tensor([2 / width, 2 / height])
    grid = F.affine_grid(torch.eye(2, 3).expand(n, 2, 3), [n, 3, height, width], align_corners=False)
    x = F.grid_sample(x, grid + bend, mode="bilinear", padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 3, 1), 3, 1)
    x = torch.lerp(x, soft, draw(-0.2, 1))
    blotches = F.interpolate(torch.randn(n, 3, 8, 12, generator=generator), (height, width), mode="bilinear")
    x = x * draw(0.9, 1.1) + draw(-0.08, 0.08, n, 3, 1, 1) + draw(0, 0.06) * blotches
    return x + draw(0, 0.05) * torch.randn(x.shape, generator=generator)
