"""Is exactly one whole subject in the picture, of the right kind and colour? A reader trained on the scripted scenes, whose answers are
known, and on the same scenes with their subject spoilt in the ways in which a video loses it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt.models.vae.codec import Codec
from lolrt.train.reader import UNKNOWN, Questions, Reader
from lolrt.train.tiny.data import scene_of
from lolrt.train.tiny.scenes import HEIGHT, VOCABULARY, WIDTH, Scene, render, values

WHOLE = "one whole subject"
QUESTIONS: Questions = {**{group: values(group) for group in VOCABULARY}, WHOLE: ["no", "yes"]}
GOOD = ("as drawn", "moved")  # what counts as one whole subject
FLAWS = ("erased", "faint", "in part", "torn", "small", "cut off", "doubled", "beside another", "of two colours")
KINDS = (*GOOD, *FLAWS)
LAST_FRAME = 10_000  # scenes are looked at anywhere up to there


class Layer(NamedTuple):
    """A subject cut out of its scene: colour [3, H, W] and coverage [H, W]."""

    colour: Tensor
    cover: Tensor

    def moved(self, right: float, down: float, scale: float = 1.0) -> Layer:
        """Moved by pixels, and scaled about the picture's middle."""
        affine = torch.tensor([[1 / scale, 0, -2 * right / WIDTH / scale], [0, 1 / scale, -2 * down / HEIGHT / scale]])
        grid = F.affine_grid(affine[None], [1, 4, HEIGHT, WIDTH], align_corners=False)
        both = F.grid_sample(torch.cat([self.colour, self.cover[None]])[None], grid, align_corners=False)[0]
        return Layer(both[:3], both[3])

    def within(self, part: Tensor | float) -> Layer:
        """What of it lies in a part [H, W] of the picture, or all of it, let through like glass."""
        return Layer(self.colour, self.cover * part)

    def span(self) -> tuple[int, int]:
        """First and last column that it covers."""
        columns = (self.cover.amax(0) > 0.5).nonzero()
        return int(columns[0]), int(columns[-1])

    def over(self, picture: Tensor) -> Tensor:
        return torch.lerp(picture, self.colour, self.cover.expand_as(picture))


class Drawing:
    """Pictures of one scene at one moment, with its subject as it is or spoilt."""

    def __init__(self, scene: Scene, generator: torch.Generator) -> None:
        self.scene, self.generator = scene, generator
        self.frame = torch.randint(LAST_FRAME, (1,), generator=generator)
        self.whole = self._picture(scene)
        self.empty = self._picture(scene, with_object=False)

    def _picture(self, scene: Scene, with_object: bool = True) -> Tensor:
        return render(scene, self.frame, with_object=with_object)[0][0].float()

    def _layer(self, scene: Scene) -> Layer:
        video, mask = render(scene, self.frame)
        return Layer(video[0].float(), F.max_pool2d(mask, 3, 1, 1)[0])

    def draw(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def sign(self) -> int:
        return 1 if self.draw(0, 1) < 0.5 else -1

    def half(self, layer: Layer) -> Tensor:
        """One side of a line through a subject, at any angle and within a few pixels of its middle, bool [H, W]."""
        y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
        middle_x, middle_y = ((at * layer.cover).sum() / layer.cover.sum() for at in (x, y))
        angle = self.draw(0, 2 * math.pi)
        return math.cos(angle) * (x - middle_x) + math.sin(angle) * (y - middle_y) > self.draw(-4, 4)

    def blotch(self, layer: Layer, share: float) -> Tensor:
        """Soft blotches that cover a share of a subject, [H, W]."""
        rough = torch.randn(1, 1, 9, 13, generator=self.generator)
        smooth = F.interpolate(rough, (HEIGHT, WIDTH), mode="bicubic")[0, 0]
        return ((smooth - smooth[layer.cover > 0.5].quantile(1 - share)) * 4 + 0.5).clamp(0, 1)

    def other(self, group: str) -> Scene:
        """The same scene with another value of an attribute."""
        count = len(values(group))
        picks = self.scene.picks()
        return Scene(**{**picks, group: (picks[group] + 1 + int(self.draw(0, count - 1))) % count}, chance=self.scene.chance)

    def picture(self, kind: str) -> Tensor:
        """Of one of the kinds of `GOOD` and `FLAWS`, float [3, H, W] of 0 .. 255."""
        if kind in ("as drawn", "erased"):
            return self.whole if kind == "as drawn" else self.empty
        layer = self._layer(self.scene)
        if kind == "faint":
            return torch.lerp(self.empty, self.whole, self.draw(0.1, 0.7))
        if kind == "of two colours":
            part = self.half(layer).float() if self.draw(0, 1) < 0.5 else self.blotch(layer, self.draw(0.3, 0.7))
            return torch.lerp(self.whole, self._picture(self.other("colour")), part)
        picture = self.empty
        for one in self._layers(kind, layer):
            picture = one.over(picture)
        return picture

    def _layers(self, kind: str, layer: Layer) -> list[Layer]:
        draw, sign = self.draw, self.sign
        first_column, last_column = layer.span()
        if kind == "moved":  # to anywhere in the picture
            return [layer.moved(draw(1 - first_column, WIDTH - 2 - last_column), draw(-3, 3), draw(0.92, 1.08))]
        if kind == "in part":
            return [layer.within(self.blotch(layer, draw(0.2, 0.6)))]
        if kind == "torn":
            half, to = self.half(layer), sign() * draw(5, 16)
            first, second = layer.within(half), layer.within(~half)
            return [first] if draw(0, 1) < 0.4 else [first, second.moved(to, draw(-8, 8)).within(draw(0.4, 1))]
        if kind == "small":
            return [layer.moved(draw(-15, 15), draw(-6, 6), draw(0.2, 0.55))]
        if kind == "cut off":
            beyond = draw(0.25, 0.8) * (last_column - first_column)
            return [layer.moved(WIDTH + beyond - last_column if draw(0, 1) < 0.5 else -first_column - beyond, draw(-3, 3))]
        if kind == "doubled":
            apart = sign() * draw(0.3, 1.6) * (last_column - first_column)  # they may hide each other in part
            other = layer.moved(-apart / 2, draw(-5, 5), draw(0.9, 1.1)).within(draw(0.5, 1))
            return [layer.moved(apart / 2, 0), other] if draw(0, 1) < 0.5 else [other, layer.moved(apart / 2, 0)]
        if kind == "beside another":
            apart = sign() * draw(14, 45)
            return [layer.moved(apart / 2, 0), self._layer(self.other("object")).moved(-apart / 2, draw(-5, 5), draw(0.7, 1.1))]
        raise ValueError(kind)


class Examples(NamedTuple):
    pictures: Tensor
    """uint8 [n, HEIGHT, WIDTH, 3]"""
    answers: dict[str, Tensor]
    """Indices into `QUESTIONS`, int64 [n]; of a spoilt subject, colour and object are `UNKNOWN`."""
    kinds: list[str]


def examples(seed: int, count: int, kinds: tuple[str, ...]) -> Examples:
    """Pictures of so many scenes, kinds in turn."""
    generator = torch.Generator().manual_seed(seed)
    scenes = [scene_of(seed, number) for number in range(count)]
    turns = [kinds[number % len(kinds)] for number in range(count)]
    pictures = torch.stack([Drawing(scene, generator).picture(kind).round().byte() for scene, kind in zip(scenes, turns, strict=True)])
    answers = {group: torch.tensor([scene.picks()[group] for scene in scenes]) for group in VOCABULARY}
    good = torch.tensor([kind in GOOD for kind in turns])
    for group in ("colour", "object"):
        answers[group][~good] = UNKNOWN
    return Examples(pictures.permute(0, 2, 3, 1).contiguous(), {**answers, WHOLE: good.long()}, turns)


def train_reader(seed: int, count: int, steps: int) -> Reader:
    """The reader, from nothing; half of its examples have one whole subject. Two that hide each other, and torn ones, are the
    hardest, and come twice."""
    torch.manual_seed(seed)
    reader = Reader(QUESTIONS, HEIGHT, WIDTH)
    shown = examples(seed + 4, count, tuple(kind for flaw in (*FLAWS, "doubled", "torn") for kind in (flaw, GOOD[len(flaw) % 2])))
    reader.train_on(shown.pictures, shown.answers, steps, seed)
    return reader


def kept_reader(work: Path, seed: int, count: int, steps: int) -> Reader:
    """The reader that `work` holds, or else a new one, which is kept there."""
    path = work / "reader.pt"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        torch.save(train_reader(seed, count, steps).state_dict(), path)
    reader = Reader(QUESTIONS, HEIGHT, WIDTH)
    reader.load_state_dict(torch.load(path))
    return reader.eval()


@torch.inference_mode()
def through_codec(vae: Codec, pictures: Tensor) -> Tensor:
    """Pictures as the model's VAE shows them."""
    shown = []
    for picture in pictures:
        latents = vae.encode(picture.permute(2, 0, 1)[None].float().div(127.5).sub(1), {})
        shown.append(vae.decode(latents, {})[0].add(1).mul(127.5).round().byte().permute(1, 2, 0))
    return torch.stack(shown)


def accuracy(reader: Reader, vae: Codec, seed: int, count: int) -> dict[str, float]:
    """How often the reader is right on held-out scenes that went through the codec: on each attribute of whole subjects, and on whether
    there is one whole subject, by kind of picture."""
    held_out = examples(seed + 5, count, KINDS)
    read = reader.read(through_codec(vae, held_out.pictures))
    right = {question: (read[question] == held_out.answers[question]).float() for question in QUESTIONS}
    good = held_out.answers[WHOLE] == 1
    found = {group: float(right[group][good].mean()) for group in VOCABULARY}
    for kind in KINDS:
        found[kind] = float(right[WHOLE][torch.tensor([one == kind for one in held_out.kinds])].mean())
    return found


def is_right(read: dict[str, Tensor], words: dict[str, str]) -> Tensor:
    """Whether each picture has exactly one whole subject of the colour and the kind that `words` say, bool [n]."""
    right = read[WHOLE] == 1
    for group in ("colour", "object"):
        right = right & (read[group] == values(group).index(words[group]))
    return right
