"""Writes a folder of rollouts as one HTML page: tables with intervals, plots, contact sheets, and the definitions of all measures."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import lolrt
from lolrt import measures
from lolrt.lab import pictures, statistics
from lolrt.lab.phase import phase_table
from lolrt.lab.plots import inline_figure, inline_image, pyplot
from lolrt.lab.policy import Policy
from lolrt.lab.rollout import Folder, Video, loaded, predicted_frames, radians

STYLE = """body { font: 15px/1.45 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left; font-family: monospace } img { max-width: 100% } dt { font-weight: 600 }
dd { margin: 0 0 .6em 0 }"""


def write_report(folder: Folder, policies: Sequence[str], videos: Sequence[tuple[str, int]]) -> Path:
    """Writes report.html, with these policies and (prompt, seed) pairs, into the folder, which must hold all of them. Returns its path."""
    pipe = loaded(folder.plan.model)
    predicted = predicted_frames(pipe, folder.plan.frames)
    series = {policy: [folder.series(Video(policy, *video)) for video in videos] for policy in policies}
    config = pipe.dit.config
    parts = [
        f"<h1>Rollouts of {html.escape(folder.plan.model)}</h1>",
        f"<p>{len(policies)} policies, {len(videos)} videos each of {folder.plan.frames} latent frames, the same prompts and noise seeds "
        f"for every policy; lolrt {lolrt.__version__}, {str(pipe.dit.dtype).removeprefix('torch.')}, {config.num_layers} layers of "
        f"{config.num_heads} heads, {config.temporal_pairs} temporal pairs. "
        f"Plain RoPE's phases come back at latent frames {', '.join(map(str, predicted)) or 'beyond this length'} (dotted lines).</p>",
        "<h2>Numbers</h2><p>Mean over videos, with the 95 % interval of a bootstrap over them.</p>",
        numbers_table(folder, policies, videos),
        "<h2>Snap-back test</h2>",
        snap_back_table(series),
        "<h2>Distance to the sinks</h2><p>To each sink, over its median past the first 33 frames: mean over videos; thin lines: the "
        "videos, nearest sink.</p>",
        distance_plot(series, predicted),
        "<h2>Attention on the sinks, and synchrony</h2><p>Thin lines are videos, thick ones their mean.</p>",
        mass_plot(series, predicted),
        "<h2>Attention on the sinks, head by head</h2><p>Mean over videos; a row a head, layer after layer; bright is much.</p>",
        heads_plot(series, predicted),
        "<h2>Phase kernel</h2><p>Real part, mean over all heads of all layers, over sinks and the frames of the chunk.</p>",
        kernel_plot(folder, policies, predicted),
    ]
    if folder.plan.decode:
        parts += ["<h2>Contact sheets</h2>", *(sheet(policy, series[policy], videos) for policy in policies)]
    parts += ["<h2>Videos</h2>", videos_list(videos), "<h2>Definitions</h2>", definitions()]
    path = folder.path / "report.html"
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>lolrt lab</title><style>{STYLE}</style>'
    path.write_text(page + "\n".join(parts) + "</html>\n")
    return path


def numbers_table(folder: Folder, policies: Sequence[str], videos: Sequence[tuple[str, int]]) -> str:
    first = folder.rows[Video(policies[0], *videos[0]).key]
    names = [name for name in first if name not in ("key", "policy", "prompt", "seed", "loop_lag")]
    rows = [["", *(policy or "(default)" for policy in policies)]]  # one row per name: there are more names than policies
    for name in names:
        row = [name]
        for policy in policies:
            values = folder.table([policy], videos, name)
            worst = f"max {values.max():.2f}, avg " if name == "sink_collapse" else ""
            row.append(f"{worst}{statistics.interval(values)}")
        rows.append(row)
    return html_table(rows)


def snap_back_table(series: dict[str, list[dict[str, np.ndarray]]]) -> str:
    rows = [["", "frame", "mean drop there", "p"]]
    for policy, videos in series.items():
        drops = np.stack([measures.drop(measures.nearest(video["distance"])) for video in videos])
        frame, height, p = measures.snap_back(drops)
        rows.append([policy or "(default)", str(frame), f"{height:.2f}", f"{p:.3f}"])
    return html_table(rows)


def distance_plot(series: dict[str, list[dict[str, np.ndarray]]], predicted: Sequence[int]) -> str:
    def draw(axis, videos: list[dict[str, np.ndarray]]) -> None:
        distances = np.stack([video["distance"] for video in videos])
        distances = distances / np.median(distances[:, measures.REFERENCE_FRAMES :], axis=1, keepdims=True)
        axis.plot(distances.min(-1).T, color="tab:blue", alpha=0.2, linewidth=0.7)
        for sink in range(distances.shape[2]):
            axis.plot(distances[..., sink].mean(0), linewidth=1.4, color=f"C{sink}", label=f"sink {sink}")
        axis.set(ylabel="distance / median", ylim=(0, None))
        axis.legend(loc="lower right", fontsize=7)

    return _panels(series, predicted, [draw])


def mass_plot(series: dict[str, list[dict[str, np.ndarray]]], predicted: Sequence[int]) -> str:
    def lines(measure: Callable[[np.ndarray], np.ndarray], label: str):
        def draw(axis, videos: list[dict[str, np.ndarray]]) -> None:
            values = np.stack([measure(video["mass"]) for video in videos])
            frames = np.arange(values.shape[1]) * (len(videos[0]["distance"]) / values.shape[1])
            axis.plot(frames, values.T, color="tab:blue", alpha=0.2, linewidth=0.7)
            axis.plot(frames, values.mean(0), color="tab:blue", linewidth=1.6)
            # The first chunks see almost only sinks. Their large values would flatten the rest of the plot.
            axis.set(ylabel=label, ylim=(0, 1.1 * values[:, measures.REFERENCE_FRAMES // 3 :].max() or 1))

        return draw

    return _panels(series, predicted, [lines(measures.sink_mass, "mass on sinks"), lines(measures.synchrony, "share of heads raised")])


def heads_plot(series: dict[str, list[dict[str, np.ndarray]]], predicted: Sequence[int]) -> str:
    def draw(axis, videos: list[dict[str, np.ndarray]]) -> None:
        heads = np.mean([video["mass"] for video in videos], axis=0).reshape(len(videos[0]["mass"]), -1).T
        brightest = heads[:, measures.REFERENCE_FRAMES // 3 :].max()
        extent = (0, len(videos[0]["distance"]), len(heads), 0)
        axis.imshow(heads, aspect="auto", vmin=0, vmax=brightest or 1, extent=extent, interpolation="nearest")
        axis.set(ylabel="head")

    return _panels(series, predicted, [draw])


def kernel_plot(folder: Folder, policies: Sequence[str], predicted: Sequence[int]) -> str:
    figure, axis = pyplot().subplots(figsize=(11, 3), constrained_layout=True)
    for text in policies:
        pipe = loaded(folder.plan.model)
        policy = Policy.parse(text, pipe.window)
        frequencies = radians(pipe, policy)
        table = phase_table(frequencies, folder.plan.frames, policy.window.sink_frames, policy.window.chunk_frames)
        axis.plot(table.starts, table.chunk_real, linewidth=1.2, label=text or "(default)")
    _mark(axis, predicted)
    axis.legend(fontsize=7)
    axis.set(xlabel="latent frame, if positions are absolute", ylabel="kernel")
    return inline_figure(figure)


def sheet(policy: str, series: list[dict[str, np.ndarray]], videos: Sequence[tuple[str, int]]) -> str:
    frames = ", ".join(map(str, series[0]["thumbnail_frames"]))
    image = np.concatenate([np.concatenate(list(video["thumbnails"]), axis=1) for video in series])
    note = f"A row a video, the last frames of the chunks that start at latent frames {frames}."
    return f"<h3><code>{html.escape(policy or '(default)')}</code></h3><p>{note}</p>{inline_image(image)}"


def videos_list(videos: Sequence[tuple[str, int]]) -> str:
    return "<ol>" + "".join(f"<li>{html.escape(prompt)}, seed {seed}</li>" for prompt, seed in videos) + "</ol>"


def definitions() -> str:
    """The docstrings of all measures, each "Name: text"."""
    items = []
    for measure in (*measures.DEFINITIONS, *pictures.DEFINITIONS, statistics.interval, statistics.difference):
        name, _, text = re.sub(r"\s+", " ", inspect.getdoc(measure) or "").partition(": ")
        items.append(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>")
    return "<dl>" + "".join(items) + "</dl>"


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML; the first row is the header."""

    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    return f"<table>{row(rows[0], 'th')}{''.join(row(cells, 'td') for cells in rows[1:])}</table>"


def _panels(series: dict[str, list[dict[str, np.ndarray]]], predicted: Sequence[int], draws: Sequence[Callable]) -> str:
    """Small plots with shared axes, one column for each policy, or several rows if there are many."""
    columns = min(3, len(series))
    rows = -(-len(series) // columns) * len(draws)
    figure, axes = pyplot().subplots(
        rows, columns, figsize=(4.2 * columns, 2.3 * rows), sharex=True, sharey=len(draws) == 1, squeeze=False, constrained_layout=True
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (policy, videos) in enumerate(series.items()):
        for j, draw in enumerate(draws):
            axis = axes[i // columns * len(draws) + j, i % columns]
            axis.set_axis_on()
            draw(axis, videos)
            _mark(axis, predicted)
            if j == 0:
                axis.set_title(policy or "(default)", fontsize=8)
    return inline_figure(figure)


def _mark(axis, frames: Sequence[int]) -> None:
    for frame in frames:
        axis.axvline(frame, color="tab:red", linestyle=":", linewidth=1)
