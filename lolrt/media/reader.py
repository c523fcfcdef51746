"""Reads an image or a video as frames of the model's size and frame rate.

The first bytes of a file decide its type, not its name: Pillow opens images, and FFmpeg opens everything else as video.
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

# Times in a file are rounded to the ticks of its clock. So a frame counts as shown already this fraction of a frame before its time.
EARLY_FRAMES = 0.1

# Video without a colour label is taken as BT.709 from so many rows on, and as BT.601 below: players follow the same rule.
BT709_ROWS = 720
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED

# The exceptions that a damaged file causes. Pillow has no exception of its own for it.
READ_ERRORS = (OSError, av.FFmpegError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


class Shown(Protocol):
    @property
    def time(self) -> float | None:
        """The time of the frame, in seconds from the file's time 0."""


Picture = TypeVar("Picture", bound=Shown)


def read_frames(path: str | Path, height: int, width: int, fps: float) -> Iterator[Tensor]:
    """The frames of a video file at `fps` frames a second, or the one of an image: uint8 [height, width, 3] RGB, one at a time.

    Each frame is the one that is shown at its time. Pictures are rotated and mirrored as the file says (EXIF's orientation, a video's
    display matrix). Pixels that are not square are stretched to their shape, and transparent ones are laid over white. The picture is
    scaled to cover height x width, in pixels, and cropped around its middle. The path is always taken as a file, never as an address.
    Raises `lolrt.Error` when the file cannot be read as pictures, or an image is incomplete.
    """
    try:
        with open(path, "rb") as file:
            if is_image(file.peek(SIGNATURE_BYTES)[:SIGNATURE_BYTES]):
                for still in _at_rate(stills(file), fps):
                    yield torch.from_numpy(fit(opaque(still.image), 1.0, height, width))
                return
            # No protocols: FFmpeg must not open or fetch what a playlist names.
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
    """Reads the first picture. Raises the errors of `read_frames`, also if there is no picture. A pipe is not read, because it can be read
    only once."""
    if not Path(path).is_fifo() and next(read_frames(path, 16, 16, 1), None) is None:
        raise Error(f"{path} has no pictures; expected an image or a video")


def _upright(picture: av.VideoFrame) -> tuple[Image.Image, bool]:
    """A video's picture as 8-bit RGB, rotated by its display matrix (ISO/IEC 14496-12, 6.2.2), and whether rows have become columns."""
    assumed = Colorspace.ITU709 if picture.colorspace == UNSPECIFIED and picture.height >= BT709_ROWS else None
    layout = "rgba" if any(component.is_alpha for component in picture.format.components) else "rgb24"
    pixels = picture.reformat(format=layout, src_colorspace=assumed).to_ndarray()
    turned = False
    side_data: Mapping[Any, Any] = picture.side_data
    if Type.DISPLAYMATRIX in side_data:
        a, b, _, c, d, *_ = np.frombuffer(side_data[Type.DISPLAYMATRIX], np.int32).tolist()
        turned = abs(b) > abs(a)
        across, down = (c, b) if turned else (a, d)  # the signs: columns go right, rows go down
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
