"""Writes frames as PNG files, numbered from 1: `frames/%05d.png` is `frames/00001.png` and so on."""

from __future__ import annotations

import fcntl
import io
import os
import re
from pathlib import Path

from PIL import Image
from torch import Tensor

from lolrt.errors import OutputError
from lolrt.files import check_there, sync, write_whole

NUMBER = re.compile(r"%0?(\d*)d")


def check_pattern(path: Path) -> None:
    """Raises `lolrt.OutputError` unless the name has exactly one place for the frame number."""
    if len(NUMBER.findall(path.name)) != 1 or path.name.count("%") != 1:
        raise OutputError(f"the output is {str(path)!r}; expected a place for the frame's number, such as {path.stem or 'frame'}-%05d.png")


class PngFolder:
    """The folder of a sequence, locked while it grows. Every file is written atomically."""

    def __init__(self, path: Path) -> None:
        """Raises `lolrt.OutputError` if frames of this name exist already: a shorter new video would be mixed with the rest of the old
        one."""
        self.name, self.partial_path, self._path = str(path), path, path
        self._number = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = os.open(path.parent, os.O_RDONLY)
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._folder)
            raise OutputError(f"another run is writing into {path.parent}: wait until it has ended, or choose another folder") from None
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; choose another place with -o") from error
        before, after = NUMBER.split(path.name)[::2]
        taken = re.compile(rf"{re.escape(before)}\d+{re.escape(after)}")
        if any(taken.fullmatch(name) for name in os.listdir(path.parent)):
            os.close(self._folder)
            raise OutputError(f"{path.parent} has frames of this name already: remove them, or choose another with -o")

    @classmethod
    def check_free(cls, path: Path) -> None:
        """Raises `lolrt.OutputError` if the sequence cannot be started, as far as this can be known without writing."""
        if path.parent.exists():
            cls(path).leave(False)

    def check_there(self) -> None:
        check_there(self._folder, self._path.parent)

    def write(self, png: bytes, /) -> None:
        self._number += 1
        write_whole(self._path.with_name(self._path.name % self._number), png)

    def flush(self) -> None:
        pass  # nothing waits

    def cut(self) -> tuple[int, int]:
        raise OSError("no run goes on with a sequence")

    def finish(self) -> None:
        sync(self._path.parent)
        os.close(self._folder)

    def leave(self, has_pictures: bool) -> None:
        os.close(self._folder)


class PngEncoder:
    """Writes frames to files, in their own size. It has the methods of `Mp4Encoder`."""

    fragments = 0

    def __init__(self, folder: PngFolder) -> None:
        self.frames, self._folder = 0, folder

    def write(self, frames: Tensor) -> None:
        for image in frames.numpy():
            png = io.BytesIO()
            Image.fromarray(image).save(png, "png")
            self._folder.write(png.getvalue())
            self.frames += 1

    def end(self) -> None:
        pass  # nothing waits

    @property
    def has_pictures(self) -> bool:
        return self.frames > 0

    def abandon(self) -> None:
        pass
