"""The result of an experiment as a JSON file: small enough to keep, and sufficient to make its table and figures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lolrt.errors import Error

DIGITS = 4


@dataclass(frozen=True)
class Cell:
    policies: list[str]
    """The policies, one for each jitter draw."""
    numbers: dict[str, np.ndarray]
    """The measures: name -> float64 [policies, videos]."""
    snap_back: tuple[int, float, float] | None = None
    """The snap-back test of the first draw: frame, mean drop there, and p."""
    own_frames: list[list[int]] = field(default_factory=list)
    """The predicted frames of each policy (`rollout.predicted_frames`); empty if no policy has any."""
    series: dict[str, np.ndarray] = field(default_factory=dict)
    """The series of an offset sweep: starts, mass on the sinks, and share of raised heads; means over draws and videos."""

    def at_predicted(self, measure: str) -> np.ndarray:
        """A measure, such as "dip", mean over the predicted frames, [policies, videos]."""
        names = [name for name in self.numbers if name.removeprefix(f"{measure}_").isdigit()]
        return np.mean([self.numbers[name] for name in names], axis=0)


@dataclass(frozen=True)
class Result:
    name: str
    """The experiment's name."""
    model: str
    frames: int
    """Latent frames of a video."""
    draws: int
    """The requested number of jitter draws."""
    only: list[str]
    """The requested cells; empty: all."""
    sweeps: bool
    """Whether this is an offset sweep, which varies the frame number of one chunk, and not rollouts."""
    videos: list[tuple[str, int]]
    """The prompt and noise seed of each video."""
    predicted: list[int]
    """The frames at which plain RoPE is predicted to collapse."""
    cells: dict[str, Cell]

    @property
    def command(self) -> str:
        only = "".join(f' "{cell}"' for cell in self.only)
        return (
            f"lolrt lab experiment {self.name}{' --sweep' * self.sweeps} --model {self.model} --frames {self.frames} "
            f"--videos {len(self.videos)} --draws {self.draws}{' --cells' * bool(only)}{only}"
        )

    def write(self, path: Path) -> None:
        """Writes the result. Numbers are rounded to 4 digits."""
        cells = {name: vars(cell) | {"numbers": _kept(cell.numbers), "series": _kept(cell.series)} for name, cell in self.cells.items()}
        path.write_text(json.dumps(vars(self) | {"cells": cells}) + "\n")

    @classmethod
    def read(cls, path: Path) -> Result:
        """Reads a result. Raises `lolrt.Error` when the file does not exist or holds no result."""
        try:
            kept = json.loads(path.read_text("utf-8-sig"))
            cells = {}
            for name, cell in kept.pop("cells").items():
                for what in ("numbers", "series"):
                    cell[what] = {key: np.array(values) for key, values in cell[what].items()}
                cell["snap_back"] = tuple(cell["snap_back"]) if cell["snap_back"] else None
                cells[name] = Cell(**cell)
            videos = [(prompt, seed) for prompt, seed in kept.pop("videos")]
            return cls(**kept, videos=videos, cells=cells)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Error(f"{path} is no result of `lolrt lab experiment`: {error}") from error


def _kept(arrays: dict[str, np.ndarray]) -> dict[str, list]:
    return {name: np.vectorize(lambda value: float(f"{value:.{DIGITS}g}"))(values).tolist() for name, values in arrays.items()}
