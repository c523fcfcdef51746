"""Runs an experiment of `plans` on a model. Experiments share their rollouts in one folder. The result is a `results.Result`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, islice, product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lolrt import measures
from lolrt.errors import Error
from lolrt.lab import tables
from lolrt.lab.plans import EXPERIMENTS, PLAIN, Cells, Setting
from lolrt.lab.policy import Policy
from lolrt.lab.results import Cell, Result
from lolrt.lab.rollout import Folder, Plan, Video, collapse_at, loaded, predicted_cost, predicted_frames
from lolrt.lab.rollout import run as run_videos
from lolrt.pipeline import Pipeline
from lolrt.session.stream import LatentStream

# The offset sweep keeps the content of this many latent frames fixed: enough to fill the window.
HELD_FRAMES = 24


def run(name: str, model: str, frames: int, videos: int, draws: int, only: Sequence[str], sweeps: bool, output: Path, jobs: int) -> Path:
    """Runs an experiment and writes <name>.json, .md and .png into `output`; returns the path of the table. only: runs only these cells
    and plain RoPE. sweeps: instead of rollouts, varies the frame number of one chunk, and writes <name>-sweep.
    """
    pipe = loaded(model)
    if not pipe.example_prompts:
        raise Error(f"{model} names no example prompts, of which the videos of an experiment are made")
    config = pipe.dit.config
    cells = EXPERIMENTS[name].cells(Setting(draws, frames, config.num_layers, config.num_heads, config.temporal_pairs))
    if unknown := [cell for cell in only if cell not in cells]:
        raise Error(f"{name} has no cell {unknown[0]!r}; expected some of {', '.join(map(repr, cells))}")
    cells = {cell: policies for cell, policies in cells.items() if not only or cell in only or cell in PLAIN}
    chosen = [(pipe.example_prompts[i % len(pipe.example_prompts)], i) for i in range(videos)]
    folder = Folder(output, Plan(model, frames, decode=False))
    if sweeps or name == "offsets":
        print(told_before(pipe, folder.plan, cells, chosen, every=not sweeps), file=sys.stderr)
        found = {cell: swept(pipe, frames, policies, chosen, cell, every=not sweeps) for cell, policies in cells.items()}
    else:
        run_videos(folder, [Video(policy, *video) for policies in cells.values() for policy in policies for video in chosen], jobs)
        found = rolled_out(folder, cells, chosen)
    stem = f"{name}-sweep" if sweeps else name
    kept, path = output / f"{stem}.json", output / f"{stem}.md"
    Result(name, model, frames, draws, list(only), sweeps, chosen, predicted_frames(pipe, frames), found).write(kept)
    result = Result.read(kept)
    tables.figure(result, output / f"{stem}.png")
    path.write_text(f"# {name}: {EXPERIMENTS[name].question}\n\n{tables.setting(result)}\n\n{tables.table(result)}\n")
    return path


def told_before(pipe: Pipeline, plan: Plan, cells: Cells, videos: Sequence[tuple[str, int]], every: bool) -> str:
    """A line about the sweeps to make."""
    numbers = {cell: len(chunk_numbers(pipe, plan.frames, policies, every)[0]) for cell, policies in cells.items()}
    chunks = [(Video(policy, *video), numbers[cell]) for cell, policies in cells.items() for policy in policies for video in videos]
    first = f"{len(chunks)} sweeps of one chunk are to be made, over numbers up to {plan.frames}"
    return f"{first}, {sum(count for _, count in chunks)} chunks in all: {predicted_cost(plan, chunks)}"


def rolled_out(folder: Folder, cells: Cells, videos: Sequence[tuple[str, int]]) -> dict[str, Cell]:
    """The collapse and motion measures of each cell, from the rollouts in the folder. Motion is relative to plain RoPE's in the same
    video, because it differs far more between scenes than between policies. "own" is at each policy's own frames, if all policies of the
    cell have some."""
    pipe, frames = loaded(folder.plan.model), folder.plan.frames
    places = [*map(str, predicted_frames(pipe, frames)), "elsewhere"]
    known = folder.rows[Video(PLAIN["plain"][0], *videos[0]).key]
    names = [name for what in ("dip", "rise", "synchrony") for place in places if (name := f"{what}_{place}") in known]
    found = {}
    for cell, policies in cells.items():
        numbers = {name: folder.table(policies, videos, name) for name in (*names, "sink_collapse", "motion")}
        numbers["motion"] = numbers["motion"] / folder.table(PLAIN["plain"], videos, "motion")
        drops = [measures.drop(measures.nearest(folder.series(Video(policies[0], *video))["distance"])) for video in videos]
        own_frames = [predicted_frames(pipe, frames, policy) for policy in policies]
        if all(own_frames):
            at = [
                [collapse_at(folder.series(Video(policy, *video)), own) for video in videos]
                for policy, own in zip(policies, own_frames, strict=True)
            ]
            numbers |= {f"{what}_own": np.array([[one[what] for one in row] for row in at]) for what in at[0][0]}
        found[cell] = Cell(policies, numbers, measures.snap_back(np.stack(drops)), own_frames if any(own_frames) else [])
    return found


@lru_cache(maxsize=32)
def held(pipe: Pipeline, prompt: str, seed: int) -> LatentStream:
    """A stream of plain RoPE whose window has just been filled: the fixed content of a sweep."""
    stream = pipe.latent_stream(prompt, seed=seed, rope=Policy.parse(PLAIN["plain"][0]).rope)
    for _ in islice(stream, HELD_FRAMES // stream.window.chunk_frames):
        pass
    return stream


def sweep(pipe: Pipeline, policy: str, prompt: str, seed: int, starts: Sequence[int]) -> np.ndarray:
    """The mass on the sinks, [starts, layers, heads], of the same chunk at different frame numbers: it is denoised from the same noise
    over the same cached frames, as if it began at each of `starts`. The sinks keep their numbers. The cached frames come from plain RoPE.
    """
    content = held(pipe, prompt, seed)
    tensors, origin = content.snapshot().tensors, content.next_frame
    parsed = Policy.parse(policy, pipe.window)
    moved = pipe.latent_stream(prompt, seed=seed, rope=parsed.rope, window=parsed.window, probe=True)
    moved.session.noise = lambda _, n_frames, step: content.session.noise(origin, n_frames, step)
    snapshot = moved.snapshot()  # on purpose, its policy is not the one that made the content
    masses = []
    for start in starts:
        frames = tensors["cache.frames"].clone()
        frames[moved.window.sink_frames :] += start - origin
        moved.restore(replace(snapshot, tensors={**tensors, "cache.frames": frames, "next_frame": torch.tensor(start)}))
        mass = next(moved).mass
        assert mass is not None
        masses.append(mass[..., : moved.window.sink_frames].sum(-1).mean(-1).numpy())
    return np.array(masses)


def swept(pipe: Pipeline, frames: int, policies: Sequence[str], videos: Sequence[tuple[str, int]], cell: str, every: bool) -> Cell:
    """The offset sweep of a cell. every: a chunk is said to begin at each multiple of its length up to `frames`, and the medians of which
    `measures` speaks are over the sweep past its first 33 frames; otherwise only at the predicted frames and at the policies' own, at
    their neighbours, and at every third chunk elsewhere, over which the medians are then.
    """
    chunk = Policy.parse(policies[0], pipe.window).window.chunk_frames
    predicted = predicted_frames(pipe, frames)
    own_frames = [predicted_frames(pipe, frames, policy) for policy in policies]
    apart = sorted({frame // chunk for frame in measures.elsewhere(frames, predicted)})
    numbers_of, usual = chunk_numbers(pipe, frames, policies, every)
    starts = chunk * np.array(numbers_of)
    pairs = tqdm(list(product(policies, videos)), desc=cell, unit=" sweeps")
    masses = np.array([sweep(pipe, policy, prompt, seed, starts.tolist()) for policy, (prompt, seed) in pairs])
    totals = masses.mean((2, 3))
    middle = np.median(totals[:, usual], axis=1, keepdims=True)
    rises = np.divide(totals, middle, out=np.zeros_like(totals), where=middle > 0)
    together = (masses > measures.RAISED * np.median(masses[:, usual], axis=1, keepdims=True)).mean((2, 3))
    places = {str(frame): [[frame // chunk]] * len(policies) for frame in predicted}
    if every:
        places["elsewhere"] = [apart] * len(policies)
    if all(own_frames):
        places["own"] = [[frame // chunk for frame in own] for own in own_frames]
    numbers: dict[str, np.ndarray] = {}
    for place, chunks in places.items():
        for what, series in (("rise", rises), ("synchrony", together)):
            of_policy = zip(series.reshape(len(policies), len(videos), -1), chunks, strict=True)
            numbers[f"{what}_{place}"] = np.array(
                [_highest(rows, [list(numbers_of).index(number) for number in at]) for rows, at in of_policy]
            )
    series = {"start": starts, "mass": totals.mean(0), "synchrony": together.mean(0)} if every else {}
    return Cell(list(policies), numbers, series=series, own_frames=own_frames if any(own_frames) else [])


def chunk_numbers(pipe: Pipeline, frames: int, policies: Sequence[str], every: bool) -> tuple[Sequence[int], list[int]]:
    """The numbers of chunks that a sweep of these policies goes over, and the places in it that medians are over; see `swept`."""
    chunk = Policy.parse(policies[0], pipe.window).window.chunk_frames
    predicted = predicted_frames(pipe, frames)
    apart = sorted({frame // chunk for frame in measures.elsewhere(frames, predicted)})
    own_frames = chain.from_iterable(predicted_frames(pipe, frames, policy) for policy in policies)
    around = {frame // chunk + step for frame in (*predicted, *own_frames) for step in (-1, 0, 1)}
    numbers = range(HELD_FRAMES // chunk, frames // chunk) if every else sorted({*around, *apart[::3]})
    return numbers, [i for i, number in enumerate(numbers) if (i >= measures.REFERENCE_FRAMES // 3 if every else number not in around)]


def _highest(rows: np.ndarray, at: Sequence[int]) -> np.ndarray:
    """The highest of each of these entries and its two neighbours, mean over the entries; series: [videos, n]."""
    return np.mean([rows[:, i - 1 : i + 2].max(1) for i in at], axis=0)
