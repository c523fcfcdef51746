"""Atomic writing: a file is complete or does not exist, even if a process is killed while it writes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lolrt.errors import OutputError


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A context manager with a temporary name to write to, which is then renamed to `path`. Other processes may read and write the same
    file.

    File and folder are synced, so that after a power cut either the old file or the new one exists. Creates the parent folder. Raises
    `lolrt.OutputError`; the old file is then unchanged.
    """
    partial = own_partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {path} ({error}); choose another place") from error
        raise


def own_partial(path: Path) -> Path:
    """The temporary name under which this process writes a file or a folder."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


def remove_partials(path: Path) -> None:
    """Removes the leftovers of processes that were killed while they wrote `path`, a file or a folder. Leaves those of running
    processes."""
    with contextlib.suppress(OSError):
        for partial in list(path.parent.glob(f"{glob.escape(path.name)}.*.partial")):
            pid = partial.name.removeprefix(f"{path.name}.").removesuffix(".partial")
            if not pid.isdecimal() or _runs(int(pid)):
                continue
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file atomically; see `replaced`. Raises `lolrt.OutputError`."""
    with replaced(path) as partial:
        partial.write_bytes(content)


class LeftOverError(OutputError):
    """What an earlier run had written is in the way."""


def new_file(path: Path) -> BinaryIO:
    """Creates a file for writing, and locks it. Raises `lolrt.OutputError` if another process is writing it, `LeftOverError` if it has left
    data in it, and OSError."""
    file = locked(path, create=True)
    if os.fstat(file.fileno()).st_size:
        file.close()
        raise LeftOverError(f"{path} is what an earlier run had written when it was stopped: move it or remove it, or choose another name")
    return file


def locked(path: Path, create: bool = False) -> BinaryIO:
    """Opens a file without changing it, and locks it until it is closed. Raises `lolrt.OutputError` if another process has locked it, and
    OSError."""
    with contextlib.ExitStack() as on_error:
        file = on_error.enter_context(open(path, "r+b", opener=lambda name, flags: os.open(name, flags | create * os.O_CREAT, 0o666)))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            check_there(file.fileno(), path)  # if not, the other process has just finished and renamed it
        except (BlockingIOError, FileNotFoundError):
            raise OutputError(f"another run is writing {path}: wait until it has ended, or choose another name with -o") from None
        on_error.pop_all()
        return file


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A new temporary folder. Raises `lolrt.OutputError` if there is no place for one."""
    try:
        return tempfile.TemporaryDirectory(prefix="lolrt-")
    except OSError as error:
        raise OutputError(f"there is no temporary folder ({error.strerror}): set TMPDIR to a folder that can be written") from error


def check_there(descriptor: int, path: Path) -> None:
    """Raises FileNotFoundError if an open file or folder does not have this name any more: it was removed or renamed. Writing to it would
    go on without an error."""
    if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
