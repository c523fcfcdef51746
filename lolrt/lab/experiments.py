"""Runs an experiment of `plans` and writes its table and figure. Every number is a mean over jitter draws and videos, with its interval
(`statistics.interval`); rollouts are kept in one folder, where experiments share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lolrt.errors import Error
from lolrt.lab import measures
from lolrt.lab.plans import EXPERIMENTS, PLAIN, Cells
from lolrt.lab.plots import pyplot
from lolrt.lab.policy import Policy
from lolrt.lab.rollout import Folder, Plan, Video, loaded, predicted_frames
from lolrt.lab.rollout import run as run_videos
from lolrt.lab.statistics import interval
from lolrt.pipeline import Pipeline

# The offset sweep holds the content of this many chunks fixed: enough to fill the window.
HELD_CHUNKS = 8


def run(name: str, model: str, frames: int, videos: int, draws: int, output: Path, jobs: int) -> Path:
    """Runs an experiment and writes <name>.md and <name>.png into `output`; returns the table's path."""
    if videos < 1 or draws < 1:
        raise Error(f"--videos is {videos} and --draws {draws}; expected 1 or more")
    pipe = loaded(model)
    if not pipe.example_prompts:
        raise Error(f"{model} names no example prompts, of which the videos of an experiment are made")
    cells = EXPERIMENTS[name].cells(draws, frames)
    chosen = [(pipe.example_prompts[i % len(pipe.example_prompts)], i) for i in range(videos)]
    folder = Folder(output, Plan(model, frames, decode=False))
    heading = (
        f"# {name}: {EXPERIMENTS[name].question}\n\n{model}, {videos} videos of {frames} latent frames, up to {draws} jitter draws a cell. "
    )
    if name == "offsets":
        text = offsets(pipe, folder, cells, chosen)
    else:
        run_videos(folder, [Video(policy, *video) for policies in cells.values() for policy in policies for video in chosen], jobs)
        text = table(folder, cells, chosen)
        tradeoff(folder, cells, chosen, output / f"{name}.png")
    path = output / f"{name}.md"
    path.write_text(f"{heading}Mean [95 % interval].\n\n{text}\n")
    return path


def table(folder: Folder, cells: Cells, videos: Sequence[tuple[str, int]]) -> str:
    """Collapse and motion of each cell as Markdown. Motion is over plain RoPE's in the same video, the snap-back test of a cell's first
    draw."""
    predicted = predicted_frames(loaded(folder.plan.model), folder.plan.frames)
    names = [*(f"{what}_{frame}" for frame in predicted for what in ("dip", "rise", "synchrony")), "sink_collapse"]
    rows = [["", *(name.replace("_", " ") for name in names), "sink collapse max", "motion over plain's", "snap-back frame, drop, p"]]
    for cell, policies in cells.items():
        drops = [measures.drop(measures.nearest(folder.series(Video(policies[0], *video))["distance"])) for video in videos]
        frame, height, p = measures.snap_back(np.stack(drops))
        numbers = [str(interval(folder.table(policies, videos, name))) for name in names]
        worst = f"{folder.table(policies, videos, 'sink_collapse').max():.2f}"
        motion = interval(motion_over_plain(folder, policies, videos))
        rows.append([cell, *numbers, worst, str(motion), f"{frame}, {height:.2f}, {p:.3f}"])
    return markdown(rows)


def motion_over_plain(folder: Folder, policies: Sequence[str], videos: Sequence[tuple[str, int]]) -> np.ndarray:
    """[policies, videos]; pairs of the same prompt and noise, because scenes differ far more in their motion than policies do."""
    return folder.table(policies, videos, "motion") / folder.table(PLAIN["plain"], videos, "motion")


def tradeoff(folder: Folder, cells: Cells, videos: Sequence[tuple[str, int]], path: Path) -> None:
    """Collapse against motion, a point a cell: the dip, mean over the predicted frames, and Sink-Collapse."""
    predicted = predicted_frames(loaded(folder.plan.model), folder.plan.frames)
    panels = {"mean dip at predicted frames (1: none)": [f"dip_{frame}" for frame in predicted], "Sink-Collapse Avg": ["sink_collapse"]}
    panels = {label: names for label, names in panels.items() if names}
    figure, axes = pyplot().subplots(1, len(panels), figsize=(7 * len(panels), 4.5), squeeze=False, constrained_layout=True)
    for axis, (label, names) in zip(axes[0], panels.items(), strict=True):
        for cell, policies in cells.items():
            x = interval(motion_over_plain(folder, policies, videos))
            y = interval(np.mean([folder.table(policies, videos, name) for name in names], axis=0))
            axis.errorbar(
                x.value, y.value, xerr=[[x.value - x.low], [x.high - x.value]], yerr=[[y.value - y.low], [y.high - y.value]],
                fmt="o", markersize=4, linewidth=0.8,
            )  # fmt: skip
            axis.annotate(cell, (x.value, y.value), xytext=(4, 4), textcoords="offset points", fontsize=7)
        axis.set(xlabel="latent motion over plain RoPE's", ylabel=label)
    figure.savefig(path, dpi=110)
    pyplot().close(figure)


def sweep(pipe: Pipeline, policy: str, prompt: str, seed: int, starts: Sequence[int]) -> np.ndarray:
    """Mass on the sinks [starts, layers, heads] of one and the same chunk, denoised from the same noise over the same cached frames, but
    numbered as if it began at each of `starts`; the sinks keep their numbers. The cached frames come from plain RoPE.
    """
    held = pipe.latent_stream(prompt, seed=seed, rope=Policy.parse(PLAIN["plain"][0]).rope)
    for _ in islice(held, HELD_CHUNKS):
        pass
    state, origin = held.state_dict(), held.next_frame
    parsed = Policy.parse(policy)
    moved = pipe.latent_stream(prompt, seed=seed, rope=parsed.rope, window=parsed.window, probe=True)
    moved.noise = lambda _, n_frames, step: held.noise(origin, n_frames, step)
    masses = []
    for start in starts:
        frames = state["cache.frames"].clone()
        frames[moved.window.sink_frames :] += start - origin
        moved.load_state_dict({**state, "cache.frames": frames, "next_frame": torch.tensor(start)})
        mass = next(moved).mass
        assert mass is not None
        masses.append(mass[..., : moved.window.sink_frames].sum(-1).mean(-1).numpy())
    return np.array(masses)


def offsets(pipe: Pipeline, folder: Folder, cells: Cells, videos: Sequence[tuple[str, int]]) -> str:
    """The offset sweep of every cell: mass on the sinks and synchrony against the frame number, as Markdown, a figure and offsets.npz.
    Medians are over the sweep past its first 33 frames.
    """
    chunk = Policy.parse("").window.chunk_frames
    starts = list(range(HELD_CHUNKS * chunk, folder.plan.frames, chunk))
    predicted = predicted_frames(pipe, folder.plan.frames)
    figure, axes = pyplot().subplots(2, 1, figsize=(10, 5), sharex=True, constrained_layout=True)
    rows = [["", *(f"{what} {frame}" for frame in predicted for what in ("rise", "synchrony"))]]
    kept = {"starts": np.array(starts)}
    for cell, policies in cells.items():
        pairs = tqdm(list(product(policies, videos)), desc=cell, unit=" sweeps")
        masses = np.stack([sweep(pipe, policy, prompt, seed, starts) for policy, (prompt, seed) in pairs])
        masses = masses.reshape(len(policies), len(videos), *masses.shape[1:])
        kept[cell] = masses
        totals = masses.mean((3, 4))
        together = np.array([[measures.synchrony(mass) for mass in draw] for draw in masses])
        cells_of_row = [cell]
        for frame in predicted:
            at = (frame // chunk * chunk - starts[0]) // chunk
            rises = np.array([[measures.rise(total, at) for total in draw] for draw in totals])
            cells_of_row += [str(interval(rises)), str(interval(together[..., at - 1 : at + 2].max(-1)))]
        rows.append(cells_of_row)
        axes[0].plot(starts, totals.mean((0, 1)), linewidth=1.2, label=cell)
        axes[1].plot(starts, together.mean((0, 1)), linewidth=1.2)
    for axis, label in zip(axes, ("mass on sinks", "share of heads raised"), strict=True):
        for frame in predicted:
            axis.axvline(frame, color="tab:red", linestyle=":", linewidth=1)
        axis.set(ylabel=label, ylim=(0, None))
    axes[1].set_xlabel("first frame that the chunk is said to have")
    axes[0].legend()
    figure.savefig(folder.path / "offsets.png", dpi=110)
    pyplot().close(figure)
    np.savez(folder.path / "offsets.npz", **kept)  # type: ignore[arg-type]
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])
