"""What an experiment found, as a JSON file of its own: small enough to keep, and all that its table and figures are made of."""

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
    """One a jitter draw."""
    numbers: dict[str, np.ndarray]
    """Name of a measure -> float64 [policies, videos]."""
    snap_back: tuple[int, float, float] | None = None
    """Frame, mean drop there and p, of the first draw."""
    own_frames: list[list[int]] = field(default_factory=list)
    """The predicted frames of each policy (`rollout.predicted_frames`); none where no policy has any."""
    series: dict[str, np.ndarray] = field(default_factory=dict)
    """Start of an offset sweep, and mass on the sinks and share of heads raised there, means over draws and videos."""

    def at_predicted(self, measure: str) -> np.ndarray:
        """[policies, videos]: a measure, such as "dip", mean of the predicted frames."""
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
    """Jitter draws that were asked for."""
    only: list[str]
    """The cells that were asked for; none: all."""
    sweeps: bool
    """Whether the number of one chunk was moved in the place of rollouts."""
    videos: list[tuple[str, int]]
    """Prompt and noise seed."""
    predicted: list[int]
    """Frames at which plain RoPE is to collapse."""
    cells: dict[str, Cell]

    @property
    def command(self) -> str:
        only = "".join(f' "{cell}"' for cell in self.only)
        return (
            f"lolrt lab experiment {self.name}{' --sweep' * self.sweeps} --model {self.model} --frames {self.frames} "
            f"--videos {len(self.videos)} --draws {self.draws}{' --cells' * bool(only)}{only}"
        )

    def write(self, path: Path) -> None:
        """Numbers are kept to 4 digits."""
        cells = {name: vars(cell) | {"numbers": _kept(cell.numbers), "series": _kept(cell.series)} for name, cell in self.cells.items()}
        path.write_text(json.dumps(vars(self) | {"cells": cells}) + "\n")

    @classmethod
    def read(cls, path: Path) -> Result:
        """Raises `lolrt.Error` when there is no such file, or it is no result."""
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
