"""Images: reads the pictures of a file with Pillow, and scales a picture to the size of a model's frames.

This module imports neither torch nor FFmpeg: a server decodes the images of its clients in a small separate process.
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

# The formats that Pillow may open. Others are left out because they run other programs (EPS), or are really videos (MPEG).
FORMATS = ("PNG", "JPEG", "WEBP", "HEIF", "AVIF", "GIF", "TIFF", "BMP", "PPM", "JPEG2000")
SIGNATURE_BYTES = 16

# The formats whose further pictures are an animation. In other formats they are thumbnails, pages or other views.
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
# How long an animation shows a picture whose time is 0; browsers do the same.
UNTIMED_SECONDS = 0.1

# The colour behind transparent pixels.
BACKGROUND = (255, 255, 255, 255)


@dataclass(frozen=True)
class Still:
    """A picture of an image file, and the time when it is shown: 0, except in an animation."""

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
    """The picture as 8-bit RGB, over the background colour."""
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; expected 8 or 16")
    if image.mode.startswith("I;16"):  # Pillow would clip these at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return image.convert("RGB")


def fit(image: Image.Image, pixel: float, height: int, width: int) -> np.ndarray:
    """The picture, scaled to cover height x width and cropped around its middle. pixel: the aspect ratio of its pixels, width over
    height."""
    scale = max(height / image.height, width / (image.width * pixel))
    tall, wide = min(height / scale, image.height), min(width / scale / pixel, image.width)
    left, top = (image.width - wide) / 2, (image.height - tall) / 2
    scaled = image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + tall))
    return np.array(scaled)
