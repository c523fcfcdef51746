"""The text part of small models: a learned vector for each word."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lolrt.checkpoint.safetensors_file import read_safetensors
from lolrt.errors import CheckpointError

ROWS = "embedding.weight"


def read_rows(folder: Path) -> Tensor:
    """The rows of text.safetensors, [words, text_dim], mapped. Raises `lolrt.CheckpointError` if there are none."""
    rows = read_safetensors(folder / "text.safetensors").get(ROWS)
    if rows is None or rows.ndim != 2 or not rows.is_floating_point():
        raise CheckpointError(f"{folder / 'text.safetensors'} lacks {ROWS!r}, rows of floats; fetch the file again")
    return rows
