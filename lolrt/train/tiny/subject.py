"""Is exactly one whole subject in the picture, of the right kind and colour? A reader trained on the scripted scenes, whose answers are
known, and on the same scenes with their subject spoilt.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt.models.vae.codec import Codec
from lolrt.train.reader import UNKNOWN, Questions, Reader, kept, through_codec
from lolrt.train.spoilt import FLAWS, GOOD, KINDS, WHOLE, Drawing, Examples, Layer
from lolrt.train.tiny.data import scene_of
from lolrt.train.tiny.scenes import HEIGHT, VOCABULARY, WIDTH, Scene, render, values

QUESTIONS: Questions = {**{group: values(group) for group in VOCABULARY}, WHOLE: ["no", "yes"]}
LAST_FRAME = 10_000  # scenes are looked at anywhere up to there


class SceneDrawing(Drawing):
    def __init__(self, scene: Scene, generator: torch.Generator) -> None:
        self.scene, self.frame = scene, torch.randint(LAST_FRAME, (1,), generator=generator)
        super().__init__(self._picture(scene), self._picture(scene, with_object=False), generator)

    def subject(self) -> Layer:
        return self._layer(self.scene)

    def recoloured(self) -> Tensor:
        return self._picture(self._other("colour"))

    def another(self) -> Layer:
        return self._layer(self._other("object"))

    def _picture(self, scene: Scene, with_object: bool = True) -> Tensor:
        return render(scene, self.frame, with_object=with_object)[0][0].float()

    def _layer(self, scene: Scene) -> Layer:
        video, mask = render(scene, self.frame)
        return Layer(video[0].float(), F.max_pool2d(mask, 3, 1, 1)[0])

    def _other(self, group: str) -> Scene:
        """The same scene with another value of an attribute."""
        picks = self.scene.picks()
        return Scene(**{**picks, group: self.pick_other(picks[group], len(values(group)))}, chance=self.scene.chance)


def examples(seed: int, count: int, kinds: tuple[str, ...]) -> Examples:
    """Pictures of so many scenes, kinds in turn. Of a spoilt subject, colour and object are `UNKNOWN`."""
    generator = torch.Generator().manual_seed(seed)
    scenes = [scene_of(seed, number) for number in range(count)]
    turns = [kinds[number % len(kinds)] for number in range(count)]
    pictures = torch.stack([SceneDrawing(scene, generator).picture(kind).round().byte() for scene, kind in zip(scenes, turns, strict=True)])
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
    return kept(work / "reader.pt", QUESTIONS, HEIGHT, WIDTH, lambda: train_reader(seed, count, steps))


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
