"""Images whose stored pixels differ from what is shown: colours of an ICC profile, and photos in tiles."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lolrt.media.reader import read_frames

# Columns: red, green and blue of Display P3 and of sRGB in CIE XYZ, adapted to D50 as ICC profiles have them.
P3 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
GAMMA = 2.2


def profile(primaries: np.ndarray) -> bytes:
    """A matrix profile of version 2 (ICC.1:2001-04)."""

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(GAMMA * 256)) + b"\0\0"
    white = np.array([0.9642, 1.0, 0.8249])
    text = b"a profile\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0" + text,
        b"wtpt": xyz(white),
    }
    tags |= {name + b"XYZ": xyz(column) for name, column in zip((b"r", b"g", b"b"), primaries.T, strict=True)}
    tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    table, data, at = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">2I", at + len(data), len(content))
        data += content
    head = struct.pack(">I4sI4s4s4s12s4s", at + len(data), b"", 0x02100000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp")
    head += bytes(28) + xyz(white)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def shown_in_srgb(pixels: np.ndarray) -> np.ndarray:
    """Pixels of P3 converted to sRGB, by the definitions of both."""
    linear = (pixels / 255) ** GAMMA @ (np.linalg.inv(SRGB) @ P3).T
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


PIXELS = np.array([(220, 40, 60), (60, 200, 80), (70, 60, 210), (200, 190, 60), (128, 128, 128), (240, 240, 240)], np.uint8)
STRIPES = PIXELS[None].repeat(16, 1).repeat(64, 0)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tiff", "heic"])
def test_colours_are_those_of_the_profile(kind: str, tmp_path: Path) -> None:
    Image.fromarray(STRIPES).save(tmp_path / f"photo.{kind}", quality=100, icc_profile=profile(P3))
    (frame,) = read_frames(tmp_path / f"photo.{kind}", 64, 96, 16)
    seen, expected = frame.numpy()[32, 8::16], shown_in_srgb(PIXELS)
    assert np.abs(seen - expected).max() < 6
    assert np.abs(expected - PIXELS).max() > 20, "they are others than the numbers in the file"


def test_a_transparent_picture_has_its_profile_too(tmp_path: Path) -> None:
    alpha = np.full((64, 96, 1), 128, np.uint8)
    Image.fromarray(np.concatenate([STRIPES, alpha], 2)).save(tmp_path / "photo.png", icc_profile=profile(P3))
    (frame,) = read_frames(tmp_path / "photo.png", 64, 96, 16)
    assert np.abs(frame.numpy()[32, 8::16] - (shown_in_srgb(PIXELS) * 128 + 255 * 127) / 255).max() < 4


@pytest.mark.parametrize("broken", [b"no profile", profile(P3)[:200], b""])
def test_a_profile_that_cannot_be_read_is_left_out(broken: bytes, tmp_path: Path) -> None:
    """Browsers ignore it too."""
    Image.fromarray(STRIPES).save(tmp_path / "photo.png", icc_profile=broken)
    (frame,) = read_frames(tmp_path / "photo.png", 64, 96, 16)
    assert np.array_equal(frame.numpy()[32, 8::16], PIXELS)


def boxes(data: bytes) -> dict[bytes, bytes]:
    """The contents of consecutive boxes, by their types (ISO/IEC 14496-12)."""
    found, at = {}, 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        found.setdefault(kind, data[at + 8 : at + size])
        at += size
    return found


def box(kind: bytes, *contents: bytes, version: int | None = None) -> bytes:
    body = (b"" if version is None else struct.pack(">I", version << 24)) + b"".join(contents)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def in_tiles(rows: int, columns: int, tiles: list[bytes], configuration: bytes, side: int) -> bytes:
    """A HEIC file with one picture, a grid of coded ones of side x side pixels (ISO/IEC 23008-12, 6.6.2.3)."""
    count, grid = len(tiles), len(tiles) + 1
    kinds = [(item, b"hvc1") for item in range(1, grid)] + [(grid, b"grid")]
    entries = [box(b"infe", struct.pack(">HH4s", item, 0, kind), b"\0", version=2) for item, kind in kinds]
    properties = box(b"ipco", box(b"hvcC", configuration), *(
        box(b"ispe", struct.pack(">II", wide, tall), version=0) for wide, tall in ((side, side), (columns * side, rows * side))
    ))  # fmt: skip
    uses = [struct.pack(">HBBB", item, 2, 0x81, 2) for item in range(1, grid)] + [struct.pack(">HBB", grid, 1, 3)]
    layout = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, columns * side, rows * side)

    def meta(start: int) -> bytes:
        places, at = [], start
        for item, data in zip(range(1, grid + 1), [*tiles, layout], strict=True):
            places.append(struct.pack(">HHHII", item, 0, 1, at, len(data)))
            at += len(data)
        return box(
            b"meta",
            box(b"hdlr", struct.pack(">I4s", 0, b"pict"), bytes(13), version=0),
            box(b"pitm", struct.pack(">H", grid), version=0),
            box(b"iloc", b"\x44\x00", struct.pack(">H", grid), *places, version=0),
            box(b"iinf", struct.pack(">H", grid), *entries, version=0),
            box(b"iref", box(b"dimg", struct.pack(f">HH{count}H", grid, count, *range(1, grid))), version=0),
            box(b"iprp", properties, box(b"ipma", struct.pack(">I", grid), *uses, version=0)),
            version=0,
        )

    brand = box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    before = len(brand) + len(meta(0)) + 8
    return brand + meta(before) + box(b"mdat", *tiles, layout)


def test_a_photo_in_tiles_is_read_whole(tmp_path: Path) -> None:
    colours, side, tiles, configurations = (
        [(200, 30, 30), (30, 160, 30), (30, 30, 200), (220, 220, 40), (20, 20, 20), (240, 240, 240)],
        64,
        [],
        [],
    )
    for colour in colours:
        Image.new("RGB", (side, side), colour).save(tmp_path / "tile.heic", quality=95)
        content = (tmp_path / "tile.heic").read_bytes()
        inside = boxes(boxes(content)[b"meta"][4:])
        configurations.append(boxes(boxes(inside[b"iprp"])[b"ipco"])[b"hvcC"])
        tiles.append(boxes(content)[b"mdat"])
    assert len(set(configurations)) == 1
    (tmp_path / "photo.heic").write_bytes(in_tiles(2, 3, tiles, configurations[0], side))
    (frame,) = read_frames(tmp_path / "photo.heic", 2 * side, 3 * side, 16)
    assert np.abs(frame.numpy()[side // 2 :: side, side // 2 :: side].reshape(-1, 3).astype(int) - colours).max() < 8
