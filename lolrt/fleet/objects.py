"""Stores that replicas share: a folder that all can reach, or what fsspec knows by a URL, such as s3://bucket/folder."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from pathlib import Path
from typing import Any, Protocol

from lolrt.errors import Error
from lolrt.files import sync
from lolrt.fleet.fencing import Objects

# Where sessions are, in the place that users name. What else is there is not looked at: it is not a fleet's, and is not to be removed.
SESSIONS = "fleet"
# Where files are written before they get their names.
SCRATCH = ".scratch"


class Store(Objects, Protocol):
    """Files that more than one process uses. Every write is atomic, and is not lost once it has returned. All raise OSError."""

    def put(self, path: Path, name: str) -> None:
        """Writes the file at `path`."""

    def get(self, name: str, path: Path) -> None:
        """Copies a file to `path`. Raises FileNotFoundError."""


def open_store(url: str) -> Store:
    """The store at a URL, or in a folder, in `SESSIONS` there. Raises `lolrt.Error`."""
    protocol, mark, rest = url.partition("://")
    try:
        if mark and protocol != "file":
            return FsspecStore(f"{url.rstrip('/')}/{SESSIONS}")
        return FolderStore(Path(rest if mark else url) / SESSIONS)
    except (ImportError, ValueError, OSError) as error:
        raise Error(f"cannot keep sessions in {url}: {error}; choose another place with --state") from error


class FolderStore:
    """A folder of a POSIX file system."""

    def __init__(self, root: Path) -> None:
        self._root, self._scratch = root, root / SCRATCH
        self._scratch.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: bytes) -> None:
        with self._written(name, content) as (scratch, path):
            scratch.replace(path)
            sync(path.parent)

    @contextlib.contextmanager
    def _written(self, name: str, content: bytes | Path) -> Any:
        """A file with this content that has no name yet, and the path that it is to have."""
        scratch, path = self._scratch / uuid.uuid4().hex, self._root / name
        try:
            if isinstance(content, Path):
                shutil.copyfile(content, scratch)
            else:
                scratch.write_bytes(content)
            sync(scratch)
            path.parent.mkdir(parents=True, exist_ok=True)
            yield scratch, path
        finally:
            scratch.unlink(missing_ok=True)

    def put(self, path: Path, name: str) -> None:
        with self._written(name, path) as (scratch, target):
            scratch.replace(target)
            sync(target.parent)

    def get(self, name: str, path: Path) -> None:
        shutil.copyfile(self._root / name, path)

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(path.name for path in (self._root / folder).iterdir() if path.name != SCRATCH)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def copy(self, source: str, target: str) -> None:
        self.put(self._root / source, target)

    def remove(self, name: str) -> None:
        path = self._root / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            while (path := path.parent) != self._root:
                path.rmdir()


class FsspecStore:
    """What fsspec opens: an object store. A file system with folders would keep empty ones."""

    def __init__(self, url: str) -> None:
        """Raises ImportError, ValueError or OSError if fsspec cannot open it, or it cannot be written."""
        import fsspec

        self._files: Any
        self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        probe = f"{SCRATCH}/{uuid.uuid4().hex}"
        try:
            self.write(probe, b"")
        finally:
            self.remove(probe)

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """What a method of the file system returns. Whatever it raises is an OSError: libraries of some stores have errors of their own."""
        try:
            return getattr(self._files, method)(*arguments, **options)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def write(self, name: str, content: bytes) -> None:
        self._ask("pipe_file", self._path(name), content)

    def put(self, path: Path, name: str) -> None:
        self._ask("put_file", str(path), self._path(name))

    def get(self, name: str, path: Path) -> None:
        self._ask("get_file", self._path(name), str(path))

    def read(self, name: str) -> bytes:
        return self._ask("cat_file", self._path(name))

    def names(self, folder: str) -> list[str]:
        try:
            names = {path.rstrip("/").rpartition("/")[2] for path in self._ask("ls", self._path(folder), detail=False)}
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(names - {SCRATCH})

    def copy(self, source: str, target: str) -> None:
        self._ask("cp_file", self._path(source), self._path(target))

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask("rm", self._path(name), recursive=True)
