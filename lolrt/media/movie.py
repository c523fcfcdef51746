"""Video files that end with going back, to write lengths and an index: no run goes on with them, as with an mp4 in fragments."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

import av
import numpy as np
from torch import Tensor

from lolrt.errors import OutputError
from lolrt.media.encoder import Codec, Encoder


@dataclass(frozen=True)
class Format:
    container: str
    """By FFmpeg's name, as the codec."""
    codec: Codec
    options: dict[str, str] = field(default_factory=dict)
    """Of the codec."""


# A cluster a second at most, so that what there is of a file that was cut off can be played.
CLUSTERS = {"cluster_time_limit": "1000"}

# What the end of a name stands for. VP9 is asked for speed: video is written as it is made.
FORMATS = {
    ".mkv": Format("matroska", "libx264"),
    ".webm": Format("webm", "libvpx-vp9", {"b": "0", "deadline": "realtime", "cpu-used": "8", "row-mt": "1"}),
    ".gif": Format("gif", "gif"),
}


class MovieEncoder:
    """Frames in, a file of one of `FORMATS` out. It has the calls of `Mp4Encoder`."""

    fragments = 0

    def __init__(self, file: BinaryIO, suffix: str, height: int, width: int, fps: int, *, crf: int) -> None:
        """suffix: one of `FORMATS`; others as of `Mp4Encoder`. Raises `lolrt.OutputError` where there is no encoder."""
        made = FORMATS[suffix]
        self.frames, self._ended = 0, False
        container = av.open(file, "w", format=made.container, options=CLUSTERS if made.container != "gif" else {})
        options = made.options | ({"crf": str(crf)} if made.codec != "gif" else {})
        try:
            self._encoder = Encoder(container, height, width, fps, options, codec=made.codec)
        except OutputError:
            container.close()
            raise

    def write(self, frames: Tensor) -> None:
        self.frames += len(frames)
        for image in np.ascontiguousarray(frames.numpy()):
            self._encoder.write(image)

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._encoder.close()

    @property
    def has_pictures(self) -> bool:
        return self._encoder.has_pictures

    def abandon(self) -> None:
        self._encoder.container.close()
