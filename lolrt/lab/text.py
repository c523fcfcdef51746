"""The same experiment with a text model. It has sinks and a recent window, and its positions grow far beyond training. Do heads attend to
the sinks when the phases of rotary positions re-align with them, and does jitter of the bases change that?

There are two measurements. The sweep keeps the content fixed: one token over one cache gets later and later positions; the recent tokens
move with it, and the sinks keep their positions. The loss is that of a held-out text, streamed.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from lolrt import measures
from lolrt.errors import Error
from lolrt.files import write_whole
from lolrt.lab import cost
from lolrt.lab.phase import highest, phase_table
from lolrt.lab.plans import Cells, jitter
from lolrt.lab.plots import pyplot
from lolrt.lab.policy import Policy
from lolrt.lab.statistics import interval
from lolrt.lab.tables import markdown
from lolrt.lab.text_model import TextConfig, TextModel, TextStream, corpus, rows_of, train, training

WINDOW = "sink_frames=4,recent_frames=60,chunk_frames=1"
# The tokens in the cache at the start of the sweep. All their offsets occurred in training.
HELD = 96
PREDICTIONS = 3


def cells(draws: int, layers: int, heads: int) -> Cells:
    return {
        "plain": ["sigma=0"],
        "jitter 0.8": jitter("sigma=0.8", draws, layers, heads),
        "jitter 0.8, stratified": ["sigma=0.8,spread=stratified"],
        "window positions": ["sigma=0,positions=window"],
    }


def parsed(policy: str) -> Policy:
    return Policy.parse(f"{policy},{WINDOW}")


def sweep(model: TextModel, policy: str, row: Tensor, starts: Sequence[int]) -> np.ndarray:
    """The mass on the sinks, [starts, layers, heads], of the same token at the positions `starts`. The cache comes from plain RoPE."""
    held = TextStream(model, parsed("sigma=0").rope, parsed(policy).window)
    for token in row[:HELD].tolist():
        held.add(token)
    moved = TextStream(model, parsed(policy).rope, held.window)
    pages = held.cache.advance(HELD, 1)
    sinks = held.window.sink_frames
    masses = []
    for start in starts:
        positions = [*pages.frames[:sinks], *(frame + start - HELD for frame in pages.frames[sinks:])]
        _, mass = model.step(int(row[HELD]), held.pool, pages, moved.rotation(positions))
        masses.append(mass[..., :sinks].sum(-1).numpy())
    return np.array(masses)


def losses(model: TextModel, policy: str, row: Tensor) -> np.ndarray:
    """The loss in nats of each token of a row except the first, streamed."""
    stream = TextStream(model, parsed(policy).rope, parsed(policy).window)
    tokens = row.tolist()
    logits = [stream.add(token)[0] for token in tokens[:-1]]
    return F.cross_entropy(torch.stack(logits), row[1:], reduction="none").numpy()


def kernel(model: TextModel, policy: str, starts: Sequence[int]) -> np.ndarray:
    """Phase kernel: the mean over pairs, heads and sinks of cos(offset * frequency), for a token at each start."""
    config, sinks = model.config, parsed(policy).window.sink_frames
    radians = parsed(policy).rope.radians(config.layers, config.heads, config.head_dim // 2)
    table = phase_table(radians.reshape(-1, config.head_dim // 2), max(starts) + 1, sinks, chunk=1)
    return table.chunk_real[np.asarray(starts) - table.starts[0]]


def ripple(series: np.ndarray) -> np.ndarray:
    """Ripple: a series over offsets less its running mean over 67 of them."""
    # [n] or [n, ...], along the first axis
    width = measures.REFERENCE_FRAMES
    means = [series[max(0, i - width) : i + width + 1].mean(0) for i in range(len(series))]
    return series - np.array(means)


def agreement(mass: np.ndarray, phases: np.ndarray) -> float:
    """Agreement: the correlation, over offsets past training, of the ripple of the attention mass on the sinks and of the phase kernel: 1
    where heads turn to the sinks as the kernel says, 0 where it says nothing about them."""
    if np.ptp(mass) == 0:
        return 0.0
    return float(np.corrcoef(ripple(mass), ripple(phases))[0, 1])


def rise(mass: np.ndarray, at: int) -> float:
    """Rise: the largest mass on the sinks within 3 tokens of a predicted one, over the median past training."""
    return float(mass[max(0, at - 3) : at + 4].max() / np.median(mass))


def synchrony(mass: np.ndarray, at: int) -> float:
    """Synchrony: the largest share of heads of all layers, within 3 tokens of a predicted one, whose mass on the sinks is at once more than
    1.5 times their own median past training."""
    # [n, layers, heads]
    raised = mass > measures.RAISED * np.median(mass, axis=0)
    return float(raised[max(0, at - 3) : at + 4].mean((1, 2)).max())


def table(model: TextModel, rows: Tensor, draws: int, figure: Path) -> str:
    """The sweep and the loss of every cell as Markdown; draws a figure of the sweep. rows: [n, tokens]."""
    trained, tokens = model.config.train_tokens, rows.shape[1] - 1
    starts = list(range(HELD, tokens))
    past = starts.index(trained)
    predicted = highest(np.array(starts), kernel(model, "sigma=0", starts), PREDICTIONS, trained)
    print(f"phases come back to the sinks at tokens {', '.join(map(str, predicted))}")
    head = ["", "mass on sinks", "agreement", "agreement with plain's kernel"]
    head += [f"{what} {at}" for at in predicted for what in ("rise", "synchrony")]
    lines = [[*head, f"loss to {trained}", "loss past it", "loss at predicted"]]
    near = [t for at in predicted for t in range(at - 3, at + 4)]
    plot, axes = pyplot().subplots(2, 1, figsize=(10, 5), sharex=True, constrained_layout=True)
    for cell, policies in cells(draws, model.config.layers, model.config.heads).items():
        masses = np.array([[sweep(model, policy, row, starts) for row in rows] for policy in tqdm(policies, desc=cell)])
        beyond, plain = masses[:, :, past:], kernel(model, "sigma=0", starts)[past:]
        totals = beyond.mean((3, 4))
        own = [kernel(model, policy, starts)[past:] for policy in policies]
        columns = [
            np.median(totals, axis=2),
            np.array([[agreement(total, phases) for total in draw] for draw, phases in zip(totals, own, strict=True)]),
            np.array([[agreement(total, plain) for total in draw] for draw in totals]),
        ]
        for at in predicted:
            columns.append(np.array([[rise(total, at - trained) for total in draw] for draw in totals]))
            columns.append(np.array([[synchrony(mass, at - trained) for mass in draw] for draw in beyond]))
        nats = np.array([[losses(model, policy, row) for row in rows] for policy in policies])
        columns += [nats[..., :trained].mean(-1), nats[..., trained:].mean(-1), nats[..., near].mean(-1)]
        lines.append([cell, *(str(interval(column)) for column in columns)])
        axes[0].plot(starts, masses.mean((0, 1, 3, 4)), linewidth=1.2, label=cell)
        axes[1].plot(starts, np.mean([kernel(model, policy, starts) for policy in policies], axis=0), linewidth=1.2)
    for axis, label in zip(axes, ("mass on sinks", "phase kernel (of absolute positions)"), strict=True):
        for at in predicted:
            axis.axvline(at, color="tab:red", linestyle=":", linewidth=1)
        axis.axvline(trained, color="0.6", linewidth=1)
        axis.set(ylabel=label)
    axes[1].set_xlabel("number that the token is said to have (grey: the end of training rows)")
    axes[0].legend()
    plot.savefig(figure, dpi=110)
    pyplot().close(plot)
    return markdown(lines)


def training_seconds(config: TextConfig, steps: int = 4) -> float:
    """The processor time of one step of training, in seconds. The first one is left out, because torch prepares itself in it."""
    begun = training(TextModel(config), steps + 1)
    next(begun)
    return cost.cpu_seconds(lambda: [*begun]) / steps


def token_seconds(config: TextConfig, tokens: int = 32) -> float:
    """The processor time of one token of a stream whose window is full, in seconds."""
    policy = parsed("sigma=0")
    stream = TextStream(TextModel(config).requires_grad_(False), policy.rope, policy.window)
    for token in range(policy.window.pages):
        stream.add(token)
    return cost.cpu_seconds(lambda: [stream.add(token) for token in range(tokens)]) / tokens


def run(seeds: Sequence[int], steps: int, texts: int, tokens: int, draws: int, output: Path) -> Path:
    """Trains a model for each seed, unless the folder has it already. Writes text.md, and a figure for each model."""
    config = TextConfig()
    held_out = corpus()[1]
    least, most = config.train_tokens + 2 * measures.REFERENCE_FRAMES, len(held_out) - texts
    if not least <= tokens <= most:
        raise Error(f"--tokens is {tokens}; expected {least} to {most}, of which there are {texts} different texts")
    rows = rows_of(held_out, torch.linspace(0, len(held_out) - tokens, texts).long(), tokens)
    output.mkdir(parents=True, exist_ok=True)
    kept = {seed: output / f"model-{seed}-{steps}.safetensors" for seed in seeds}
    new = sum(not weights.exists() for weights in kept.values())
    policies = sum(map(len, cells(draws, config.layers, config.heads).values()))
    # The sweep of a text streams each of its tokens once, and its losses do so again.
    seconds = len(kept) * policies * texts * 2 * tokens * token_seconds(config)
    if new:
        seconds += new * steps * training_seconds(config)
    print(
        f"{new} of {len(kept)} models are to be trained, {steps} steps each; then {texts} texts are measured with each: "
        f"{cost.minutes(seconds)}, predicted from steps of training and tokens of a stream",
        file=sys.stderr,
    )
    parts = ["# Does a text model turn to its sinks where their phases come back?\n"]
    for seed, weights in kept.items():
        if weights.exists():
            model = TextModel(config)
            model.load_state_dict(load_file(weights))
        else:
            model = train(config, seed, steps)
            write_whole(weights, save(model.state_dict()))
        model.requires_grad_(False)
        parts.append(
            f"Model {seed}: {config.layers} layers of {config.heads} heads of {config.head_dim}, {steps} steps on rows of "
            f"{config.train_tokens} tokens; {texts} held-out texts; window of {WINDOW}. Mean [95 % interval] over jitter draws and texts.\n"
        )
        parts.append(table(model, rows, draws, output / f"sweep-{seed}.png") + "\n")
    path = output / "text.md"
    path.write_text("\n".join([*parts, definitions()]))
    return path


def definitions() -> str:
    texts = (re.sub(r"\s+", " ", inspect.getdoc(measure) or "") for measure in (kernel, ripple, agreement, rise, synchrony))
    return "".join(f"- {text}\n" for text in texts)
