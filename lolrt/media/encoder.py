"""Encodes frames to video as they come.

Colours are BT.709 in limited range, and the stream is labelled so. Without the label a player would assume BT.601 for small pictures.
Each frame of a GIF has its own 256 colours.
"""

from __future__ import annotations

from typing import Literal

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image
from torch import Tensor

from lolrt.errors import OutputError, check_whole
from lolrt.media import CRF
from lolrt.media.fragments import Fragments, Sink

# Small video is enlarged by an integer factor to at least this height: players would enlarge it with a worse filter.
DISPLAY_HEIGHT = 256

# The filters, by FFmpeg's names.
Enlarge = Literal["LANCZOS", "POINT"]

# The codecs by FFmpeg's names: H.264, VP9 and GIF.
Codec = Literal["libx264", "libvpx-vp9", "gif"]

# Options of libx264 for live video: no B-frames, because players have to wait for them.
LIVE = {"preset": "veryfast", "bf": "0", "threads": "1"}

# The code of BT.709's primaries and transfer in ITU-T H.273.
BT709 = 1

# Ticks of the track's clock per frame.
FRAME_UNITS = 1000

# The exceptions of a failed write: the file's own error, or the muxer's error about an earlier failure.
WRITE_ERRORS = (OSError, av.FFmpegError)


def check_video(height: int, width: int, fps: int, crf: int) -> None:
    """Raises `lolrt.Error` if the pixels, the frame rate or the constant rate factor are not integers, or out of range."""
    check_whole(height=height, width=width, fps=fps, crf=crf)
    encoded_size(height, width)
    if fps < 1 or not 1 <= crf <= 51:
        raise OutputError(f"{fps} frames a second with crf {crf}; expected at least 1, and a crf of 1 to 51")


def encoded_size(height: int, width: int) -> tuple[int, int]:
    """The height and width, in pixels, at which frames are encoded. Raises `lolrt.OutputError` if the frames are too small."""
    if height < 2 or width < 2:
        raise OutputError(f"frames of {height} x {width} pixels are too small to encode")
    scale = max(1, -(-DISPLAY_HEIGHT // height)) if height < DISPLAY_HEIGHT else 1
    # 4:2:0 halves the resolution of the colours, so height and width must be even.
    return scale * height // 2 * 2, scale * width // 2 * 2


class Encoder:
    """An encoder that writes into a container, and closes it at the end."""

    def __init__(
        self,
        container: OutputContainer,
        height: int,
        width: int,
        fps: int,
        options: dict[str, str],
        *,
        codec: Codec = "libx264",
        enlarge: Enlarge = "LANCZOS",
    ) -> None:
        """height, width: the size of the frames, in pixels. fps: frames per second. options: those of the codec. Raises
        `lolrt.OutputError`."""
        self.container, self._enlarge = container, enlarge
        self._height, self._width = encoded_size(height, width)
        try:
            # One key frame per second.
            self._stream = container.add_stream(codec, rate=fps, options={"g": str(fps), **options})
        except (*WRITE_ERRORS, ValueError) as error:
            raise OutputError(f"cannot encode video: {error}; PyAV's own packages can") from error
        self._stream.height, self._stream.width = self._height, self._width
        self._stream.pix_fmt = "pal8" if codec == "gif" else "yuv420p"
        if codec != "gif":
            self._stream.colorspace, self._stream.color_range = Colorspace.ITU709, ColorRange.MPEG
            self._stream.color_primaries = self._stream.color_trc = BT709
        self.has_pictures = False

    def write(self, image: np.ndarray) -> None:
        """Appends a frame, uint8 [height, width, 3] RGB."""
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        if self._stream.pix_fmt == "pal8":
            large = frame.reformat(self._width, self._height, interpolation=self._enlarge).to_ndarray()
            self._mux(_in_256_colours(large, of=image))
            return
        self._mux(
            frame.reformat(
                self._width, self._height, "yuv420p", interpolation=self._enlarge,
                dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG,
            )
        )  # fmt: skip

    def close(self) -> None:
        """Writes the frames that the encoder and the muxer still hold."""
        self._mux(None)
        self.container.close()

    def _mux(self, frame: av.VideoFrame | None) -> None:
        for packet in self._stream.encode(frame):
            self.container.mux(packet)
            self.has_pictures = True


def _in_256_colours(image: np.ndarray, of: np.ndarray) -> av.VideoFrame:
    """A picture, uint8 [height, width, 3] RGB, dithered to the 256 colours that fit `of` best, which is the same picture before it was
    enlarged."""
    colours_of = Image.fromarray(of).quantize(256, Image.Quantize.MEDIANCUT)
    reduced = Image.fromarray(image).quantize(palette=colours_of, dither=Image.Dither.FLOYDSTEINBERG)
    palette = np.zeros((256, 4), np.uint8)
    colours = np.array(reduced.getpalette(), np.uint8).reshape(-1, 3)
    palette[:, 0], palette[: len(colours), 1:] = 255, colours
    return av.VideoFrame.from_ndarray((np.asarray(reduced), palette), format="pal8")  # type: ignore[arg-type]  # as its source says


class Mp4Encoder:
    """Encodes frames as a fragmented mp4, with one fragment per key frame. It never holds many frames back, and no index grows.

    The bytes after an `end` do not depend on the frames before. So a video that is continued there, in this process or another, has the
    same bits as one that was never interrupted.
    """

    def __init__(
        self,
        sink: Sink,
        height: int,
        width: int,
        fps: int,
        *,
        crf: int = CRF,
        enlarge: Enlarge = "LANCZOS",
        live: bool = False,
        frames: int = 0,
        fragments: int = 0,
    ) -> None:
        """height, width: the size of the frames, in pixels. fps: frames per second. crf: H.264's constant rate factor, from 1, the best,
        to 51. enlarge: the filter that enlarges small frames; with "POINT", pixels become squares. live: encodes on one thread, in half
        the time and with a tenth more bytes; no frame waits for a later one, so the output has the times of the frames. frames, fragments:
        the numbers that the sink has already. Raises `lolrt.OutputError` if there is no encoder."""
        self.frames, self.fragments, self._had_pictures = frames, fragments, frames > 0
        self._sink, self._size, self._fps, self._enlarge = sink, (height, width), fps, enlarge
        self._options = {"crf": str(crf)} | (LIVE if live else {})
        self._begin()

    def _begin(self) -> None:
        """Makes a muxer and an encoder for the frames from here on."""
        self._boxes = Fragments(self._sink, self.fragments, FRAME_UNITS * self.frames, with_header=self.frames == 0)
        movflags = "frag_keyframe+empty_moov+default_base_moof+skip_trailer"
        options = {"movflags": movflags, "video_track_timescale": str(FRAME_UNITS * self._fps)}
        container = av.open(self._boxes, "w", format="mp4", options=options)
        try:
            self._h264 = Encoder(container, *self._size, self._fps, self._options, enlarge=self._enlarge)
        except OutputError:
            container.close()
            raise
        self._ended = False

    def write(self, frames: Tensor) -> None:
        """Appends frames, uint8 [n, height, width, 3] RGB. Raises one of `WRITE_ERRORS`."""
        if self._ended:
            self._begin()
        self.frames += len(frames)
        for image in np.ascontiguousarray(frames.numpy()):
            self._h264.write(image)

    def end(self) -> None:
        """Writes all frames so far to the sink. Raises one of `WRITE_ERRORS`."""
        if self._ended:
            return
        self._h264.close()
        self.fragments, self._had_pictures, self._ended = self._boxes.fragments, self.has_pictures, True

    @property
    def has_pictures(self) -> bool:
        """Whether the sink has any pictures, from this encoder or an earlier one."""
        return self._had_pictures or self._h264.has_pictures

    def abandon(self) -> None:
        """Discards the muxer and the encoder, when the sink can no longer be written."""
        self._h264.container.close()
