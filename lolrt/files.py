"""Files that are whole or not there at all, whoever is stopped while writing them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lolrt.errors import OutputError


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under a name of this process's own, and then gives it `path`: others may be reading and writing the same one.

    Makes the folder that it is in. Raises `lolrt.OutputError`.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise OutputError(f"cannot write {path} ({error}); choose another place") from error
