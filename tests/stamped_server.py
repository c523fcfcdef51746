"""`lolrt` with the number of each frame in its pixels, so that a picture in a browser can be compared with the frame that was made.

The model, the engine and the encoder are the real ones; only the top rows of decoded frames are painted over.
"""

from __future__ import annotations

import sys

import torch

from lolrt import cli
from lolrt.session.stream import Chunk, Stream

BITS, SIDE = 16, 6  # side of a square in pixels; squares go from the highest bit to the lowest, white is 1


def stamp(frames: torch.Tensor, first: int) -> None:
    """frames: uint8 [n, height, width, 3], whose numbers start with `first`."""
    for number, frame in enumerate(frames, first):
        bits = torch.tensor([number >> (BITS - 1 - i) & 1 for i in range(BITS)], dtype=torch.uint8)
        frame[:SIDE, : BITS * SIDE] = 255 * bits.repeat_interleave(SIDE)[None, :, None]


def stamped(self: Stream, decode=Stream.decode_next) -> Chunk:
    chunk = decode(self)
    first = chunk.first_frame
    stamp(chunk.decoded.tensors[0], first and 1 + (first - 1) * self.vae.config.temporal_factor)
    return chunk


if __name__ == "__main__":
    Stream.decode_next = stamped  # type: ignore[method-assign]
    sys.exit(cli.main(sys.argv[1:]))
