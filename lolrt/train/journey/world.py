"""The world of `journey`: an endless landscape, and prompts that change it during the journey.

A world is a seed and a list of prompts with the video frames from which they count. The contents of a frame are a function of these and of
the frame's number, so any frame can be drawn alone and nothing ever repeats. This module has the part without pixels: the prompts, the
position of the camera, and the weights of the old and the new during a change.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from lolrt.train.text import values

HEIGHT, WIDTH, FPS = 80, 144, 16

# One word per value first, then words that mean the same.
VOCABULARY: dict[str, dict[str, str]] = {
    "colour": {"red": "red", "yellow": "yellow", "green": "green", "blue": "blue", "white": "white"},
    "subject": {"car": "car", "bus": "bus", "horse": "horse", "balloon": "balloon", "coach": "bus", "pony": "horse"},
    "place": {"hills": "hills", "town": "town", "forest": "forest", "sea": "sea", "desert": "desert", "city": "city",
              "meadows": "hills", "village": "town", "woods": "forest", "coast": "sea", "dunes": "desert", "downtown": "city"},
    "time": {"dawn": "dawn", "day": "day", "dusk": "dusk", "night": "night",
             "sunrise": "dawn", "noon": "day", "sunset": "dusk", "moonlight": "night"},
    "weather": {"clear": "clear", "rain": "rain", "snow": "snow", "fog": "fog",
                "sunny": "clear", "rainy": "rain", "snowy": "snow", "mist": "fog"},
    "speed": {"slow": "slow", "fast": "fast", "slowly": "slow", "quickly": "fast"},
}  # fmt: skip
FILLER = ["a", "an", "the", "over", "above", "on", "in", "at", "by", "near", "through", "across", "along", "past", "with", "of", "and",
          "to", "into", "under", "from", "weather", "light", "skies", "driving", "riding", "drifting", "flying", "floating", "galloping",
          "moving", "travelling", "going"]  # fmt: skip
GROUPS = list(VOCABULARY)
PASSING = -1  # index of a time that is not named: the day goes round

SPEEDS = (1.3, 2.3)  # pixels a frame of what is nearest, slow and fast
FRONT_SPEED, FRONT_START = 2.6, WIDTH + 24.0  # pixels a frame at which the next place comes in, from beyond the right edge
FADES = {"time": 40, "weather": 40, "colour": 16, "speed": 16}  # frames that a change takes
EXCHANGE = 60  # frames in which one subject leaves and the next arrives
EXCHANGE_WAY = 118.0  # pixels that both move meanwhile
DAY = 16 * 96  # frames of a day that goes round

Prompt = dict[str, int]  # group -> index of its value; time may be PASSING


def named(prompt: Prompt) -> list[str]:
    """The words of a prompt, in the order of the groups; none for a time that passes."""
    return [values(VOCABULARY, group)[prompt[group]] for group in GROUPS if prompt[group] != PASSING]


def smooth(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, and a smooth step between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _smooth_integral(x: Tensor) -> Tensor:
    inside = x.clamp(0, 1)
    return inside**3 - inside**4 / 2 + (x - 1).clamp(min=0)


@dataclass(frozen=True)
class World:
    """seed: of all that is random in it. prompts: (first video frame, prompt), the first one from frame 0 on."""

    seed: int
    prompts: tuple[tuple[int, Prompt], ...]

    def __post_init__(self) -> None:
        frames = [frame for frame, _ in self.prompts]
        assert frames[0] == 0 and frames == sorted(set(frames)), f"prompts begin at frame 0 and follow each other, not {frames}"

    def prompt_at(self, frame: int) -> Prompt:
        return [prompt for first, prompt in self.prompts if first <= frame][-1]

    def changes(self, group: str) -> list[tuple[int, int]]:
        """(first frame, index of the value) of every prompt that changes a group, the first prompt included."""
        kept: list[tuple[int, int]] = []
        for frame, prompt in self.prompts:
            if not kept or kept[-1][1] != prompt[group]:
                kept.append((frame, prompt[group]))
        return kept

    def weights(self, group: str, frames: Tensor) -> Tensor:
        """How much of each value of a group there is: frames [T] to [T, values], each row a sum of one."""
        return _fade(self.changes(group), frames, len(values(VOCABULARY, group)), FADES[group])

    def time(self, frames: Tensor) -> Tensor:
        """How much of each time of day there is, [T, 4]. A time that is not named goes on round from the one before."""
        count, weights, phase = len(values(VOCABULARY, "time")), torch.zeros(len(frames), 4), 1.0
        for number, (first, index) in enumerate(self.changes("time")):
            if index == PASSING:
                if number == 0:
                    phase = 4 * uniform(self.seed, 90, torch.zeros(1)).item()
                target = _round_the_day(phase + (frames - first) * (count / DAY))
            else:
                phase, target = float(index), torch.eye(count)[index].expand(len(frames), -1)
            share = smooth((frames - first) / FADES["time"]) if number else torch.ones(len(frames))
            weights = torch.lerp(weights, target.to(weights), share[:, None].to(weights))
        return weights

    def distance(self, frames: Tensor) -> Tensor:
        """Where the camera is, float64 [T], in pixels of what is nearest; every world begins somewhere else."""
        speeds = self.changes("speed")
        frames = frames.double()
        way = SPEEDS[speeds[0][1]] * frames + 1e5 * uniform(self.seed, 91, torch.zeros(1)).double()
        for (_, before), (first, index) in itertools.pairwise(speeds):
            way = way + (SPEEDS[index] - SPEEDS[before]) * FADES["speed"] * _smooth_integral((frames - first) / FADES["speed"])
        return way

    def speed(self, frames: Tensor) -> Tensor:
        """Pixels a frame of what is nearest, [T]."""
        return self.weights("speed", frames) @ torch.tensor(SPEEDS)

    def places(self, frames: Tensor, x: Tensor, softness: float) -> tuple[Tensor, Tensor]:
        """Which place each column shows. x: [W] screen columns; softness: pixels from the one to the other.

        Returns weights [T, W, places], and how far each column is from the nearest border of two places, [T, W] in pixels.
        """
        count = len(values(VOCABULARY, "place"))
        weights, distance = torch.zeros(len(frames), len(x), count), torch.full((len(frames), len(x)), 1e4)
        for number, (first, index) in enumerate(self.changes("place")):
            border = FRONT_START - FRONT_SPEED * (frames[:, None] - first)
            ahead = x - border if number else torch.full_like(distance, 1e4)
            weights = torch.lerp(weights, torch.eye(count)[index], smooth(ahead / softness + 0.5)[..., None])
            distance = torch.minimum(distance, ahead.abs())
        return weights, distance

    def subjects(self, frames: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Those that are followed, and those that come and go: (index, pixels from the middle of the screen [T], colours [T, 5]) each.
        Only those who are in view at some time."""
        changes = self.changes("subject")
        ends = [first for first, _ in changes[1:]] + [None]
        there = []
        for (first, index), end in zip(changes, ends, strict=True):
            away = torch.zeros(len(frames))
            if first:
                away = away + EXCHANGE_WAY * (1 - smooth((frames - first) / EXCHANGE))
            if end is not None:
                away = away - EXCHANGE_WAY * smooth((frames - end) / EXCHANGE)
            present = (frames >= first) & (away.abs() < EXCHANGE_WAY - 1)
            if not present.any():
                continue
            colours = [(frame, prompt["colour"]) for frame, prompt in self.prompts if frame < (1 << 62 if end is None else end)]
            colours = [(0, [c for frame, c in colours if frame <= first][-1])] + [(f, c) for f, c in colours if f > first]
            away = torch.where(frames >= first, away, torch.tensor(2 * EXCHANGE_WAY))
            there.append((index, away, _fade(colours, frames, len(values(VOCABULARY, "colour")), FADES["colour"])))
        return there


def _fade(changes: list[tuple[int, int]], frames: Tensor, count: int, duration: int) -> Tensor:
    weights = torch.eye(count)[changes[0][1]].expand(len(frames), -1)
    for first, index in changes[1:]:
        weights = torch.lerp(weights, torch.eye(count)[index], smooth((frames - first) / duration)[:, None])
    return weights


def _round_the_day(phase: Tensor) -> Tensor:
    """Weights [T, 4] of the times at a phase [T], 0 being dawn, 1 day and so on; each lasts a while."""
    before = phase.floor()
    share = smooth((phase - before - 0.25) / 0.75)
    eye = torch.eye(4, dtype=share.dtype)
    return torch.lerp(eye[before.long() % 4], eye[(before.long() + 1) % 4], share[:, None])


def uniform(seed: int, stream: int, cells: Tensor) -> Tensor:
    """Random numbers in [0, 1), float32: a hash of seed, stream and cell (whole numbers), the same wherever it is asked for."""
    key = (seed * 1_000_003 + stream + 1) * -4417276706812531889
    x = cells.long() * -7046029254386353131 + ((key + (1 << 63)) % (1 << 64) - (1 << 63))
    for factor in (-4658895280553007687, -7723592293110705685):
        x = (x ^ ((x >> 31) & 0x1FFFFFFFF)) * factor
    return ((x >> 33) & 0xFFFFFF).float() / 2**24


def draw_prompt(generator: torch.Generator) -> Prompt:
    """A random prompt; in every sixth the time passes."""
    prompt = {group: int(torch.randint(len(values(VOCABULARY, group)), (), generator=generator)) for group in GROUPS}
    if torch.rand((), generator=generator) < 1 / 6:
        prompt["time"] = PASSING
    return prompt


def change_prompt(prompt: Prompt, generator: torch.Generator) -> Prompt:
    """Another prompt, in which one to three groups are different."""
    changed = dict(prompt)
    number = 1 + int(torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 1, generator=generator))
    importance = torch.tensor([1.0, 1.6, 1.8, 1.3, 1.3, 0.5])
    for pick in torch.multinomial(importance, number, generator=generator).tolist():
        group = GROUPS[pick]
        others = [i for i in range(PASSING if group == "time" else 0, len(values(VOCABULARY, group))) if i != prompt[group]]
        changed[group] = others[int(torch.randint(len(others), (), generator=generator))]
    return changed
