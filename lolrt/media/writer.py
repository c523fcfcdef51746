"""Writes video as it comes. At any moment it can be played up to its last second."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import TracebackType

from torch import Tensor

from lolrt.errors import OutputError, check_pixels
from lolrt.media import CRF
from lolrt.media.destination import Destination, MovieFile, Position, StandardOutput
from lolrt.media.encoder import WRITE_ERRORS, Mp4Encoder, check_video
from lolrt.media.hls_folder import HlsFolder
from lolrt.media.movie import FORMATS, MovieEncoder
from lolrt.media.png_sequence import PngEncoder, PngFolder, check_pattern

# HLS output raises OutputError itself.
FAILURES = (*WRITE_ERRORS, OutputError)
# The formats that a later run can continue; the others it cannot.
GOING_ON = (".mp4", ".m3u8")
SUFFIXES = (*GOING_ON, *FORMATS, ".png")


def output_path(output: str | Path) -> Path | None:
    """The file that an output names; None for "-", standard output. Raises `lolrt.OutputError` for a name that is not a video's, and if
    standard output cannot take a video."""
    if str(output) == "-":
        if sys.stdout is None:
            raise OutputError("standard output is closed; choose a file with -o")
        if sys.stdout.isatty():
            raise OutputError("standard output is a terminal, which shows no video; lead it to a program or a file, or choose one with -o")
        return None
    path = Path(output)
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"the output is {str(output)!r}; expected a name that ends in {', '.join(SUFFIXES)}, or - for standard output")
    if path.suffix.lower() == ".png":
        check_pattern(path)
    return path


def goes_on(path: Path | None) -> bool:
    """Whether a later run can continue such a video."""
    return path is not None and path.suffix.lower() in GOING_ON


def is_hls(path: Path | None) -> bool:
    return path is not None and path.suffix.lower() == ".m3u8"


def destination_of(path: Path) -> type[MovieFile | HlsFolder | PngFolder]:
    return PngFolder if path.suffix.lower() == ".png" else HlsFolder if is_hls(path) else MovieFile


class VideoWriter:
    """A context manager that writes frames to a file, by the end of its name .mp4, .mkv, .webm or .gif; to an HLS playlist .m3u8 and its
    segments; to PNG files, such as `frames/%05d.png`; or as an mp4 to standard output for the output "-".

    A file is written under the name `<stem>.partial.mp4`, locked, and gets its final name when it is complete and on the disk. If writing
    fails, the part that was written keeps the partial name: it can be played, but not be mistaken for a complete video. If no picture was
    written, no file is left. A playlist `<stem>.m3u8` exists from the first segment in the folder `<stem>` on, and gets its end mark when
    the video is complete. Raises `lolrt.OutputError` when the output cannot be written, when another process is writing it, or when an
    earlier one has left an incomplete video there.
    """

    def __init__(
        self,
        output: str | Path,
        height: int,
        width: int,
        fps: int,
        *,
        crf: int = CRF,
        resume: Position | None = None,
        dvr_seconds: float | None = None,
    ) -> None:
        """height, width: the size of the frames, in pixels. fps: frames per second. crf: constant rate factor of H.264 and VP9, from 1,
        the best, to 51. resume: continues the video of an earlier run from its cut. dvr_seconds: how much of an HLS video is kept; by
        default all."""
        path = output_path(output)
        check_video(height, width, fps, crf)
        self._size = height, width
        if dvr_seconds is not None and not is_hls(path):
            raise OutputError("only an .m3u8 can leave its beginning out: choose such a name with -o, or leave --dvr out")
        if resume is not None and not goes_on(path):
            where = path or "a video on standard output"
            raise OutputError(f"{where} cannot be gone on with; expected the .mp4 or .m3u8 of the earlier run")
        self._broken = False
        self._destination: Destination
        self._encoder: Mp4Encoder | MovieEncoder | PngEncoder
        if path is not None and path.suffix.lower() == ".png":
            self._destination = folder = PngFolder(path)
            self._encoder = PngEncoder(folder)
            return
        if path is None:
            self._destination = StandardOutput()
        elif is_hls(path):
            self._destination = HlsFolder(path, fps, dvr_seconds, resume)
        else:
            self._destination = MovieFile(path, resume)
        frames, fragments = (resume.frames, resume.fragments) if resume else (0, 0)
        try:
            if isinstance(self._destination, MovieFile) and not goes_on(path):
                self._encoder = MovieEncoder(self._destination.file, self._destination.suffix, height, width, fps, crf=crf)
            else:
                self._encoder = Mp4Encoder(self._destination, height, width, fps, crf=crf, frames=frames, fragments=fragments)
        except OutputError:
            self._destination.leave(has_pictures=resume is not None)
            raise

    @property
    def partial_path(self) -> Path | None:
        """The file of the video while it grows; None for standard output."""
        return self._destination.partial_path

    def write(self, frames: Tensor) -> None:
        """Appends frames, uint8 [n, height, width, 3] RGB. Raises `lolrt.Error` for others."""
        check_pixels(frames, None, *self._size, 3)
        try:
            self._destination.check_there()
            self._encoder.write(frames)
        except FAILURES as error:
            raise self._failure(error) from error

    def cut(self) -> Position:
        """Writes all frames so far to the disk, and resets the encoder. Later frames do not depend on earlier ones, so a video that is
        continued from a cut has the same bits as one that was never interrupted. Only .mp4 and .m3u8 can be cut."""
        try:
            self._encoder.end()
            size, checksum = self._destination.cut()
        except FAILURES as error:
            raise self._failure(error) from error
        return Position(self._encoder.frames, self._encoder.fragments, size, checksum)

    def _failure(self, error: BaseException) -> OutputError:
        self._broken = True
        error = error.__cause__ or error if isinstance(error, OutputError) else error
        reason = getattr(error, "strerror", None) or error
        if isinstance(self._destination, StandardOutput):
            return OutputError(f"standard output is gone: {reason}")
        if isinstance(error, FileNotFoundError):
            reason = f"{error.filename or self.partial_path} was removed, or moved, while it grew"
            return OutputError(f"cannot go on writing {self._destination.name}: {reason}")
        written = f"what was written is in {self.partial_path}" if self._encoder.has_pictures else "nothing was written"
        return OutputError(f"cannot go on writing {self._destination.name}: {reason}; {written}")

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._broken:
            self._abandon()
            return
        try:
            self._encoder.end()
            self._destination.flush()
            if error is None:
                self._destination.check_there()
                self._destination.finish()
            else:
                self._destination.leave(self._encoder.has_pictures)
        except FAILURES as failure:
            self._abandon()
            raise self._failure(failure) from failure

    def _abandon(self) -> None:
        """Gives up a video that can no longer be written."""
        with contextlib.suppress(*FAILURES):  # the first failure is the one that is reported
            self._encoder.abandon()
        with contextlib.suppress(*FAILURES):
            self._destination.leave(self._encoder.has_pictures)
