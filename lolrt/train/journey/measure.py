"""Everything that the card of `journey` says of it, measured from its files, section by section."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import lolrt.pipeline
from lolrt.models.vae.wan import CausalVAE
from lolrt.pipeline import Pipeline
from lolrt.train import text
from lolrt.train.card import keep
from lolrt.train.codec_pca import load_codec, to_unit
from lolrt.train.journey.data import DataSizes, draw_clip
from lolrt.train.journey.landscape import render
from lolrt.train.journey.reading import GROUPS, accuracy, has_subject, kept_reader, shows
from lolrt.train.journey.watch import CHUNK_SECONDS, LOOKS, OWN, PLAIN, SCRIPTED, Video, Watched, watched
from lolrt.train.journey.world import SPEEDS, VOCABULARY, Prompt, World, draw_prompt, named
from lolrt.train.reader import Reader, first_run
from lolrt.train.teacher_forcing import CHUNK
from lolrt.train.train_vae import codec_quality

RULED = ("hills", "town", "sea", "city")  # places whose near ground has marks: on scripted video of these, the speed is within 5 %
SWITCHED = tuple(itertools.combinations(GROUPS, 2))  # what a switch changes, in turns
RETURNS, AROUND = (132, 201), 5  # latent frames where plain RoPE's phases return, and the chunks before and after that are looked at
STAYS = 3  # chunks in a row that show what is new, before it counts as there
WITHIN = {"place": 6.0, "time": 4.0, "weather": 4.0, "colour": 2.0, "subject": 8.0}  # seconds that a switch may take
DATA_WORLDS, DATA_LOOKS = 24, 8  # scripted worlds of a prompt, and frames of each, that a video is compared with


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    codec_clips: int = 12
    codec_frames: int = 81
    minutes: int = 10
    plain_minutes: int = 2
    """Past all frames of RETURNS."""
    videos: int = 4
    """Of each policy, of the first subjects in turns."""
    returns: int = 8
    """Videos of each policy whose place changes."""
    switches: int = 60
    before: int = 12
    """Chunks before a switch."""
    after: int = 14
    """Chunks that are looked at after a switch."""
    training: int = 12_000
    """Pictures that the reader learns from."""
    training_steps: int = 1500
    held_out: int = 1100
    """Pictures that the reader is tried on, a hundred of each kind."""


def measure(out: Path, work: Path, seed: int, data: DataSizes, effort: Effort) -> None:
    """Measures the model in the folder `out`; `work` has the codec, and keeps the reader, the latents and what was seen of videos."""
    pipe = lolrt.pipeline.load(out)
    vae = cast(CausalVAE, pipe.vae)
    parameters = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in (("vae", vae), ("dit", pipe.dit))}
    sizes = {"z_dim": pipe.dit.config.in_dim, "clips": data.train, **{f"{name}_parameters": count for name, count in parameters.items()}}
    clips = torch.stack([render(draw_clip(seed + 2, n).world, torch.arange(effort.codec_frames))[0] for n in range(effort.codec_clips)])
    quality = codec_quality(vae, load_codec(work), to_unit(clips))
    keep(out, sizes=sizes, codec={"frames": effort.codec_frames, "decibels": quality})
    reader = kept_reader(work, seed, effort.training, effort.training_steps)
    keep(out, reader={"worlds": effort.held_out, "right": accuracy(reader, vae, seed, effort.held_out)})
    keep(out, long_run={"minutes": effort.minutes, "videos": list(long_videos(pipe, reader, effort, work))})
    keep(out, returns=returns(pipe, reader, effort, work))
    keep(out, switches=switches(pipe, reader, effort, work))


def steady_prompts(count: int) -> Iterator[Prompt]:
    """Prompts in which the time is named, whose subject, place and speed take turns."""
    generator = torch.Generator().manual_seed(1)
    for number in range(count):
        prompt = draw_prompt(generator)
        place = text.values(VOCABULARY, "place").index(RULED[number % len(RULED)])
        yield {**prompt, "subject": number % 4, "place": place, "time": prompt["time"] % 4, "weather": 0, "speed": number % 2}


def long_videos(pipe: Pipeline, reader: Reader, effort: Effort, work: Path) -> Iterator[dict[str, Any]]:
    """What was measured of each long video; a prompt's number is its seed."""
    for policy, minutes in ((OWN, effort.minutes), (PLAIN, effort.plain_minutes), (SCRIPTED, 1)):
        for seed, prompt in enumerate(steady_prompts(effort.videos)):
            seen = watched(pipe, Video(policy, ((0, prompt),), seed, round(60 * minutes / CHUNK_SECONDS)), work)
            found = {"policy": policy, "minutes": minutes, "prompt": " ".join(named(prompt)), **judged(seen, reader, prompt, minutes)}
            print({name: value for name, value in found.items() if name != "right"}, flush=True)
            yield found


def judged(seen: Watched, reader: Reader, prompt: Prompt, minutes: int) -> dict[str, Any]:
    """The numbers of a long video.

    right: of each minute, the share of chunks with exactly one whole subject of the right kind and colour. read: of each group, the share
    of chunks that show what the prompt says. speed: the median of the camera's speed over what was asked. drift: of luminance and the
    others, the last minute's mean less the mean of the scripted data, in standard deviations of the data. border: the change between
    frames where chunks begin over that elsewhere.
    """
    read = reader.read(seen.pictures)
    data = data_looks(prompt)
    drift = {
        name: float((values[-len(values) // minutes :].mean() - data[name].mean()) / data[name].std())
        for name, values in seen.looks().items()
    }
    return {
        "right": [float(part.float().mean()) for part in has_subject(read, prompt).tensor_split(minutes)],
        "read": {group: float(there.float().mean()) for group, there in shows(read, prompt).items()},
        "speed": float(seen.speed.median()) / SPEEDS[prompt["speed"]],
        "drift": drift,
        "border": seen.border_change(),
    }


def data_looks(prompt: Prompt) -> dict[str, np.ndarray]:
    """Luminance, saturation and sharpness of scripted frames of a prompt."""
    frames = torch.cat([
        render(World(seed, ((0, prompt),)), torch.randint(10_000, (DATA_LOOKS,), generator=torch.Generator().manual_seed(seed)))[0]
        for seed in range(DATA_WORLDS)
    ])  # fmt: skip
    pictures = frames.permute(0, 2, 3, 1).numpy()
    return {look.__name__: look(pictures) for look in LOOKS}


def returns(pipe: Pipeline, reader: Reader, effort: Effort, work: Path) -> dict[str, dict[str, list[float]]]:
    """Does a video fall back to the place that it has left? The prompt of each changes its place, and nothing else; of the chunks around
    each latent frame of RETURNS, and of as many right before them, the share that shows the first place. policy -> frame -> shares."""
    found: dict[str, dict[str, list[float]]] = {}
    for policy in (OWN, PLAIN):
        found[policy] = {str(frame): [] for at in RETURNS for frame in (at - 2 * AROUND * CHUNK, at)}
        for seed, old in enumerate(steady_prompts(effort.returns)):
            new = {**old, "place": (old["place"] + 2 + seed // 4) % len(text.values(VOCABULARY, "place"))}
            video = Video(policy, ((0, old), (effort.before, new)), seed, RETURNS[-1] // CHUNK + AROUND + 1)
            back = reader.read(watched(pipe, video, work).pictures)["place"] == old["place"]
            for frame, shares in found[policy].items():
                chunk = int(frame) // CHUNK
                shares.append(float(back[chunk - AROUND : chunk + AROUND + 1].float().mean()))
        print(policy, found[policy], flush=True)
    return found


def switches(pipe: Pipeline, reader: Reader, effort: Effort, work: Path) -> dict[str, Any]:
    """Seconds from each switch until STAYS chunks in a row show the new value of a group, by the end of the first of them; None where
    that does not come."""
    seconds: dict[str, list[float | None]] = {group: [] for group in GROUPS}
    for seed in range(effort.switches):
        old, new = switch(seed)
        script = ((0, old), (effort.before, new))
        read = reader.read(watched(pipe, Video(OWN, script, seed, effort.before + effort.after), work).pictures[effort.before :])
        for group in GROUPS:
            if new[group] != old[group]:
                at = first_run(read[group] == new[group], STAYS)
                seconds[group].append(None if at is None else CHUNK_SECONDS * (at + 1))
        print(f"{' '.join(named(old))} -> {' '.join(named(new))}: {[found[-1] for found in seconds.values() if found]}", flush=True)
    return {"number": effort.switches, "before_seconds": effort.before * CHUNK_SECONDS, "chunks_in_a_row": STAYS, "seconds": seconds}


def switch(seed: int) -> tuple[Prompt, Prompt]:
    """Two prompts whose times are named, that differ in two groups."""
    generator = torch.Generator().manual_seed(1000 + seed)
    old = draw_prompt(generator)
    old["time"] %= 4
    new = dict(old)
    for group in SWITCHED[seed % len(SWITCHED)]:
        count = len(text.values(VOCABULARY, group))
        new[group] = (old[group] + 1 + int(torch.randint(count - 1, (), generator=generator))) % count
    return old, new
