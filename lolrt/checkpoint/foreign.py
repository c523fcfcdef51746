"""What a file is that holds no weights for this runtime, said from its first bytes: a file that is no checkpoint is not a damaged one."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from lolrt.errors import CheckpointError

# First bytes, what they are of, and what to do.
KINDS = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer, which stands for the file itself; fetch that with git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, which is not read here; take the model's safetensors or .pt files"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a pickle of before torch 1.6, which may run code; where you trust it, save it anew"),
    (b"\x1f\x8b", "compressed with gzip; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
)  # fmt: skip
PAGES = (b"<!doctype html", b"<html", b"<?xml")
LONGEST = 256


def open_file(path: Path) -> BinaryIO:
    """A file of weights, to be read. A pipe does not keep it waiting, and a device is not read to no end.

    Raises `OSError` where it cannot be opened, and `lolrt.CheckpointError` where it is no regular file, or another kind of file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CheckpointError(f"{path} is a device or a pipe; expected a file of weights")
        head = file.read(LONGEST)
        if kind := kind_of(head):
            raise CheckpointError(f"{path} is {kind}")
        # Both formats have bytes that are no text near their beginning: the upper half of a header's length, a record's.
        if len(head) >= 8 and all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
            raise CheckpointError(f"{path} is text, which begins with {head.decode()[:60]!r}; expected weights")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def kind_of(head: bytes) -> str | None:
    """What begins with these bytes, and what to do; None where it is nothing that is known here."""
    for first, kind in KINDS:
        if head.startswith(first):
            return kind
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        return "a web page (HTML or XML) in place of the file: its address wants a login or a licence accepted, or is of the page about it"
    return None
