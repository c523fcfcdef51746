"""Reads an image or a video as frames of the size and rate that a model works at.

What a file is, its first bytes say, not its name: an image is opened by Pillow, all else by FFmpeg as a video.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace
from PIL import Image
from torch import Tensor

from lolrt.errors import Error
from lolrt.media.stills import SIGNATURE_BYTES, fit, is_image, opaque, stills

# Times in a file are rounded to its clock's ticks: a frame counts as shown this part of a frame's time before its own.
EARLY_FRAMES = 0.1

# Video that does not say what its colours are is of BT.709 from so many rows on, and of BT.601 below: the rule of players.
BT709_ROWS = 720
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED

# What reading a damaged file raises, beside FFmpeg's errors: Pillow has no kind of its own for it.
READ_ERRORS = (OSError, av.FFmpegError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class Shown(Protocol):
    @property
    def time(self) -> float | None:
        """Seconds from the file's zero."""


Picture = TypeVar("Picture", bound=Shown)


def read_frames(path: str | Path, height: int, width: int, fps: float) -> Iterator[Tensor]:
    """The frames of a video file at `fps` frames a second, or the one of an image: uint8 [height, width, 3] RGB, one at a time.

    At each time, the frame that is shown then. Pictures are turned and mirrored as the file says (EXIF's orientation, a video's display
    matrix), pixels that are not square are brought to their shape, transparent ones laid over white, and all is scaled to cover
    height x width, in pixels, and cropped around its middle. The path is always one of a file, never an address.
    Raises `lolrt.Error` when the file cannot be read as pictures, or an image is not whole.
    """
    try:
        with open(path, "rb") as file:
            if is_image(file.peek(SIGNATURE_BYTES)[:SIGNATURE_BYTES]):
                for still in _at_rate(stills(file), fps):
                    yield torch.from_numpy(fit(opaque(still.image), 1.0, height, width))
                return
            # No protocols: what a playlist names is neither opened nor fetched.
            with av.open(file, options={"protocol_whitelist": ""}) as container:
                if not container.streams.video:
                    raise Error(f"{path} has no pictures; expected an image or a video")
                pixel = float(container.streams.video[0].sample_aspect_ratio or 1)
                for picture in _at_rate(container.decode(video=0), fps):
                    image, turned = _upright(picture)
                    yield torch.from_numpy(fit(image, 1 / pixel if turned else pixel, height, width))
    except READ_ERRORS as error:
        raise Error(f"cannot read {path} as an image or a video: {getattr(error, 'strerror', None) or error}") from error


def check_readable(path: str | Path) -> None:
    """Reads the first picture, and raises as `read_frames` does, or because there is none; a pipe, which can be read once only, is left."""
    if not Path(path).is_fifo() and next(read_frames(path, 16, 16, 1), None) is None:
        raise Error(f"{path} has no pictures; expected an image or a video")


def _upright(picture: av.VideoFrame) -> tuple[Image.Image, bool]:
    """A video's picture as 8-bit RGB, as its display matrix (ISO/IEC 14496-12, 6.2.2) lays it, and whether rows have become columns."""
    assumed = Colorspace.ITU709 if picture.colorspace == UNSPECIFIED and picture.height >= BT709_ROWS else None
    layout = "rgba" if any(component.is_alpha for component in picture.format.components) else "rgb24"
    pixels = picture.reformat(format=layout, src_colorspace=assumed).to_ndarray()
    turned = False
    side_data: Mapping[Any, Any] = picture.side_data
    if Type.DISPLAYMATRIX in side_data:
        a, b, _, c, d, *_ = np.frombuffer(side_data[Type.DISPLAYMATRIX], np.int32).tolist()
        turned = abs(b) > abs(a)
        across, down = (c, b) if turned else (a, d)  # the signs with which a column goes right, and a row down
        pixels = pixels.swapaxes(0, 1) if turned else pixels
        pixels = pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]
    return opaque(Image.fromarray(np.ascontiguousarray(pixels))), turned


def _at_rate(pictures: Iterator[Picture], fps: float) -> Iterator[Picture]:
    shown: Picture | None = None
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
