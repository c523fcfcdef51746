"""Makes the README's pictures from the embedded models: `make figures`, or `python docs/figures.py journey|sheet|collapse|falls`.

journey: frames of two minutes with the prompts of examples/journey.txt. sheet: frames of the demo and of the example prompts of `tiny`.
collapse: 12 rollouts of 240 latent frames each (a prompt and a noise seed each), the same ones with plain RoPE and with jitter: attention
mass on the sink frames, and distance of the latents to them, as `lolrt.measures` defines them. falls: of docs/collapse.md, decoded videos
of the same policies, and what was measured on them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import lolrt
from lolrt import measures
from lolrt.lab.plots import pyplot
from lolrt.lab.rollout import Folder, Plan, Video, predicted_frames, run
from lolrt.lab.statistics import interval
from lolrt.session.script import ScriptedStream, parse_script

DOCS = Path(__file__).parent
SCRIPT = DOCS.parent / "examples" / "journey.txt"
ROW_SECONDS, COLUMNS = 20, 6
SHEET_SECONDS = (0, 4, 8, 12, 16, 20)
ROLLOUTS, FRAMES = 12, 240
PROMPTS = ("a red balloon over the hills at dusk", "a white boat on the sea at night")
POLICIES = {
    "plain RoPE": "sigma=0",
    "jitter 0.8, drawn (seed 0)": "sigma=0.8",
    "jitter 0.8, stratified (seed 0)": "sigma=0.8,spread=stratified",
}


def journey(_: lolrt.Pipeline) -> None:
    """A row every twenty seconds, which is a prompt of the script; seed 0."""
    pipe, cues = lolrt.load("journey"), parse_script(SCRIPT.read_text(), SCRIPT.name)
    wanted = [ROW_SECONDS * pipe.fps * (number + 1) // COLUMNS - 1 for number in range(COLUMNS * len(cues))]
    video: list[torch.Tensor] = []
    for chunk in ScriptedStream(pipe.stream(cues[0].prompt), cues[1:], pipe.fps):
        video += chunk.frames.unbind(0)
        if len(video) > wanted[-1]:
            break
    rows = [torch.cat([video[i] for i in wanted[first : first + COLUMNS]], dim=1) for first in range(0, len(wanted), COLUMNS)]
    Image.fromarray(torch.cat(rows).numpy()).save(DOCS / "journey.png", optimize=True)


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


def collapse(pipe: lolrt.Pipeline) -> None:
    videos = [(pipe.example_prompts[i % len(pipe.example_prompts)], i) for i in range(ROLLOUTS)]
    folder = Folder(DOCS.parent / "out" / "figures", Plan("tiny", FRAMES, decode=False))
    run(folder, [Video(policy, *video) for policy in POLICIES.values() for video in videos])
    predicted = predicted_frames(pipe, FRAMES)
    figure, axes = pyplot().subplots(2, len(POLICIES), figsize=(13, 5.4), sharex=True, sharey="row", constrained_layout=True)
    for column, (name, policy) in enumerate(POLICIES.items()):
        series = [folder.series(Video(policy, *video)) for video in videos]
        mass = np.stack([measures.sink_mass(one["mass"]) for one in series])
        distance = np.stack([measures.nearest(one["distance"]) for one in series])
        for axis, label, values in zip(
            axes[:, column], ("attention mass on sinks", "distance to nearest sink"), (mass, distance), strict=True
        ):
            # The first chunk is the sinks themselves.
            frames = np.linspace(0, FRAMES, values.shape[1], endpoint=False)
            axis.plot(frames[frames >= 3], values[:, frames >= 3].T, color="tab:blue", alpha=0.2, linewidth=0.8)
            axis.plot(frames[frames >= 3], values[:, frames >= 3].mean(0), color="tab:blue", linewidth=1.8)
            for frame in predicted:
                axis.axvline(frame, color="tab:red", linestyle=":", linewidth=1)
            axis.set_ylabel(label if column == 0 else "")
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel("latent frame")
        for what in ("rise", "dip"):
            numbers = [f"{frame}: {interval(folder.table([policy], videos, f'{what}_{frame}'))}" for frame in predicted]
            print(f"{name}: {what}, mean of {ROLLOUTS} [95 % interval]: {', '.join(numbers)}")
    figure.savefig(DOCS / "collapse.png", dpi=110)


def falls(pipe: lolrt.Pipeline) -> None:
    """What `lolrt lab rollout --prompts PROMPTS` measures: a row of frames for each policy and prompt, and a line of numbers."""
    videos = [Video(policy, prompt, 0) for policy in POLICIES.values() for prompt in PROMPTS]
    folder = Folder(DOCS.parent / "out" / "rollout", Plan("tiny", FRAMES))
    run(folder, videos)
    frames = [np.concatenate(list(folder.series(video)["thumbnails"]), axis=1) for video in videos]
    Image.fromarray(np.concatenate(frames)).save(DOCS / "collapse" / "decoded.jpg", quality=88)
    (DOCS / "collapse" / "decoded.jsonl").write_text("".join(json.dumps(folder.rows[video.key]) + "\n" for video in videos))


if __name__ == "__main__":
    pipe = lolrt.load("tiny")
    figures = {"journey": journey, "sheet": sheet, "collapse": collapse, "falls": falls}
    for name in sys.argv[1:] or figures:
        figures[name](pipe)
