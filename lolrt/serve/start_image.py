"""Decodes the image that a session starts from, in a process of its own with few rights: image decoders are a common target of attacks.

    python -m lolrt.serve.start_image HEIGHT WIDTH < image > pixels

The process has no torch, may write no files, has limits on memory and time, and gets none of the server's data.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import os
import resource
import sys
from typing import TYPE_CHECKING

from lolrt.errors import printable

if TYPE_CHECKING:
    from torch import Tensor

    from lolrt.pipeline import Pipeline

SECONDS = 10
MEMORY = 1 << 30
# The most pixels of an image, and the most decoders at the same time.
MOST_PIXELS = 50_000_000
MOST_AT_ONCE = 2
# The environment variables that the process gets from the server.
ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")

_room = asyncio.Semaphore(MOST_AT_ONCE)


async def decode(text: str, height: int, width: int) -> bytes:
    """The pixels of an image given in base64 or as a data URL, scaled to cover height x width: RGB, one byte each, row by row.

    Raises `lolrt.serve.errors.RequestError` if it is not an image, or takes too much memory or time.
    """
    from lolrt.serve.errors import RequestError

    try:
        data = base64.b64decode(text.partition("base64,")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError("start: expected an image in base64, or a data: URL of one", "bad_image") from None
    async with _room:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "lolrt.serve.start_image", str(height), str(width),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        )  # fmt: skip
        try:
            pixels, told = await asyncio.wait_for(process.communicate(data), SECONDS)
        except asyncio.TimeoutError:
            raise RequestError(f"start: the image took more than {SECONDS} s to decode", "bad_image") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode or len(pixels) != 3 * height * width:
        why = told.decode(errors="replace").strip().splitlines()[-1:] if process.returncode == 2 else []
        raise RequestError(f"start: the image cannot be decoded{f' ({printable(why[0])[:200]})' if why else ''}", "bad_image")
    return pixels


async def start_of(text: str | None, pipe: Pipeline) -> Tensor | None:
    """The first frame of a session, uint8 [height, width, 3], from the text of a request. Raises the errors of `decode`."""
    if text is None:
        return None
    import torch

    pixels = await decode(text, pipe.height, pipe.width)
    return torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(pipe.height, pipe.width, 3)


def _limit() -> None:
    for name, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(name, (most, most))


def main(height: int, width: int) -> int:
    _limit()
    from PIL import Image

    from lolrt.media.stills import SIGNATURE_BYTES, fit, is_image, opaque, stills

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow raises above twice this number
    data = sys.stdin.buffer.read()
    try:
        if not is_image(data[:SIGNATURE_BYTES]):
            raise ValueError("its format is not one that is read")
        picture = next(stills(io.BytesIO(data)))
        sys.stdout.buffer.write(fit(opaque(picture.image), 1.0, height, width).tobytes())
    except Exception as error:
        print(str(error) or type(error).__name__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
