"""Encodes the chunks of a session as mp4 fragments that do not depend on each other."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lolrt.media.encoder import Mp4Encoder, encoded_size
from lolrt.media.fragments import HEADER, box_kind

# Small video is enlarged without smoothing: its pixels stay squares.
LIVE: dict[str, Any] = {"enlarge": "POINT", "live": True}
JPEG_QUALITY = 90


class Boxes:
    """The output of an encoder, in two parts: the header, and the fragments."""

    def __init__(self) -> None:
        self.header, self.fragments = b"", b""

    def write(self, box: bytes, /) -> None:
        if box_kind(box) in HEADER:
            self.header += box
        else:
            self.fragments += box


class ChunkEncoder:
    """Encodes each chunk independently. A viewer can begin with any chunk, and a chunk that is made again has the same bytes."""

    def __init__(self, height: int, width: int, fps: int, crf: int, frames: int = 0, fragments: int = 0) -> None:
        """height, width: the size of the frames, in pixels. frames, fragments: how many of the stream were encoded before."""
        self._boxes = Boxes()
        self._encoder = Mp4Encoder(self._boxes, height, width, fps, crf=crf, frames=frames, fragments=fragments, **LIVE)

    @property
    def fragments(self) -> int:
        """The number of fragments so far. A chunk of more than a second is several fragments."""
        return self._encoder.fragments

    def encode(self, frames: Tensor) -> bytes:
        """The mp4 fragments of a chunk, uint8 [n, height, width, 3] RGB. Raises one of `lolrt.media.encoder.WRITE_ERRORS`."""
        self._boxes.fragments = b""
        self._encoder.write(frames)
        self._encoder.end()
        return self._boxes.fragments


def jpegs(frames: Tensor) -> tuple[bytes, ...]:
    """JPEG pictures of frames, uint8 [n, height, width, 3] RGB, in the size of the video."""
    height, width = encoded_size(*frames.shape[1:3])
    made = []
    for frame in frames.numpy():
        file = io.BytesIO()
        Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST).save(file, "JPEG", quality=JPEG_QUALITY)
        made.append(file.getvalue())
    return tuple(made)


def init_segment(height: int, width: int, fps: int, crf: int) -> bytes:
    """The mp4 header, which comes before the fragments of every session of this size."""
    boxes = Boxes()
    encoder = Mp4Encoder(boxes, height, width, fps, crf=crf, **LIVE)
    encoder.write(torch.zeros(1, height, width, 3, dtype=torch.uint8))
    encoder.end()
    return boxes.header


def mime_type(init: bytes) -> str:
    """The MIME type that a browser needs, with the profile and level from the avcC box of an init segment. Source: ISO/IEC 14496-15, RFC
    6381."""
    at = init.index(b"avcC")
    return f'video/mp4; codecs="avc1.{init[at + 5 : at + 8].hex()}"'
