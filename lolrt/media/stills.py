"""Images: the pictures of a file by Pillow, and how one is brought to the size of a model's frames.

What is here is imported without torch and without FFmpeg: a server decodes what clients send in a process of its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, ImageOps

pillow_heif.register_heif_opener()

# What Pillow is asked to open. The formats that it leaves out run other programs (EPS), or are videos in truth (MPEG).
FORMATS = ("PNG", "JPEG", "WEBP", "HEIF", "AVIF", "GIF", "TIFF", "BMP", "PPM", "JPEG2000")
SIGNATURE_BYTES = 16

# Formats whose later pictures are an animation's; those of others are thumbnails, pages or another view.
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
# How long a picture of an animation is shown that says 0: as browsers do.
UNTIMED_SECONDS = 0.1

# What is seen through transparent pixels.
BACKGROUND = (255, 255, 255, 255)


@dataclass(frozen=True)
class Still:
    """A picture of an image file, and when it is shown: at 0, but for those of an animation."""

    time: float
    image: Image.Image


def is_image(begin: bytes) -> bool:
    """Whether a file that begins with these bytes, `SIGNATURE_BYTES` of them, is one of `FORMATS`."""
    Image.init()
    accepts = [Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN]
    return any(accept is not None and accept(begin) for accept in accepts)


def stills(file: BinaryIO) -> Iterator[Still]:
    with Image.open(file, formats=FORMATS) as image:
        animated = image.format in ANIMATED and getattr(image, "is_animated", False)
        time = 0.0
        for number in range(image.n_frames if animated else 1):  # type: ignore[attr-defined]
            if animated:
                image.seek(number)
            image.load()
            yield Still(time, in_srgb(ImageOps.exif_transpose(image), image.info.get("icc_profile")))
            time += image.info.get("duration", 0) / 1000 or UNTIMED_SECONDS


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture whose colours are those of an ICC profile, such as Display P3 of phones, in sRGB; as it is where that cannot be read, or
    has other channels than the picture."""
    plain = {"RGBA": "RGB", "P": "RGB", "PA": "RGB", "LA": "L"}.get(image.mode, image.mode)
    if profile is None or plain not in ("RGB", "L", "CMYK"):
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    try:
        given, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        shown = ImageCms.profileToProfile(image.convert(plain), given, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image
    assert shown is not None
    if alpha is not None:
        shown.putalpha(alpha)
    return shown


def opaque(image: Image.Image) -> Image.Image:
    """As 8-bit RGB."""
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; expected 8 or 16")
    if image.mode.startswith("I;16"):  # which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return image.convert("RGB")


def fit(image: Image.Image, pixel: float, height: int, width: int) -> np.ndarray:
    """The middle of a picture that has the shape of height x width; pixel: the width of one of its pixels over its height."""
    scale = max(height / image.height, width / (image.width * pixel))
    tall, wide = min(height / scale, image.height), min(width / scale / pixel, image.width)
    left, top = (image.width - wide) / 2, (image.height - tall) / 2
    scaled = image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + tall))
    return np.array(scaled)
