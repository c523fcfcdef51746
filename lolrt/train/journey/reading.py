"""What is in a picture of `journey`? A reader trained on the scripted world, also in the midst of changes of place, and with its subject
spoilt.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt.models.vae.codec import Codec
from lolrt.train import text
from lolrt.train.journey.landscape import labels, render
from lolrt.train.journey.world import FRONT_SPEED, FRONT_START, HEIGHT, VOCABULARY, WIDTH, Prompt, World, draw_prompt
from lolrt.train.reader import UNKNOWN, Questions, Reader, kept, through_codec
from lolrt.train.spoilt import FLAWS, GOOD, KINDS, WHOLE, Drawing, Examples, Layer

GROUPS = ("colour", "subject", "place", "time", "weather")  # a picture does not show how fast one travels
QUESTIONS: Questions = {**{group: text.values(VOCABULARY, group) for group in GROUPS}, WHOLE: ["no", "yes"]}
LAST_FRAME = 10_000  # worlds are looked at anywhere up to there
CLEAR = 0.65  # the share of a place, time or weather from which on it is the answer


def draw_world(seed: int, number: int) -> tuple[World, int]:
    """A world and one of its frames; in every third, another place is coming in."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
    first = draw_prompt(generator)
    prompts, frame = [(0, first)], int(torch.randint(LAST_FRAME, (), generator=generator))
    if number % 3 == 0:
        count = len(text.values(VOCABULARY, "place"))
        other = (first["place"] + 1 + int(torch.randint(count - 1, (), generator=generator))) % count
        way = int(torch.randint(int((FRONT_START + WIDTH) / FRONT_SPEED), (), generator=generator))
        prompts.append((frame + 1, {**first, "place": other}))
        frame += 1 + way
    return World(seed * 1_000_003 + number, tuple(prompts)), frame


class WorldDrawing(Drawing):
    def __init__(self, world: World, frame: int, generator: torch.Generator) -> None:
        self.world, self.frame = world, torch.tensor([frame])
        super().__init__(self._layer(world).colour, render(world, self.frame, with_subjects=False)[0][0].float(), generator)

    def subject(self) -> Layer:
        return self._layer(self.world)

    def recoloured(self) -> Tensor:
        return self._layer(self._other("colour")).colour

    def another(self) -> Layer:
        return self._layer(self._other("subject"))

    def _layer(self, world: World) -> Layer:
        video, mask = render(world, self.frame)
        return Layer(video[0].float(), F.max_pool2d(mask, 3, 1, 1)[0])

    def _other(self, group: str) -> World:
        """The same world with another subject, or one of another colour, all the time."""
        value = self.pick_other(self.world.prompts[0][1][group], len(text.values(VOCABULARY, group)))
        return World(self.world.seed, tuple((frame, {**prompt, group: value}) for frame, prompt in self.world.prompts))


def answers_of(world: World, frame: int) -> dict[str, int]:
    """What a frame shows, by the index of the answer; `UNKNOWN` where that is not clear."""
    told = labels(world, torch.tensor([frame]))
    return {group: int(told[group][0].argmax()) if float(told[group][0].max()) >= CLEAR else UNKNOWN for group in GROUPS}


def examples(seed: int, count: int, kinds: tuple[str, ...]) -> Examples:
    """Pictures of so many worlds, kinds in turn. Of a spoilt subject, colour and kind are `UNKNOWN`."""
    generator = torch.Generator().manual_seed(seed)
    turns = [kinds[number % len(kinds)] for number in range(count)]
    pictures, answers = [], []
    for number, kind in enumerate(turns):
        world, frame = draw_world(seed, number)
        pictures.append(WorldDrawing(world, frame, generator).picture(kind).round().byte())
        good = kind in GOOD
        answers.append({**answers_of(world, frame), **({} if good else {"colour": UNKNOWN, "subject": UNKNOWN}), WHOLE: int(good)})
    told = {question: torch.tensor([one[question] for one in answers]) for question in QUESTIONS}
    return Examples(torch.stack(pictures).permute(0, 2, 3, 1).contiguous(), told, turns)


def train_reader(seed: int, count: int, steps: int) -> Reader:
    """The reader, from nothing; half of its examples have one whole subject."""
    torch.manual_seed(seed)
    reader = Reader(QUESTIONS, HEIGHT, WIDTH)
    shown = examples(seed + 14, count, tuple(kind for flaw in FLAWS for kind in (flaw, GOOD[len(flaw) % 2])))
    reader.train_on(shown.pictures, shown.answers, steps, seed)
    return reader


def kept_reader(work: Path, seed: int, count: int, steps: int) -> Reader:
    """The reader that `work` holds, or else a new one, which is kept there."""
    return kept(work / "reader.pt", QUESTIONS, HEIGHT, WIDTH, lambda: train_reader(seed, count, steps))


def accuracy(reader: Reader, vae: Codec, seed: int, count: int) -> dict[str, float]:
    """How often the reader is right on held-out worlds that went through the codec: on what each picture shows, and on whether there is
    one whole subject, by kind of picture."""
    held_out = examples(seed + 15, count, KINDS)
    read = reader.read(through_codec(vae, held_out.pictures))
    found = {}
    for group in GROUPS:
        known = held_out.answers[group] != UNKNOWN
        found[group] = float((read[group] == held_out.answers[group])[known].float().mean())
    right = (read[WHOLE] == held_out.answers[WHOLE]).float()
    for kind in KINDS:
        found[kind] = float(right[torch.tensor([one == kind for one in held_out.kinds])].mean())
    return found


def shows(read: dict[str, Tensor], prompt: Prompt, groups: tuple[str, ...] = GROUPS) -> dict[str, Tensor]:
    """Group -> whether each picture shows what a prompt says, bool [n]."""
    return {group: read[group] == prompt[group] for group in groups}


def has_subject(read: dict[str, Tensor], prompt: Prompt) -> Tensor:
    """Whether each picture has exactly one whole subject, of the kind and the colour of a prompt, bool [n]."""
    said = shows(read, prompt, ("colour", "subject"))
    return (read[WHOLE] == 1) & said["colour"] & said["subject"]
