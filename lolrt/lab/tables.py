"""Writes an experiment's result as a Markdown table and a figure. Every number is a mean over jitter draws and videos, with its interval
(`statistics.interval`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lolrt.lab.plots import pyplot
from lolrt.lab.results import Cell, Result
from lolrt.lab.statistics import Interval, interval

DPI = 72


def setting(result: Result) -> str:
    """A description of the experiment behind a table, in two sentences."""
    most = max(len(cell.policies) for cell in result.cells.values())
    return (
        f"{result.model}, {len(result.videos)} videos of {result.frames} latent frames, up to {most} jitter draws a cell: mean [95 % "
        f"interval]. Made by `{result.command}`."
    )


def table(result: Result) -> str:
    """The table, one row for each cell: every number with its interval, or nothing if a cell lacks it. For rollouts also the worst
    Sink-Collapse, the snap-back test, and the policy's own frames."""
    names = list(dict.fromkeys(name for cell in result.cells.values() for name in cell.numbers))
    rollouts = any(cell.snap_back for cell in result.cells.values())
    heads = ["sink collapse max", "snap-back frame, drop, p", "own frames"] if rollouts else []
    rows = [["", *(name.replace("_", " ") for name in names), *heads]]
    for name, cell in result.cells.items():
        row = [name, *(str(interval(cell.numbers[number])) if number in cell.numbers else "" for number in names)]
        if cell.snap_back:
            frame, drop, p = cell.snap_back
            row += [f"{cell.numbers['sink_collapse'].max():.2f}", f"{frame}, {drop:.2f}, {p:.3f}", own_frames(cell)]
        rows.append(row)
    return markdown(rows)


def own_frames(cell: Cell) -> str:
    """The own frames of a cell's policies, if all have the same."""
    alike = {", ".join(map(str, own)) for own in cell.own_frames}
    return alike.pop() if len(alike) == 1 else "by draw" if alike else ""


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def figure(result: Result, path: Path) -> None:
    """Draws a result: for a sweep over every chunk, its series; for rollouts, how far each cell falls back, also against its motion.
    Otherwise draws nothing."""
    if next(iter(result.cells.values())).series:
        _sweep(result, path)
    elif result.predicted and not result.sweeps:
        _collapse(result, path)


def _sweep(result: Result, path: Path) -> None:
    figure, axes = pyplot().subplots(2, 1, figsize=(10, 5), sharex=True, constrained_layout=True)
    for axis, what, label in zip(axes, ("mass", "synchrony"), ("mass on sinks", "share of heads raised"), strict=True):
        for name, cell in result.cells.items():
            axis.plot(cell.series["start"], cell.series[what], linewidth=1.2, label=name)
        for frame in result.predicted:
            axis.axvline(frame, color="tab:red", linestyle=":", linewidth=1)
        axis.set(ylabel=label, ylim=(0, None))
    axes[1].set_xlabel("first frame that the chunk is said to have")
    axes[0].legend()
    _save(figure, path)


def _collapse(result: Result, path: Path) -> None:
    height = 1.2 + 0.32 * len(result.cells)
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11, max(3.4, height)), constrained_layout=True)
    for place, (name, cell) in enumerate(result.cells.items()):
        dip, motion = interval(cell.at_predicted("dip")), interval(cell.numbers["motion"])
        left.errorbar(dip.value, place, xerr=_bars(dip), fmt="o", markersize=4, linewidth=1, color=f"C{place % 10}")
        right.errorbar(
            motion.value, dip.value, xerr=_bars(motion), yerr=_bars(dip), fmt="o", markersize=4, linewidth=0.8, color=f"C{place % 10}"
        )
        right.annotate(name, (motion.value, dip.value), xytext=(4, 4), textcoords="offset points", fontsize=7)
    usual = _elsewhere(result.cells)
    left.axvspan(usual.low, usual.high, color="0.9")
    left.set_yticks(range(len(result.cells)), list(result.cells))
    left.invert_yaxis()
    left.set(xlabel="dip, mean of the predicted frames (grey: plain's elsewhere)")
    right.set(xlabel="motion over plain's", ylabel="dip")
    _save(figure, path)


def _elsewhere(cells: dict[str, Cell]) -> Interval:
    return interval(next(iter(cells.values())).numbers["dip_elsewhere"])


def _bars(interval: Interval) -> np.ndarray:
    return np.array([[interval.value - interval.low], [interval.high - interval.value]])


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI)
    pyplot().close(figure)
