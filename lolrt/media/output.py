"""Opens the output that `-o` names: a video file, an HLS playlist, a sequence of PNG files, standard output, or an address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lolrt.errors import OutputError
from lolrt.media.address import AddressWriter, check_address, is_address
from lolrt.media.destination import Position
from lolrt.media.hls import Playlist
from lolrt.media.writer import VideoWriter, destination_of, is_hls, output_path


def check_output(output: str, dvr_seconds: float | None, resume: bool) -> Path | None:
    """The file that an output names; None for standard output and for an address. Raises the `lolrt.OutputError` of `open_output`, as far
    as it can be known before anything is written. resume: whether the video of an earlier run is continued."""
    path = None if is_address(output) else output_path(output)
    if is_address(output):
        check_address(output)
    if dvr_seconds is not None and not is_hls(path):
        raise OutputError("--dvr is for an .m3u8: choose such a name with -o, or leave it out")
    Playlist("", str, 1, dvr_seconds)
    if path is not None and not resume:
        destination_of(path).check_free(path)
    return path


def open_output(
    output: str, height: int, width: int, fps: int, *, resume: Position | None, dvr_seconds: float | None, **options: Any
) -> VideoWriter | AddressWriter:
    """Opens an output. The arguments are those of `lolrt.VideoWriter`."""
    if is_address(output):
        return AddressWriter(output, height, width, fps, **options)
    return VideoWriter(output, height, width, fps, resume=resume, dvr_seconds=dvr_seconds, **options)
