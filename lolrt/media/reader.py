"""Reads an image or a video as frames of the size and rate that a model works at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from lolrt.errors import Error

# Times in a file are rounded to its clock's ticks: a frame counts as shown this part of a frame's time before its own.
EARLY_FRAMES = 0.1


def read_frames(path: str | Path, height: int, width: int, fps: float) -> Iterator[Tensor]:
    """The frames of a video file at `fps` frames a second, or the one of an image: uint8 [height, width, 3] RGB, one at a time.

    At each time, the frame that is shown then. Pictures are turned by the angle that the file says (EXIF's orientation, a video's display
    matrix; whether to mirror them too PyAV does not tell), scaled to cover height x width, in pixels, and cropped around their middle.
    Raises `lolrt.Error` when the file cannot be read as pictures.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise Error(f"{path} has no pictures; expected an image or a video")
            for picture in _at_rate(container.decode(video=0), fps):
                yield _fit(picture, height, width)
    except (OSError, av.FFmpegError) as error:
        raise Error(f"cannot read {path} as an image or a video: {getattr(error, 'strerror', None) or error}") from error


def check_readable(path: str | Path) -> None:
    """Reads the first picture, and raises as `read_frames` does, or because there is none; a pipe, which can be read once only, is left."""
    if not Path(path).is_fifo() and next(read_frames(path, 16, 16, 1), None) is None:
        raise Error(f"{path} has no pictures; expected an image or a video")


def _at_rate(pictures: Iterator[av.VideoFrame], fps: float) -> Iterator[av.VideoFrame]:
    shown: av.VideoFrame | None = None
    start, written = 0.0, 0
    for picture in pictures:
        if shown is None:
            start = picture.time or 0.0
        elapsed_frames = ((picture.time or 0.0) - start) * fps
        while shown is not None and written + EARLY_FRAMES < elapsed_frames:
            yield shown
            written += 1
        shown = picture
        if written <= elapsed_frames + EARLY_FRAMES:
            yield shown
            written += 1


def _fit(picture: av.VideoFrame, height: int, width: int) -> Tensor:
    quarters = round(picture.rotation / 90) % 4  # counterclockwise
    rows, columns = (picture.width, picture.height) if quarters % 2 else (picture.height, picture.width)
    scale = max(height / rows, width / columns)
    tall, wide = max(height, round(scale * rows)), max(width, round(scale * columns))
    scaled = picture.reformat(*((tall, wide) if quarters % 2 else (wide, tall)), "rgb24", interpolation="BICUBIC")
    image = np.rot90(scaled.to_ndarray(), quarters)
    top, left = (tall - height) // 2, (wide - width) // 2
    return torch.from_numpy(image[top : top + height, left : left + width].copy())
