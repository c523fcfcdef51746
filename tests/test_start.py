"""Images and videos to go on from: from the file to the latents, and from the latents to the stream."""

from __future__ import annotations

import os
import struct
from itertools import islice

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

import lolrt
from lolrt.media.reader import _at_rate, check_readable, read_frames
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
    image[:, :60, 0] = 255  # cropped away, but for a few columns
    image[:, 60:140, 1] = 255
    image[:, 140:, 2] = 255
    write_image(tmp_path / "wide.png", image)
    (frame,) = read_frames(tmp_path / "wide.png", 80, 160, 16)
    assert frame.shape == (80, 160, 3) and frame.dtype == torch.uint8
    assert (frame[:, 2:-2].float().mean((0, 1)) - torch.tensor([0.0, 255.0, 0.0])).abs().max() < 6
    (frame,) = read_frames(tmp_path / "wide.png", 40, 200, 16)
    assert np.array_equal(frame.numpy(), image)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photo_is_turned_as_its_exif_says(orientation, tmp_path):
    """As Pillow turns it; each quarter of the picture is of another grey."""
    picture = Image.fromarray(np.kron([[30, 100], [170, 240]], np.ones((32, 64))).astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "photo.jpg"
    picture.save(path, exif=exif, quality=95)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    (frame,) = read_frames(path, *expected.shape[:2], 16)
    assert np.abs(frame.numpy().astype(int) - expected).mean() < 2
    (narrow,) = read_frames(path, 64, 32, 16)  # cut around the middle of what is shown
    assert np.abs(narrow[::16, ::8].float().mean(2).numpy() - expected[:: len(expected) // 4, :: expected.shape[1] // 4, 0]).max() < 40


def test_a_phones_video_is_turned_as_it_says(tmp_path):
    """Filmed upright: its pictures lie on their left side, and the file's matrix (ISO 14496-12) turns them clockwise."""
    frames = torch.zeros(8, 256, 384, 3, dtype=torch.uint8)
    frames[:, :, 192:] = 255
    with lolrt.VideoWriter(tmp_path / "v.mp4", 256, 384, 16) as writer:
        writer.write(frames)
    content = bytearray((tmp_path / "v.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40  # in version 0 of the box
    one, clockwise = 1 << 16, struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 256 << 16, 0, 1 << 30)
    assert content[matrix : matrix + 36] == struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = clockwise
    (tmp_path / "v.mp4").write_bytes(content)
    read = list(read_frames(tmp_path / "v.mp4", 384, 256, 16))
    assert len(read) == 8 and all(frame[:180].max() < 20 and frame[204:].min() > 235 for frame in read)


def test_files_that_hold_no_pictures(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for path in (tmp_path / "text.png", tmp_path / "nothing.mp4"):
        for read in (check_readable, lambda path: list(read_frames(path, 16, 16, 16))):
            with pytest.raises(lolrt.Error, match=r"cannot read .* as an image or a video"):
                read(path)


def test_a_pipe_is_not_read_before_its_time(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check_readable(tmp_path / "pipe")  # would wait for ever for its writer


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
    """What it made, encoded again, is the start of another stream: the same pictures, and then the same scene."""
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
    with pytest.raises(lolrt.Error, match="frames of 64 x 64 pixels; expected 64 x 96"):
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
