"""Starts from images and videos: from the file to the latents, and from the latents to the stream."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

import lolrt
from lolrt import cli
from lolrt.media import reader
from lolrt.media.reader import _at_rate, _upright, check_readable, read_frames
from lolrt.models.vae import streaming as vae_stream


class Picture:
    """Stands for a decoded frame."""

    def __init__(self, time: float) -> None:
        self.time = time


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.sampled_from([8.0, 12.5, 16.0, 30.0, 59.94]), st.sampled_from([5.0, 16.0, 30.0]), st.sampled_from([0.0, 1.7]))
def test_each_frame_is_the_one_that_is_shown_at_its_time(count, file_fps, fps, start):
    pictures = [Picture(start + i / file_fps) for i in range(count)]
    frames = list(_at_rate(iter(pictures), fps))
    assert len(frames) == int((count - 1) / file_fps * fps + 0.1 + 1e-9) + 1
    for k, frame in enumerate(frames):
        assert frame.time - start <= (k + 0.1) / fps + 1e-9
        following = pictures[pictures.index(frame) + 1 :][:1]
        assert all(later.time - start >= (k - 0.1) / fps for later in following)


def write_image(path, image: np.ndarray) -> None:
    """uint8 [height, width, 3] as PNG."""
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = image.shape[0], image.shape[1], "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def test_an_image_is_scaled_to_cover_and_cropped_around_its_middle(tmp_path):
    image = np.zeros((40, 200, 3), np.uint8)
    image[:, :60, 0] = 255  # cropped away, except for a few columns
    image[:, 60:140, 1] = 255
    image[:, 140:, 2] = 255
    write_image(tmp_path / "wide.png", image)
    (frame,) = read_frames(tmp_path / "wide.png", 80, 160, 16)
    assert frame.shape == (80, 160, 3) and frame.dtype == torch.uint8
    assert (frame[:, 2:-2].float().mean((0, 1)) - torch.tensor([0.0, 255.0, 0.0])).abs().max() < 6
    (frame,) = read_frames(tmp_path / "wide.png", 40, 200, 16)
    assert np.array_equal(frame.numpy(), image)


# Where the rows and columns of a picture go when it is shown, by EXIF's number (CIPA DC-008, "Orientation").
SHOWN = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
}
# The same as display matrices: (x, y) is shown at (a x + c y, b x + d y), up to a shift of the corner.
MATRICES = {1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1)}
MATRICES |= {5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0)}

RED, GREEN, BLUE, YELLOW = (200, 30, 30), (30, 160, 30), (30, 30, 200), (220, 220, 40)


def quarters(height: int = 128, width: int = 192) -> np.ndarray:
    """uint8 [height, width, 3], of four colours."""
    corners = np.array([[RED, GREEN], [BLUE, YELLOW]], np.uint8)
    return corners.repeat(height // 2, 0).repeat(width // 2, 1)


def apart(frame: torch.Tensor, expected: np.ndarray) -> float:
    """Mean difference of two pictures."""
    return float(np.abs(frame.numpy().astype(int) - expected).mean())


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["jpg", "heic", "png", "webp", "tiff"])
def test_a_photo_is_turned_and_mirrored_as_its_exif_says(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"photo.{kind}"
    Image.fromarray(quarters()).save(path, exif=exif.tobytes(), quality=95)
    expected = SHOWN[orientation](quarters())
    (frame,) = read_frames(path, *expected.shape[:2], 16)
    assert apart(frame, expected) < 3
    (narrow,) = read_frames(path, 64, 32, 16)  # cropped around the middle of the shown picture
    tall, wide = expected.shape[:2]
    middle = expected[:, wide // 2 - tall // 4 : wide // 2 + tall // 4][:: tall // 64, :: tall // 64]
    assert apart(narrow, middle[:64, :32]) < 8


def film(path, image: np.ndarray, *, pixel: Fraction = Fraction(1), orientation: int = 1, count: int = 4) -> None:
    """A video of one repeated picture, with pixels of that aspect ratio and a display matrix."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = image.shape[0], image.shape[1], "yuv444p"
        stream.codec_context.sample_aspect_ratio = pixel
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    content = bytearray(path.read_bytes())
    at, one = content.index(b"tkhd") + 4 + 40, 1 << 16  # in version 0 of the box, ISO 14496-12
    assert content[at : at + 36] == struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    a, b, c, d = (one * value for value in MATRICES[orientation])
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize("orientation", MATRICES)
def test_a_video_is_turned_and_mirrored_as_its_matrix_says(orientation, tmp_path):
    film(tmp_path / "v.mp4", quarters(), orientation=orientation)
    expected = SHOWN[orientation](quarters())
    read = list(read_frames(tmp_path / "v.mp4", *expected.shape[:2], 16))
    assert len(read) == 4 and all(apart(frame, expected) < 3 for frame in read)


@pytest.mark.parametrize("orientation, shape", [(1, (96, 192)), (6, (192, 96))])
@pytest.mark.parametrize("pixel", [Fraction(2), Fraction(1, 2), Fraction(16, 15)])
def test_pixels_that_are_not_square_are_brought_to_their_shape(pixel, orientation, shape, tmp_path):
    """192 x 96 pixels in stripes. Everything that is shown is read, in its shown shape, and then a square from its middle."""
    stripes = np.array([RED, GREEN, BLUE, YELLOW], np.uint8).repeat(48, 0)[None].repeat(96, 0)
    film(tmp_path / "v.mp4", stripes, pixel=pixel, orientation=orientation)
    tall, wide = (shape[0], round(shape[1] * pixel)) if orientation == 1 else (round(shape[0] * pixel), shape[1])
    frame = next(read_frames(tmp_path / "v.mp4", tall, wide, 16))
    expected = SHOWN[orientation](np.array(Image.fromarray(stripes).resize((round(192 * pixel), 96), Image.Resampling.NEAREST)))
    assert apart(frame, expected) < 4
    square = next(read_frames(tmp_path / "v.mp4", 96, 96, 16))
    side = min(tall, wide)
    top, left = (tall - side) // 2, (wide - side) // 2
    middle = Image.fromarray(np.ascontiguousarray(expected[top : top + side, left : left + side]))
    assert apart(square, np.array(middle.resize((96, 96), Image.Resampling.NEAREST))) < 6


@pytest.mark.parametrize("mode, kind", [("RGBA", "png"), ("RGBA", "webp"), ("RGBA", "heic"), ("LA", "png"), ("P", "png"), ("P", "gif")])
def test_transparent_pixels_are_laid_over_white(mode, kind, tmp_path):
    """The right half is transparent, over a colour that must not show. In formats with levels of alpha, one stripe of it is half
    transparent."""
    image = np.dstack([np.full((64, 96, 3), 60, np.uint8), np.full((64, 96), 255, np.uint8)])
    image[:, 48:] = (255, 0, 255, 0)
    levels = mode != "P"
    if levels:
        image[:, 80:] = (60, 60, 60, 128)
    picture = Image.fromarray(image)
    picture.convert(mode if levels else "RGBA").save(tmp_path / f"cutout.{kind}", **({"lossless": True} if kind == "webp" else {}))
    if mode == "P" and kind == "png":
        palette = Image.new("P", (96, 64), 0)
        palette.putpalette([60, 60, 60, 255, 0, 255])
        palette.paste(1, (48, 0, 96, 64))
        palette.save(tmp_path / "cutout.png", transparency=1)
    (frame,) = read_frames(tmp_path / f"cutout.{kind}", 64, 96, 16)
    assert (frame[:, :46].float() - 60).abs().max() < 4
    assert frame[:, 50:78].min() > 251
    assert not levels or (frame[:, 82:].float() - 157).abs().max() < 6  # half of 60 and of 255


def test_a_video_with_transparency_is_laid_over_white(tmp_path):
    image = np.full((64, 96, 4), 255, np.uint8)
    image[:, 48:] = (255, 0, 255, 0)
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=16)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "bgra"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgba")))
        container.mux(stream.encode(None))
    assert next(read_frames(tmp_path / "v.mkv", 64, 96, 16)).min() > 250


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "heic", "avif", "bmp", "tiff"])
def test_an_image_that_is_cut_off_is_refused(kind, options, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{kind}", **options)
    content = (tmp_path / f"whole.{kind}").read_bytes()
    path = tmp_path / f"cut.{kind}"
    for share in (0.02, 0.1, 0.5, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        for read in (check_readable, lambda path: list(read_frames(path, 16, 16, 16))):
            with pytest.raises(lolrt.Error, match=r"cannot read .*cut.* as an image or a video: "):
                read(path)


def test_what_opens_images_opens_images(tmp_path, monkeypatch):
    """Images are not opened by FFmpeg, which reads only the first tile of a photo in tiles, and gives a truncated JPEG a grey rest."""
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("FFmpeg was asked"))
    for kind in ("jpg", "png", "webp", "heic", "avif", "gif", "tiff", "bmp", "ppm", "jp2"):
        path = tmp_path / f"photo.{kind}"
        Image.fromarray(quarters()).save(path)
        path.rename(tmp_path / "photo.mp4")  # its first bytes show its format
        (frame,) = read_frames(tmp_path / "photo.mp4", 128, 192, 16)
        assert apart(frame, quarters()) < 4, kind


def test_16_bits_are_scaled_and_32_refused(tmp_path):
    Image.fromarray(np.full((64, 96), 100 * 256 + 7, np.uint16)).save(tmp_path / "grey.png")
    (frame,) = read_frames(tmp_path / "grey.png", 64, 96, 16)
    assert frame.unique().tolist() == [100]
    Image.fromarray(np.zeros((64, 96), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(lolrt.Error, match="32 bits; expected 8 or 16"):
        check_readable(tmp_path / "float.tiff")


def test_an_animation_is_read_in_its_time(tmp_path):
    """Three pictures, shown for 250, 500 and 125 ms: at 8 frames per second these are 2, 4 and 1 frames."""
    pictures = [Image.new("RGB", (96, 64), (value,) * 3) for value in (0, 120, 240)]
    for kind, options in (("gif", {}), ("webp", {"lossless": True}), ("png", {})):
        path = tmp_path / f"a.{kind}"
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[250, 500, 125], **options)
        assert [frame.float().mean().round().item() for frame in read_frames(path, 64, 96, 8)] == [0, 0, 120, 120, 120, 120, 240], kind


@pytest.mark.parametrize("rows", [480, 720])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [2, 1, 6])
def test_the_colours_of_a_video_are_those_that_it_names(matrix, full, rows):
    """ITU-R BT.709 and BT.601, 8 bits. matrix: of H.273; 2 means unspecified, and then BT.709 is used from 720 rows on, as in players."""
    y, u, v = 100, 110, 170
    planes = np.full((rows * 3 // 2, 64), y, np.uint8)
    planes[rows : rows + rows // 4], planes[rows + rows // 4 :] = u, v
    picture = av.VideoFrame.from_ndarray(planes, "yuv420p")
    picture.colorspace, picture.color_range = matrix, 2 if full else 1
    shown = np.asarray(_upright(picture)[0])[5, 5]
    kr, kb = (0.2126, 0.0722) if matrix == 1 or (matrix == 2 and rows == 720) else (0.299, 0.114)
    luma, cb, cr = (y / 255, (u - 128) / 255, (v - 128) / 255) if full else ((y - 16) / 219, (u - 128) / 224, (v - 128) / 224)
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    expected = 255 * np.array([red, (luma - kr * red - kb * blue) / (1 - kr - kb), blue])
    assert np.abs(shown - expected).max() < 3


def test_a_name_is_a_file(tmp_path, monkeypatch):
    """Even a name that FFmpeg would take for an address; and addresses in a playlist are not fetched either."""
    monkeypatch.chdir(tmp_path)
    for name in ("12:30.png", "http:a.png", "file:b.png", "pipe:0", "concat:c|d"):
        write_image(tmp_path / "x.png", quarters())
        (tmp_path / "x.png").rename(name)
        assert apart(next(read_frames(name, 128, 192, 16)), quarters()) == 0
        film(tmp_path / "x.mp4", quarters())
        (tmp_path / "x.mp4").rename(name)
        assert apart(next(read_frames(name, 128, 192, 16)), quarters()) < 3
    asked = []

    def answer(server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is closed at the end
            while True:
                connection, address = server.accept()
                asked.append(address)
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, args=(server,), daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/v.mp4"
        playlists = {
            "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n",
            "list.ffconcat": f"ffconcat version 1.0\nfile {address}\n",
            "own.ffconcat": "ffconcat version 1.0\nfile 12:30.png\n",
            "v.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        }
        for name, text in playlists.items():
            (tmp_path / name).write_text(text)
        for name in (address, *playlists):
            with pytest.raises(lolrt.Error, match=r"cannot read|no pictures"):
                check_readable(name)
    assert not asked


@pytest.mark.whole
def test_of_a_long_start_no_more_is_read_than_is_asked_for(tiny, tmp_path, monkeypatch, capsys):
    taken = []

    def endless(*_):
        while True:
            taken.append(1)
            yield torch.full((64, 96, 3), 90, dtype=torch.uint8)

    write_image(tmp_path / "a.png", quarters())
    monkeypatch.setattr(reader, "read_frames", endless)
    monkeypatch.setattr(reader, "check_readable", lambda _: None)
    prompt, path = tiny.example_prompts[0], tmp_path / "v.mp4"
    for frames, needed in ((1, 1), (20, 21), (21, 21)):
        taken.clear()
        assert cli.main(["generate", prompt, "-o", str(path), "--start", "a.png", "--frames", str(frames)]) == 0
        assert len(taken) == needed
        assert "reading the start" in capsys.readouterr().err


def test_files_that_hold_no_pictures(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for path in (tmp_path / "text.png", tmp_path / "nothing.mp4"):
        for read in (check_readable, lambda path: list(read_frames(path, 16, 16, 16))):
            with pytest.raises(lolrt.Error, match=r"cannot read .* as an image or a video"):
                read(path)


def test_a_pipe_is_not_read_before_its_time(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_readable(tmp_path / "pipe")  # would wait forever for its writer


def test_a_video_that_was_written_is_read_back(tmp_path):
    frames = torch.arange(20, dtype=torch.uint8).mul(12)[:, None, None, None].expand(20, 64, 96, 3).contiguous()
    with lolrt.VideoWriter(tmp_path / "v.mp4", 64, 96, 16) as writer:
        writer.write(frames)
    read = torch.stack(list(read_frames(tmp_path / "v.mp4", 64, 96, 16)))
    assert read.shape == frames.shape
    assert (read.float() - frames.float()).abs().max() <= 6  # the loss of the codec
    assert len(list(read_frames(tmp_path / "v.mp4", 64, 96, 8))) == 10


@pytest.mark.whole
def test_a_stream_goes_on_from_its_own_video(tiny):
    """A video that it made, encoded again, is the start of another stream: the same pictures, and then the same scene."""
    made = list(islice(tiny.stream(tiny.example_prompts[0], seed=4), 4))
    frames = torch.cat([chunk.frames for chunk in made])[:31]
    latents = tiny.encode_video(iter(frames))
    assert latents.shape == (8, 24, 8, 12)  # 1 + 7 * 4 = 29 frames
    assert (latents - torch.cat([chunk.latents for chunk in made])[:8]).square().mean() < 0.1 * latents.var()
    chunks = list(islice(tiny.stream(tiny.example_prompts[0], seed=4, start=latents), 4))
    assert [len(chunk.frames) for chunk in chunks] == [5, 12, 12, 12]
    again = torch.cat([chunk.frames for chunk in chunks])
    assert (again[:29].float() - frames[:29].float()).square().mean().sqrt() < 12
    assert (again[29:].float().mean(0) - frames[-1].float()).square().mean().sqrt() < 40


def test_no_more_frames_are_taken_than_one_latent_needs(tiny):
    taken = []

    def frames():
        for i in range(10):
            taken.append(i)
            assert len(encoded) >= (i + 2) // 4 - 1
            yield torch.zeros(64, 96, 3, dtype=torch.uint8)

    encoded: list[torch.Tensor] = []
    encode = tiny.vae.encode
    tiny.vae.encode = lambda video, state: encoded.append(encode(video, state)) or encoded[-1]
    try:
        assert len(tiny.encode_video(frames())) == 3
    finally:
        del tiny.vae.encode
    assert [len(latents) for latents in encoded] == [1, 1, 1] and len(taken) == 10


def test_frames_that_cannot_be_a_start(tiny):
    with pytest.raises(lolrt.Error, match="no frame to start from"):
        tiny.encode_video([])
    with pytest.raises(lolrt.Error, match=r"frames are torch.uint8 \[64, 64, 3\]; expected a torch tensor, uint8 \[64, 96, 3\]"):
        tiny.encode_video([torch.zeros(64, 64, 3, dtype=torch.uint8)])


@pytest.mark.parametrize("budget", [1, 10_000])
def test_frames_go_through_the_vae_a_few_at_a_time_without_a_trace(budget, data, monkeypatch):
    vae = lolrt.load_vae(data / "Wan2.1_VAE_small.pth", lolrt.VAEConfig(dim=8), torch.float32)
    generator = torch.Generator().manual_seed(0)
    latents, video = torch.randn(3, 16, 4, 6, generator=generator), torch.rand(9, 3, 32, 48, generator=generator)
    decoded, encoded = vae.decode(latents, {}), vae.encode(video, {})
    monkeypatch.setattr(vae_stream, "FULL_SIZE_BYTES", budget)
    assert torch.equal(vae.decode(latents, {}), decoded)
    assert torch.equal(vae.encode(video, {}), encoded)
