"""Measures what a stream remembers of a scene that it returns to. The stream opens on one scene, visits a second, stays in a third for
longer than its window, and then gets the prompt of the second again.

The opening is a separate scene because the sinks of the window remember it for ever. Prompts name no colour, so the stream itself chooses
the colour of the object: a stream that has forgotten it draws another one.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import lolrt
from lolrt import measures, workers
from lolrt.errors import Error
from lolrt.lab.policy import Policy
from lolrt.lab.rollout import Plan, Video, loaded, predicted_cost
from lolrt.lab.statistics import interval
from lolrt.lab.tables import markdown
from lolrt.session.stream import LatentChunk

# The opening, the scene, and the scene in between, in words of the embedded model.
SCENES = (
    ("a sailboat at sea at dusk", "a balloon over the hills at noon", "a boat on the sea at night"),
    ("a car in the desert at noon", "a boat on the sea at dusk", "a balloon over the mountains at night"),
    ("a balloon over the sea at night", "a car in the hills at dawn", "a boat by the mountains at noon"),
)
# The chunks of each part.
OPENING, VISIT, AWAY, RETURN = 4, 8, 10, 8
# The frames after a new prompt in which the scene settles. They are not measured.
SETTLING = 6


@dataclass(frozen=True)
class Journey:
    """One stream: the latents [frames, ...] of the scene in the first visit and in the return, and the frames that were recalled in the
    return."""

    first: np.ndarray
    again: np.ndarray
    recalled_from_first: float
    """The share of the recalled frames that come from the first visit; 0 if no frame was recalled."""


def journey(model: str, policy: str, scenes: tuple[str, str, str], seed: int) -> Journey:
    pipe = loaded(model)
    parsed = Policy.parse(policy, pipe.window)
    opening, scene, between = scenes
    stream = pipe.latent_stream(opening, seed=seed, rope=parsed.rope, window=parsed.window)
    parts: list[list[LatentChunk]] = []
    for prompt, chunks in ((opening, OPENING), (scene, VISIT), (between, AWAY), (scene, RETURN)):
        if parts:
            stream.set_prompt(pipe.encode_text(prompt))
        parts.append(list(islice(stream, chunks)))
    _, first, away, again = parts
    visit = range(first[0].first_frame, away[0].first_frame)
    recalled = [f for chunk in again for f in chunk.page_frames[chunk.sink_frames :][: chunk.recalled_frames]]
    latents = [torch.cat([chunk.latents for chunk in part])[SETTLING:].numpy() for part in (first, again)]
    return Journey(latents[0], latents[1], sum(frame in visit for frame in recalled) / max(1, len(recalled)))


def distance(again: np.ndarray, first: np.ndarray) -> float:
    """Distance to the first visit: the root mean square difference, in latent space, between a frame of the return and that frame of the
    first visit which is nearest to it, mean over the return; 6 frames after each change of the prompt are left out of both."""
    difference = again.reshape(len(again), 1, -1) - first.reshape(1, len(first), -1)
    return float(np.sqrt(np.square(difference).mean(-1)).min(1).mean())


def strangeness(own: int, journeys: Sequence[Journey]) -> float:
    """Strangeness: the distance to the first visit over the mean of that to the first visits of the other streams of the same prompts and
    policy: 1 where nothing is remembered but what the prompt says, less where the scene is known again."""
    again = journeys[own].again
    others = [distance(again, other.first) for i, other in enumerate(journeys) if i != own]
    return distance(again, journeys[own].first) / float(np.mean(others))


def motion(latents: np.ndarray) -> float:
    """Motion: the root mean square difference between neighbouring latent frames of the return, mean over them."""
    return float(np.sqrt(np.square(np.diff(latents, axis=0)).reshape(len(latents) - 1, -1).mean(1)).mean())


def run(model: str, policies: Sequence[str], seeds: int, output: Path, jobs: int) -> Path:
    """Runs every scene with every seed under each policy, and writes returning.md, which compares the other policies with the first one."""
    if seeds < 2:
        raise Error(f"--seeds is {seeds}; expected 2 or more, because streams of the same prompts are compared")
    pipe = loaded(model)
    for prompt in {prompt for scenes in SCENES for prompt in scenes}:
        pipe.encode_text(prompt)
    asked = list(product(policies, SCENES, range(seeds)))
    chunks = OPENING + VISIT + AWAY + RETURN
    streams = [(Video(policy, scenes[0], seed), chunks) for policy, scenes, seed in asked]
    told = predicted_cost(Plan(model, 2 * measures.REFERENCE_FRAMES, decode=False), streams)
    print(f"{len(asked)} streams of {chunks} chunks are to be made: {told}", file=sys.stderr)
    with workers.pool(jobs, partial(lolrt.set_threads, 1)) as pool:
        done = list(tqdm(pool.map(journey, *zip(*((model, *each) for each in asked), strict=True)), total=len(asked), unit=" streams"))
    groups = [done[i : i + seeds] for i in range(0, len(done), seeds)]
    per_policy = [groups[i : i + len(SCENES)] for i in range(0, len(groups), len(SCENES))]
    path = output / "returning.md"
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"# What is remembered of a scene that is come back to\n\n{model}, {len(SCENES)} scenes x {seeds} seeds; chunks of opening, first "
        f"visit, another scene, return: {OPENING}, {VISIT}, {AWAY}, {RETURN}. Mean [95 % interval] over the streams.\n\n"
        f"{table(policies, per_policy)}\n\n{definitions()}"
    )
    return path


def table(policies: Sequence[str], journeys: Sequence[Sequence[Sequence[Journey]]]) -> str:
    """The table in Markdown. journeys: [policies][scenes][seeds]. Distance and motion are relative to the first policy with the same
    prompts and noise."""

    def values(measure, policy: int) -> np.ndarray:
        return np.array([[measure(one) for group in journeys[policy] for one in group]])

    rows = [["", "strangeness", "distance over the first policy's", "motion over the first policy's", "recalled from the first visit"]]
    for i, policy in enumerate(policies):
        strange = np.array([[strangeness(own, group) for group in journeys[i] for own in range(len(group))]])
        far, moving = (values(m, i) / values(m, 0) for m in (lambda one: distance(one.again, one.first), lambda one: motion(one.again)))
        share = values(lambda one: one.recalled_from_first, i)
        rows.append([policy, *(str(interval(x)) for x in (strange, far, moving, share))])
    return markdown(rows)


def definitions() -> str:
    texts = (re.sub(r"\s+", " ", inspect.getdoc(measure) or "") for measure in (distance, strangeness, motion))
    return "".join(f"- {text}\n" for text in texts)
