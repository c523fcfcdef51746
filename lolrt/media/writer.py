"""Writes video as it comes: H.264 in fragmented mp4, in constant memory, playable at any moment up to its last second.

Colours are those of BT.709 in limited range, and the file says so: a player that had to guess would take small pictures for BT.601.
"""

from __future__ import annotations

import contextlib
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from lolrt.errors import OutputError
from lolrt.files import locked, new_file, sync
from lolrt.media import CRF
from lolrt.media.fragments import Fragments

# Small video is enlarged by a whole factor to at least this height: players would do it with a worse filter.
DISPLAY_HEIGHT = 256

# Primaries and transfer, by the numbers of ITU-T H.273.
BT709 = 1

# Units of the track's clock in a frame.
FRAME_UNITS = 1000

# What a failed write raises: the file's own error, or the muxer's when it stumbles over an earlier one.
WRITE_ERRORS = (OSError, av.FFmpegError)

CHECKED_BYTES = 1 << 16


def output_path(output: str | Path) -> Path | None:
    """The file that an output names; None for "-", standard output. Raises `lolrt.OutputError` for what is no name of a video, and where
    standard output can take none."""
    if str(output) == "-":
        if sys.stdout is None:
            raise OutputError("standard output is closed; choose a file with -o")
        if sys.stdout.isatty():
            raise OutputError("standard output is a terminal, which shows no video; lead it to a program or a file, or choose one with -o")
        return None
    if Path(output).suffix.lower() != ".mp4":
        raise OutputError(f"the output is {str(output)!r}; expected a name that ends in .mp4, or - for standard output")
    return Path(output)


@dataclass(frozen=True)
class Position:
    """Where a video stands at a cut: the file can be cut off there, and goes on from there."""

    frames: int
    fragments: int
    bytes: int
    checksum: int
    """CRC-32 of the last bytes before the cut, which tells one video from another."""


def checksum(path: Path, end: int) -> int:
    """CRC-32 of the last `CHECKED_BYTES` of a file's first `end` bytes."""
    with open(path, "rb") as file:
        file.seek(max(0, end - CHECKED_BYTES))
        return zlib.crc32(file.read(min(end, CHECKED_BYTES)))


class VideoWriter:
    """A context manager that writes frames to an mp4 file, or to standard output for the output "-".

    A file grows under the name `<stem>.partial.mp4`, locked, and gets its own name when it is whole and on the disk. If writing fails,
    what has been written stays under the partial name, where it can be played but not be taken for the whole; nothing stays where no
    picture was written. Raises `lolrt.OutputError` when the output cannot be written, another process is writing it, or an earlier one
    has left its video under the partial name.
    """

    def __init__(self, output: str | Path, height: int, width: int, fps: int, *, crf: int = CRF, resume: Position | None = None) -> None:
        """height, width: of the frames, in pixels; fps: frames a second; crf: H.264's constant rate factor, from 1, the best, to 51.
        resume: goes on with the file of an earlier run, from its cut."""
        self._path, self._fps, self._crf = output_path(output), fps, crf
        if height < 2 or width < 2:
            raise OutputError(f"frames of {height} x {width} pixels are too small to encode")
        self._scale = max(1, -(-DISPLAY_HEIGHT // height)) if height < DISPLAY_HEIGHT else 1
        # 4:2:0 halves the colours' resolution, so sides are even.
        self._height, self._width = self._scale * height // 2 * 2, self._scale * width // 2 * 2
        self._has_pictures, self._broken = resume is not None, False
        self._frames, self._fragments = (resume.frames, resume.fragments) if resume else (0, 0)
        self._file = self._open() if resume is None else self._reopen(resume)
        self._begin()

    def _begin(self) -> None:
        """A muxer and an encoder for the frames from here on."""
        self._boxes = Fragments(self._file, self._fragments, FRAME_UNITS * self._frames, with_header=self._frames == 0)
        # One fragment a key frame, and a key frame a second: nothing is kept back, and no index grows.
        movflags = "frag_keyframe+empty_moov+default_base_moof+skip_trailer"
        options = {"movflags": movflags, "video_track_timescale": str(FRAME_UNITS * self._fps)}
        self._container = av.open(self._boxes, "w", format="mp4", options=options)
        try:
            self._stream = self._container.add_stream("libx264", rate=self._fps, options={"crf": str(self._crf), "g": str(self._fps)})
        except (*WRITE_ERRORS, ValueError) as error:
            self._abandon()
            raise OutputError(f"cannot encode video: {error}; PyAV's own packages can") from error
        self._stream.height, self._stream.width = self._height, self._width
        self._stream.pix_fmt = "yuv420p"
        self._stream.colorspace, self._stream.color_range = Colorspace.ITU709, ColorRange.MPEG
        self._stream.color_primaries = self._stream.color_trc = BT709
        self._cut_off = False

    def _end(self) -> None:
        """Writes what the encoder and the muxer hold back."""
        self._mux(None)
        self._container.close()
        self._fragments = self._boxes.fragments
        self._file.flush()

    def cut(self) -> Position:
        """Brings all frames so far to the disk, and ends the encoder's past there; what follows does not depend on what came before, so
        that a file that goes on from a cut has the bits of one that was never interrupted."""
        try:
            if not self._cut_off:
                self._end()
            self._cut_off = True
            if self.partial_path is None:
                return Position(self._frames, self._fragments, 0, 0)
            os.fsync(self._file.fileno())
            end = self._file.tell()
            return Position(self._frames, self._fragments, end, checksum(self.partial_path, end))
        except WRITE_ERRORS as error:
            raise self._failure(error) from error

    @property
    def partial_path(self) -> Path | None:
        """Where the file is while it grows; None for standard output."""
        return None if self._path is None else self._path.with_name(f"{self._path.stem}.partial{self._path.suffix}")

    def _open(self) -> BinaryIO:
        if self._path is None or self.partial_path is None:
            return sys.stdout.buffer
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            return new_file(self.partial_path)
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}; choose another place with -o") from error

    def _reopen(self, position: Position) -> BinaryIO:
        """The file of an earlier run, which was stopped or has ended, without what it has past the cut."""
        if self._path is None or self.partial_path is None:
            raise OutputError("a video on standard output cannot be gone on with; expected the file of the earlier run")
        try:
            found = self.partial_path if self.partial_path.exists() else self._path
            with contextlib.ExitStack() as on_error:
                file = on_error.enter_context(locked(found, "r+b"))
                if found.stat().st_size < position.bytes:
                    raise OutputError(f"{found} has fewer than the {position.bytes} bytes that were written before the snapshot")
                if checksum(found, position.bytes) != position.checksum:
                    raise OutputError(f"{found} is not the video that the snapshot goes on with: another run has written it since")
                if found == self._path:
                    self._path.rename(self.partial_path)
                file.truncate(position.bytes)
                file.seek(position.bytes)
                on_error.pop_all()
                return file
        except OSError as error:
            raise OutputError(f"cannot go on with {self._path}: {error.strerror}; the earlier run wrote it there") from error

    def write(self, frames: Tensor) -> None:
        """Appends frames, uint8 [n, height, width, 3] RGB."""
        if self._cut_off:
            self._begin()
        self._frames += len(frames)
        for image in np.ascontiguousarray(frames.numpy()):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = frame.reformat(
                self._width, self._height, "yuv420p", interpolation="LANCZOS",
                dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG,
            )  # fmt: skip
            self._mux(frame)

    def _mux(self, frame: av.VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
                self._has_pictures = True
        except WRITE_ERRORS as error:
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> OutputError:
        self._broken = True
        reason = getattr(error, "strerror", None) or error
        if self._path is None:
            return OutputError(f"standard output is gone: {reason}")
        written = f"what was written is in {self.partial_path}" if self._has_pictures else "nothing was written"
        return OutputError(f"cannot go on writing {self._path}: {reason}; {written}")

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._broken:
            self._abandon()
            return
        try:
            if not self._cut_off:
                self._end()
            if self._path is not None and self.partial_path is not None:
                with self._file:  # locked until it has its name
                    if error is None:
                        os.fsync(self._file.fileno())
                        self.partial_path.replace(self._path)
                        sync(self._path.parent)
                    elif not self._has_pictures:
                        self.partial_path.unlink()
        except WRITE_ERRORS as failure:
            self._abandon()
            raise self._failure(failure) from failure
        except OutputError:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Lets go of a file that cannot be written any more, and removes it if it holds no picture."""
        for close in (self._container.close, self._file.close):
            with contextlib.suppress(*WRITE_ERRORS):  # the failure that brought us here says it all
                close()
        if self.partial_path is not None and not self._has_pictures:
            self.partial_path.unlink(missing_ok=True)
