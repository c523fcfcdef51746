"""Files of latents: those of a video, to start another video from or to decode again.

A .safetensors file with one tensor, `latents`, float32 [frames, channels, height, width], normalised. Its header has spare room, and is
rewritten as frames come.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from lolrt.checkpoint.safetensors_file import read_safetensors
from lolrt.errors import Error, OutputError
from lolrt.files import check_there

NAME = "latents"
HEADER_BYTES = 256


def is_latents(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".safetensors"


def read_latents(path: str | Path, shape: tuple[int, int, int]) -> Tensor:
    """The latents of a file that `LatentsFile` wrote. shape: channels, height and width of a latent frame. Raises `lolrt.CheckpointError`
    if the file is damaged, and `lolrt.Error` if it has no latents of this shape."""
    found = read_safetensors(Path(path)).get(NAME)
    if found is None or found.ndim != 4 or not found.is_floating_point() or not len(found):
        raise Error(f"{path} has no latents; expected a file that lolrt generate --latents wrote")
    if tuple(found.shape[1:]) != shape:
        raise Error(f"{path} has latents of {list(found.shape[1:])}; the model's are {list(shape)} (channels, height, width)")
    return found.float().clone()


class LatentsFile:
    """A context manager that writes latents as they come. Raises `lolrt.OutputError`."""

    def __init__(self, path: Path | None, resume_bytes: int = 0) -> None:
        """path: the file; None writes nothing. resume_bytes: continues the file of an earlier run after so many bytes."""
        self.path, self._resume_bytes = path, resume_bytes
        self._frame: tuple[int, ...] | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> LatentsFile:
        if self.path is not None:
            try:
                self._file = open(self.path, "r+b" if self._resume_bytes else "wb")
                if self._resume_bytes:
                    if self.path.stat().st_size < self._resume_bytes:
                        raise OutputError(f"{self.path} has fewer than the {self._resume_bytes} bytes from before the snapshot")
                    self._file.truncate(self._resume_bytes)
            except OSError as error:
                raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except OSError as failure:
            if error is None:
                raise self._failure(failure) from failure

    def write(self, latents: Tensor) -> None:
        """Appends latents [n, channels, height, width]."""
        if self._file is None or self.path is None:
            return
        self._frame = tuple(latents.shape[1:])
        try:
            check_there(self._file.fileno(), self.path)
            self._file.seek(max(HEADER_BYTES, self._file.seek(0, 2)))
            self._file.write(latents.to("cpu", torch.float32).contiguous().numpy().data)
            end = self._file.tell()
            self._file.seek(0)
            self._file.write(self._header((end - HEADER_BYTES) // (4 * torch.Size(self._frame).numel())))
            self._file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.close()
            raise self._failure(error) from error

    def size(self) -> int:
        """The bytes so far."""
        return self._file.seek(0, 2) if self._file is not None else 0

    def _header(self, frames: int) -> bytes:
        shape = [frames, *(self._frame or ())]
        described = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * torch.Size(shape).numel()]}
        text = json.dumps({NAME: described}).encode()
        return (HEADER_BYTES - 8).to_bytes(8, "little") + text.ljust(HEADER_BYTES - 8)

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"cannot go on writing {self.path}: {error.strerror}")
