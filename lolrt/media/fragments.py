"""Continues a fragmented mp4: changes the output of a new muxer so that it follows the output of an earlier one."""

from __future__ import annotations

import struct
from typing import Protocol

# The boxes of the header. A file has one header.
HEADER = (b"ftyp", b"moov")


class Sink(Protocol):
    """The interface that receives the boxes of an mp4, each complete."""

    def write(self, box: bytes, /) -> object: ...


class Fragments:
    """A file object for a muxer that writes a fragmented mp4 from time 0. Its fragments are renumbered and moved in time to follow those
    of earlier muxers, and only the header of the first muxer is kept. Source: ISO/IEC 14496-12, mfhd and tfdt."""

    def __init__(self, sink: Sink, fragments: int, time: int, with_header: bool) -> None:
        """fragments: the number of fragments written before. time: the time of the first frame, in units of the track's timescale."""
        self.sink, self.fragments, self.time, self._with_header = sink, fragments, time, with_header
        self._waiting = b""

    def write(self, data: bytes) -> int:
        self._waiting += bytes(data)
        while len(self._waiting) >= 8:
            size, kind = struct.unpack(">I4s", self._waiting[:8])
            if len(self._waiting) < size:
                break
            box, self._waiting = self._waiting[:size], self._waiting[size:]
            if kind == b"moof":
                self.fragments += 1
                box = self._follow(bytearray(box))
            if self._with_header or kind not in HEADER:
                self.sink.write(bytes(box))
        return len(data)

    def _follow(self, moof: bytearray) -> bytes:
        """The head of a fragment with its new number and time."""
        for at, kind in _boxes(moof, 8, len(moof)):
            if kind == b"mfhd":
                struct.pack_into(">I", moof, at + 12, self.fragments & 0xFFFFFFFF)
            elif kind == b"traf":
                for inner, name in _boxes(moof, at + 8, at + struct.unpack_from(">I", moof, at)[0]):
                    if name == b"tfdt":
                        if moof[inner + 8] != 1:
                            raise OSError("a fragment's time has 32 bits; expected 64")
                        (time,) = struct.unpack_from(">Q", moof, inner + 12)
                        struct.pack_into(">Q", moof, inner + 12, time + self.time)
        return bytes(moof)


def box_kind(box: bytes) -> bytes:
    """The type of a box, four letters."""
    return bytes(box[4:8])


def frames_in(moof: bytes) -> int:
    """The number of frames that the head of a fragment announces. Reads only the head. Source: ISO/IEC 14496-12, trun."""
    return sum(
        struct.unpack_from(">I", moof, run + 12)[0]
        for track, kind in _boxes(moof, 8, struct.unpack_from(">I", moof)[0])
        if kind == b"traf"
        for run, name in _boxes(moof, track + 8, track + struct.unpack_from(">I", moof, track)[0])
        if name == b"trun"
    )


def _boxes(data: bytes | bytearray, start: int, end: int) -> list[tuple[int, bytes]]:
    """The offset and type of each box between two offsets."""
    found = []
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        found.append((start, kind))
        start += max(size, 8)
    return found
