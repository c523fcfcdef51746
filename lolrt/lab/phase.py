"""The phase kernel: how well the phases of a head's channel pairs agree at an offset, and at which frames they re-align with the sinks.

C(offset) = mean over pairs of exp(j * omega_i * offset) (LoL, arXiv 2601.16914, eq. 5, which takes its modulus; its figure 2 shows the
real part, the mean cosine, whose maxima are where collapse was seen).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# The kernel starts at 1 and falls for about a hundred frames. Only a maximum after that is a return.
AFTER_FRAMES = 100


def kernel(radians: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """C of each head, complex [..., heads], for radians per frame [heads, pairs] at offsets [...] in frames."""
    return np.exp(1j * np.multiply.outer(offsets.astype(np.float64), radians)).mean(-1)


@dataclass(frozen=True)
class PhaseTable:
    """The kernel over the frames of a rollout, mean over heads."""

    frames: np.ndarray
    """Latent frames, int64 [n]: 0 .. n - 1."""
    real: np.ndarray
    """float64 [n]: the real part of C at the offset between a frame and the first one."""
    modulus: np.ndarray
    """float64 [n]: |C(frame)|."""
    starts: np.ndarray
    """The first frames of the chunks after the sinks, int64 [m]."""
    chunk_real: np.ndarray
    """float64 [m]: the real part of C, mean over all pairs of a sink and a frame of the chunk."""
    chunk_modulus: np.ndarray

    def predicted(self, count: int = 2, after: int = AFTER_FRAMES) -> list[int]:
        """The frames where the phases re-align: the `count` highest maxima of `real` after the frame `after`."""
        return highest(self.frames, self.real, count, after)

    def predicted_chunks(self, count: int = 2, after: int = AFTER_FRAMES) -> list[int]:
        """The same for `chunk_real`: the first frames of chunks."""
        return highest(self.starts, self.chunk_real, count, after)

    def write(self, path: Path) -> None:
        """Writes the table as CSV. The chunk columns have values only in rows of a chunk's first frame."""
        chunks = {int(start): row for start, *row in zip(self.starts, self.chunk_real, self.chunk_modulus, strict=True)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["frame", "real", "modulus", "chunk_real", "chunk_modulus"])
            for frame, real, modulus in zip(self.frames, self.real, self.modulus, strict=True):
                chunk = chunks.get(int(frame))
                rows.writerow([frame, f"{real:.6f}", f"{modulus:.6f}", *(f"{value:.6f}" for value in chunk or ())])

    def plot(self, path: Path, title: str) -> None:
        from lolrt.lab.plots import pyplot

        figure, axis = pyplot().subplots(figsize=(10, 3.6), constrained_layout=True)
        axis.plot(self.frames, self.modulus, color="0.75", linewidth=1, label="modulus (eq. 5)")
        axis.plot(self.frames, self.real, color="tab:blue", linewidth=1, label="real part")
        axis.plot(self.starts, self.chunk_real, color="tab:orange", linewidth=1.6, label="real part, mean over sinks and chunk")
        for frame in self.predicted():
            axis.axvline(frame, color="tab:red", linestyle=":", linewidth=1)
            axis.annotate(str(frame), (frame, axis.get_ylim()[1]), xytext=(3, -10), textcoords="offset points", color="tab:red")
        axis.set(xlabel="latent frame", ylabel="phase kernel", title=title)
        axis.legend(loc="upper right")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)


def phase_table(radians: np.ndarray, frames: int, sinks: int = 3, chunk: int = 3) -> PhaseTable:
    """The kernel of heads [heads, pairs] over `frames` latent frames."""
    every = np.arange(frames)
    single = kernel(radians, every)
    starts = np.arange(-(-sinks // chunk) * chunk, frames - chunk + 1, chunk)
    offsets = starts[:, None, None] + np.arange(chunk)[:, None] - np.arange(max(sinks, 1))
    averaged = kernel(radians, offsets)
    return PhaseTable(
        frames=every,
        real=single.real.mean(-1),
        modulus=np.abs(single).mean(-1),
        starts=starts,
        chunk_real=averaged.real.mean((1, 2, 3)),
        chunk_modulus=np.abs(averaged).mean((1, 2, 3)),
    )


def highest(frames: np.ndarray, values: np.ndarray, count: int, after: int) -> list[int]:
    """The frames after `after` of the `count` highest local maxima, in order of time."""
    inner = values[1:-1]
    maxima = np.flatnonzero((inner > values[:-2]) & (inner >= values[2:])) + 1
    maxima = maxima[frames[maxima] > after]
    return sorted(int(frames[i]) for i in maxima[np.argsort(values[maxima])[::-1][:count]])
