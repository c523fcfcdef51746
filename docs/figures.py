"""Makes the README's pictures from the embedded model: `make figures`, or `python docs/figures.py sheet|collapse`.

sheet: frames of the demo and of the model's example prompts. collapse: 12 rollouts of 240 latent frames each (a prompt and a noise
seed each), the same ones with plain RoPE and with jitter: attention mass on the sink frames, and distance of the latents to them.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

import lolrt

matplotlib.use("Agg")
from matplotlib import pyplot

DOCS = Path(__file__).parent
SHEET_SECONDS = (0, 4, 8, 12, 16, 20)
ROLLOUTS, CHUNKS = 12, 80
# The two frames past the trained range where the phases of plain RoPE re-align most (LoL, arXiv 2601.16914).
PREDICTED = (132, 201)
POLICIES = {
    "plain RoPE": lolrt.Rope(sigma=0.0),
    "jitter 0.8, drawn (seed 0)": lolrt.Rope(sigma=0.8, jitter_seed=0),
    "jitter 0.8, stratified (seed 0)": lolrt.Rope(sigma=0.8, jitter_seed=0, spread="stratified"),
}


def sheet(pipe: lolrt.Pipeline) -> None:
    """A row a prompt, a column every four seconds, at twice the model's size; seed 0."""
    rows = []
    for prompt in pipe.example_prompts[:6]:
        wanted = [round(seconds * pipe.fps) for seconds in SHEET_SECONDS]
        video: list[torch.Tensor] = []
        for chunk in pipe.stream(prompt):
            video += chunk.frames.unbind(0)
            if len(video) > wanted[-1]:
                break
        rows.append(torch.cat([video[i] for i in wanted], dim=1))
        print(prompt)
    image = Image.fromarray(torch.cat(rows).numpy())
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS).save(DOCS / "sheet.png", optimize=True)


def rollout(pipe: lolrt.Pipeline, prompt: str, seed: int, rope: lolrt.Rope) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames, mass on the sinks, and distance to them, of each chunk after the first.

    Distance: the least root mean square difference between any of the chunk's latent frames and any sink frame.
    """
    chunks = list(islice(pipe.latent_stream(prompt, seed=seed, rope=rope, probe=True), CHUNKS))
    sinks = chunks[0].latents
    distance = [(chunk.latents[:, None] - sinks[None]).square().mean((2, 3, 4)).sqrt().min().item() for chunk in chunks[1:]]
    frames = [chunk.first_frame for chunk in chunks[1:]]
    return np.array(frames), np.array([chunk.sink_mass for chunk in chunks[1:]]), np.array(distance)


def collapse(pipe: lolrt.Pipeline) -> None:
    figure, axes = pyplot.subplots(2, len(POLICIES), figsize=(13, 5.4), sharex=True, sharey="row", constrained_layout=True)
    for column, (name, rope) in enumerate(POLICIES.items()):
        runs = [rollout(pipe, pipe.example_prompts[i % len(pipe.example_prompts)], i, rope) for i in range(ROLLOUTS)]
        frames = runs[0][0]
        for row, label in ((0, "attention mass on sinks"), (1, "distance to sinks (RMS of latents)")):
            axis, values = axes[row, column], np.stack([run[row + 1] for run in runs])
            axis.plot(frames, values.T, color="tab:blue", alpha=0.2, linewidth=0.8)
            axis.plot(frames, values.mean(0), color="tab:blue", linewidth=1.8)
            for frame in PREDICTED:
                axis.axvline(frame, color="tab:red", linestyle=":", linewidth=1)
            axis.set_xlabel("latent frame" if row else "")
            axis.set_ylabel(label if column == 0 else "")
            near = {frame: values[:, np.abs(frames - frame) <= 3] for frame in PREDICTED}
            # The stretch between and beyond the predicted frames, well away from them and from the trained range.
            away = values[:, (frames > 60) & (np.abs(frames[:, None] - np.array(PREDICTED)).min(1) > 15)]
            extreme = np.max if row == 0 else np.min
            ratios = [f"{frame}: {np.mean(extreme(near[frame], axis=1) / np.median(away, axis=1)):.2f}" for frame in PREDICTED]
            quantity = f"{'most' if row == 0 else 'least'} near the frame / median away from it, mean of {ROLLOUTS}"
            print(f"{name}: {label}, {quantity}: {', '.join(ratios)}")
        axes[0, column].set_title(name)
    figure.savefig(DOCS / "collapse.png", dpi=110)


if __name__ == "__main__":
    pipe = lolrt.load("tiny")
    figures = {"sheet": sheet, "collapse": collapse}
    for name in sys.argv[1:] or figures:
        figures[name](pipe)
