"""Sends video to an address while it is made: a live stream, in real time."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType

import av
import numpy as np
from torch import Tensor

from lolrt.errors import OutputError, check_pixels
from lolrt.media import CRF
from lolrt.media.encoder import WRITE_ERRORS, Encoder, check_video

# The container format of each protocol.
FORMATS = {"udp": "mpegts", "srt": "mpegts", "rtmp": "flv", "rtmps": "flv"}

# How far ahead of its time a frame may be sent. Frames come one chunk at a time, and receivers buffer at least so much.
AHEAD_SECONDS = 1.0


def is_address(output: str) -> bool:
    return "://" in output


def check_address(address: str) -> str:
    """The protocol of an address. Raises `lolrt.OutputError` for a protocol that cannot carry video. Does not connect."""
    protocol = address.partition("://")[0].lower()
    if protocol not in FORMATS:
        raise OutputError(f"the address begins with {protocol}://; expected one of {', '.join(f'{name}://' for name in FORMATS)}")
    if protocol == "srt":  # the only protocol that FFmpeg takes from another library
        try:
            av.open("srt://", "r", format="mpegts")
        except av.ProtocolNotFoundError:
            raise OutputError("the FFmpeg of this PyAV has no srt; choose udp, or build PyAV with one that has") from None
        except WRITE_ERRORS:
            pass  # the empty address
    return protocol


class AddressWriter:
    """A context manager that sends frames as H.264. `write` waits, so that frames are sent at most `AHEAD_SECONDS` ahead of their time.

    Raises `lolrt.OutputError` when the receiver cannot be reached, or has closed the connection.
    """

    partial_path = None

    def __init__(self, address: str, height: int, width: int, fps: int, *, crf: int = CRF) -> None:
        """The arguments are those of `lolrt.VideoWriter`."""
        self._protocol, self._fps, self._broken = check_address(address), fps, False
        check_video(height, width, fps, crf)
        self._size = height, width
        self._frames, self._start = 0, 0.0  # the frames so far, and the time of the first one by the monotonic clock
        with contextlib.ExitStack() as on_error:
            container = on_error.enter_context(av.open(address, "w", format=FORMATS[self._protocol]))
            # The encoder holds no frames back to look ahead.
            self._h264 = Encoder(container, height, width, fps, {"crf": str(crf), "tune": "zerolatency"})
            try:
                container.start_encoding()
            except (*WRITE_ERRORS, ValueError) as error:
                raise self._failure(error) from error
            on_error.pop_all()

    def write(self, frames: Tensor) -> None:
        """Sends frames, uint8 [n, height, width, 3] RGB. Raises `lolrt.Error` for others."""
        check_pixels(frames, None, *self._size, 3)
        now = time.monotonic()
        if now > self._start + self._frames / self._fps:
            self._start = now - self._frames / self._fps  # a late frame moves all later ones
        for image in np.ascontiguousarray(frames.numpy()):
            time.sleep(max(0.0, self._start + self._frames / self._fps - AHEAD_SECONDS - time.monotonic()))
            try:
                self._h264.write(image)
            except WRITE_ERRORS as error:
                self._broken = True
                raise self._failure(error) from error
            self._frames += 1

    def _failure(self, error: Exception) -> OutputError:
        # The address may hold a key, so the message does not show it.
        return OutputError(f"cannot send video by {self._protocol}: {getattr(error, 'strerror', None) or error}")

    def __enter__(self) -> AddressWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if not self._broken:
                self._h264.close()
        except WRITE_ERRORS as failure:
            self._broken = True
            raise self._failure(failure) from failure
        finally:
            if self._broken:
                with contextlib.suppress(*WRITE_ERRORS):
                    self._h264.container.close()
