"""The file of a video: how players show its colours, and who owns it while it grows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

import lolrt
from lolrt.media.destination import Position

COLOURS = [(200, 30, 30), (30, 160, 30), (30, 30, 200), (220, 220, 40), (0, 0, 0), (255, 255, 255), (128, 128, 128), (180, 90, 60)]


def stripes(height: int, width: int) -> torch.Tensor:
    """uint8 [1, height, width, 3], one stripe per colour."""
    return torch.tensor(COLOURS, dtype=torch.uint8).repeat_interleave(width // len(COLOURS), 0).expand(1, height, width, 3).contiguous()


def middles(image: np.ndarray) -> np.ndarray:
    """The colour in the middle of each stripe, int [stripes, 3]."""
    height, width, _ = image.shape
    return image[height // 2, np.arange(len(COLOURS)) * width // len(COLOURS) + width // len(COLOURS) // 2].astype(int)


@pytest.mark.parametrize("height, width", [(64, 128), (480, 832), (720, 1280)])
def test_a_player_shows_the_colours_that_were_written(height, width, tmp_path):
    """By the definition of BT.709 in limited range, and by swscale with only the labels in the file."""
    with lolrt.VideoWriter(tmp_path / "v.mp4", height, width, 16) as writer:
        writer.write(stripes(height, width).expand(4, -1, -1, -1))
    with av.open(str(tmp_path / "v.mp4")) as container:
        frame = next(container.decode(video=0))
    assert np.abs(middles(frame.to_ndarray(format="rgb24")) - COLOURS).max() <= 5
    y, u, v = middles(np.stack(frame.reformat(format="yuv444p").to_ndarray(), -1)).T
    luma, cb, cr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    red, blue = luma + 1.5748 * cr, luma + 1.8556 * cb
    shown = 255 * np.stack([red, (luma - 0.2126 * red - 0.0722 * blue) / 0.7152, blue], -1)
    assert np.abs(shown - COLOURS).max() <= 5


def test_the_file_says_what_its_colours_are(tmp_path):
    """In the stream, for decoders, and in the container, for browsers: primaries, transfer and matrix are 1, BT.709, of ITU-T H.273."""
    with lolrt.VideoWriter(tmp_path / "v.mp4", 64, 128, 16) as writer:
        writer.write(stripes(64, 128))
    with av.open(str(tmp_path / "v.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, Colorspace.ITU709)
        assert context.color_range == ColorRange.MPEG
    content = (tmp_path / "v.mp4").read_bytes()
    assert content[content.index(b"colr") + 4 :][:11] == b"nclx" + bytes([0, 1, 0, 1, 0, 1, 0])
    # The stream by itself, without its container.
    raw = elementary_stream(tmp_path / "v.mp4", tmp_path / "v.h264")
    with av.open(str(raw)) as container:
        frame = next(container.decode(video=0))
        assert (frame.color_primaries, frame.color_trc, frame.colorspace, frame.color_range) == (1, 1, 1, 1)


def elementary_stream(source: Path, destination: Path) -> Path:
    """A file's video stream alone, as Annex B has it, header first."""
    with av.open(str(source)) as container:
        header = container.streams.video[0].codec_context.extradata
        assert header is not None
        sets, at, parts = header[5] & 31, 6, []
        for count in (sets, None):
            if count is None:
                count, at = header[at], at + 1
            for _ in range(count):
                size = int.from_bytes(header[at : at + 2], "big")
                parts.append(header[at + 2 : at + 2 + size])
                at += 2 + size
        for packet in container.demux(video=0):
            data = bytes(packet)
            while data:
                size = int.from_bytes(data[:4], "big")
                parts.append(data[4 : 4 + size])
                data = data[4 + size :]
    destination.write_bytes(b"".join(b"\0\0\0\1" + part for part in parts))
    return destination


HOLDS = """
import sys, torch, lolrt
with lolrt.VideoWriter(sys.argv[1], 64, 128, 16) as writer:
    writer.write(torch.zeros(20, 64, 128, 3, dtype=torch.uint8))
    position = writer.cut()
    print(position.bytes, position.fragments, position.checksum, flush=True)
    sys.stdin.read()
"""


@pytest.mark.whole
def test_two_writers_of_one_file(tmp_path):
    """The second is refused, even if it would resume the first one's file; the file is complete in the end."""
    path = tmp_path / "v.mp4"
    first = subprocess.Popen([sys.executable, "-c", HOLDS, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    size, fragments, checksum = map(int, first.stdout.readline().split())
    for resume in (None, Position(20, fragments, size, checksum)):
        with pytest.raises(lolrt.OutputError, match=r"another run is writing .*v\.partial\.mp4: wait until it has ended"):
            lolrt.VideoWriter(path, 64, 128, 16, resume=resume)
    first.communicate("")
    assert first.returncode == 0 and [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 20
    with lolrt.VideoWriter(path, 64, 128, 16) as writer:  # nobody owns it any more
        writer.write(stripes(64, 128))


# What grows under each name, and what of it can be removed.
GROWING = {
    "v.mp4": "v.partial.mp4",
    "v.mkv": "v.partial.mkv",
    "v.gif": "v.partial.gif",
    "v.m3u8": "v/init.mp4",
    "frames/%03d.png": "frames",
}


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
@pytest.mark.parametrize("name", GROWING)
def test_what_is_removed_while_it_grows_is_noticed_with_the_next_frames(name, how, tmp_path):
    """The error does not send anybody to it, and what somebody else has put there meanwhile stays."""
    growing = tmp_path / GROWING[name]
    told = rf"cannot go on writing {re.escape(str(tmp_path / name))}: {re.escape(str(growing))} was removed, or moved, while it grew$"
    with pytest.raises(lolrt.OutputError, match=told), lolrt.VideoWriter(tmp_path / name, 64, 128, 16) as writer:
        writer.write(stripes(64, 128))
        if how != "removed":
            growing.rename(tmp_path / "elsewhere")
        elif growing.is_dir():
            shutil.rmtree(growing)
        else:
            growing.unlink()
        if how == "replaced":
            growing.mkdir() if name.endswith("png") else growing.write_bytes(b"of somebody")
        writer.write(stripes(64, 128))
        pytest.fail("it goes on writing to nowhere")
    if how == "replaced":
        assert not any(growing.iterdir()) if name.endswith("png") else growing.read_bytes() == b"of somebody"
    else:
        assert not growing.exists()


@pytest.mark.parametrize("name", GROWING)
def test_what_is_removed_before_it_is_complete_is_no_success(name, tmp_path):
    told = r"was removed, or moved, while it grew$"
    with pytest.raises(lolrt.OutputError, match=told), lolrt.VideoWriter(tmp_path / name, 64, 128, 16) as writer:
        writer.write(stripes(64, 128))
        (tmp_path / GROWING[name]).rename(tmp_path / "elsewhere")
    assert not (tmp_path / "v.mp4").exists()


def test_what_a_killed_run_has_left_is_not_overwritten(tmp_path):
    partial = tmp_path / "v.partial.mp4"
    partial.write_bytes(b"hours of video")
    with pytest.raises(lolrt.OutputError, match=r"v\.partial\.mp4 is what an earlier run had written when it was stopped: move it"):
        lolrt.VideoWriter(tmp_path / "v.mp4", 64, 128, 16)
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.partial.mp4"] and partial.read_bytes() == b"hours of video"
    partial.write_bytes(b"")  # no loss
    with lolrt.VideoWriter(tmp_path / "v.mp4", 64, 128, 16) as writer:
        writer.write(stripes(64, 128))
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """Otherwise a power cut could leave an empty file with that name."""
    done = []

    def noted(name, call):
        monkeypatch.setattr(os, name, lambda *arguments: (done.append(name), call(*arguments))[1])

    for name in ("fsync", "replace"):
        noted(name, getattr(os, name))
    with lolrt.VideoWriter(tmp_path / "v.mp4", 64, 128, 16) as writer:
        writer.write(stripes(64, 128))
    assert done == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_a_name_in_capitals_is_a_name(tmp_path):
    with lolrt.VideoWriter(tmp_path / "V.MP4", 64, 128, 16) as writer:
        assert writer.partial_path == tmp_path / "V.partial.MP4"
        writer.write(stripes(64, 128))
    assert [entry.name for entry in tmp_path.iterdir()] == ["V.MP4"]


def moving(count: int) -> torch.Tensor:
    """uint8 [count, 64, 96, 3], smooth noise."""
    coarse = torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, (64, 96), mode="bilinear") * 255).byte().permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize(
    ("suffix", "codec", "least_psnr"), [(".mkv", "h264", 40), (".webm", "vp9", 40), (".gif", "gif", 33), (".MKV", "h264", 40)]
)
def test_other_files_hold_the_frames_at_their_times(suffix, codec, least_psnr, tmp_path):
    frames, path = moving(24), tmp_path / f"v{suffix}"
    with lolrt.VideoWriter(path, 64, 96, 16) as writer:
        assert writer.partial_path == tmp_path / f"v.partial{suffix}"
        for chunk in frames.split(9):
            writer.write(chunk)
    assert list(tmp_path.iterdir()) == [path]
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == codec
        shown = list(container.decode(video=0))
        assert container.duration == pytest.approx(24 / 16 * 1e6, abs=1e4), "the muxer has gone back to write it"
    assert [float(picture.time) for picture in shown] == pytest.approx([i / 16 for i in range(24)], abs=0.0051)
    seen = np.stack([np.asarray(picture.to_image().resize((96, 64), Image.Resampling.BOX), float) for picture in shown])
    assert 10 * np.log10(255**2 / np.mean((seen - frames.numpy()) ** 2)) > least_psnr
    if codec != "gif":
        assert (shown[0].colorspace, shown[0].color_range) == (Colorspace.ITU709, ColorRange.MPEG)


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".gif"])
def test_what_there_is_of_another_file_can_be_played(suffix, tmp_path):
    with pytest.raises(KeyboardInterrupt), lolrt.VideoWriter(tmp_path / f"v{suffix}", 64, 96, 16) as writer:
        writer.write(moving(20))
        raise KeyboardInterrupt
    (partial,) = tmp_path.iterdir()
    with av.open(str(partial)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 20
    with pytest.raises(lolrt.OutputError, match="earlier run"):
        lolrt.VideoWriter(tmp_path / f"v{suffix}", 64, 96, 16)
    with pytest.raises(lolrt.OutputError, match="cannot be gone on with"):
        lolrt.VideoWriter(tmp_path / f"w{suffix}", 64, 96, 16, resume=Position(9, 1, 100, 0))


def test_png_files_are_the_frames(tmp_path):
    frames = moving(11)
    with lolrt.VideoWriter(tmp_path / "f" / "x-%03d.PNG", 64, 96, 16) as writer:
        writer.write(frames[:9])
        with pytest.raises(lolrt.OutputError, match="another run is writing"):
            lolrt.VideoWriter(tmp_path / "f" / "y-%d.png", 64, 96, 16)
        writer.write(frames[9:])
    found = sorted((tmp_path / "f").iterdir())
    assert [path.name for path in found] == [f"x-{i:03d}.PNG" for i in range(1, 12)]
    assert all(np.array_equal(Image.open(path), frame) for path, frame in zip(found, frames, strict=True))
    with pytest.raises(lolrt.OutputError, match="has frames of this name already"):
        lolrt.VideoWriter(tmp_path / "f" / "x-%03d.PNG", 64, 96, 16)
    with lolrt.VideoWriter(tmp_path / "f" / "z-%d.png", 64, 96, 16) as writer:
        writer.write(frames[:1])
    assert (tmp_path / "f" / "z-1.png").exists()


@pytest.mark.parametrize("name", ["x.png", "%05d-%05d.png", "100%.png", "%s.png", "%05d/x.png"])
def test_a_name_without_a_place_for_the_number(name, tmp_path):
    with pytest.raises(lolrt.OutputError, match="expected a place for the frame's number"):
        lolrt.VideoWriter(tmp_path / name, 64, 96, 16)
