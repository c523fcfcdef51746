"""Recognises other kinds of files by their first bytes, so that an error says what the file is, instead of calling it a damaged
checkpoint."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from lolrt.errors import CheckpointError

# The first bytes of a kind of file, its name, and what the user should do.
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
    """Opens a file of weights for reading. It does not wait for a pipe, and does not read an endless device.

    Raises `OSError` if it cannot be opened, and `lolrt.CheckpointError` if it is not a regular file, or is another kind of file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CheckpointError(f"{path} is a device or a pipe; expected a file of weights")
        head = file.read(LONGEST)
        if kind := kind_of(head):
            raise CheckpointError(f"{path} is {kind}")
        # Files of both formats have bytes near their beginning that are not text: in the length of the header, or of a record.
        if len(head) >= 8 and all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
            raise CheckpointError(f"{path} is text, which begins with {head.decode()[:60]!r}; expected weights")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def kind_of(head: bytes) -> str | None:
    """The kind of a file that begins with these bytes, and what the user should do; None if it is not known."""
    for first, kind in KINDS:
        if head.startswith(first):
            return kind
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        return "a web page (HTML or XML) in place of the file: its address wants a login or a licence accepted, or is of the page about it"
    return None
