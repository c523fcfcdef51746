"""Video files whose writer goes back at the end to write lengths and an index. Unlike a fragmented mp4, a later run cannot continue
them."""

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
    """FFmpeg's name of the container."""
    codec: Codec
    options: dict[str, str] = field(default_factory=dict)
    """The options of the codec."""


# At most one second per cluster, so that a truncated file can be played.
CLUSTERS = {"cluster_time_limit": "1000"}

# The formats by the suffix of the file name. VP9 is set to be fast, because video is written while it is made.
FORMATS = {
    ".mkv": Format("matroska", "libx264"),
    ".webm": Format("webm", "libvpx-vp9", {"b": "0", "deadline": "realtime", "cpu-used": "8", "row-mt": "1"}),
    ".gif": Format("gif", "gif"),
}


class MovieEncoder:
    """Encodes frames to a file in one of `FORMATS`. It has the methods of `Mp4Encoder`."""

    fragments = 0

    def __init__(self, file: BinaryIO, suffix: str, height: int, width: int, fps: int, *, crf: int) -> None:
        """suffix: one of `FORMATS`. The others are those of `Mp4Encoder`. Raises `lolrt.OutputError` if there is no encoder."""
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
