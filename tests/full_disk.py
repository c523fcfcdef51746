"""A disk that fills up while a video is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor

import lolrt


@contextmanager
def full_after(chunks: int) -> Iterator[None]:
    """Inside this context, the disk of a video is full once it holds this many chunks."""
    write, calls = lolrt.VideoWriter.write, 0

    def fails(self: lolrt.VideoWriter, frames: Tensor) -> None:
        nonlocal calls
        calls += 1
        write(self, frames)
        if calls == chunks:
            raise lolrt.OutputError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lolrt.VideoWriter, "write", fails)
        yield
