"""An HLS video on the disk: a playlist, and a folder of segments beside it."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import BinaryIO

from lolrt.errors import OutputError
from lolrt.files import check_there, locked, new_file, remove_partials, write_whole
from lolrt.media.destination import Position, checksum
from lolrt.media.fragments import HEADER, box_kind, frames_in
from lolrt.media.hls import END, Playlist

INIT = "init.mp4"
SEGMENT = re.compile(r"(\d{8,})\.m4s")


class HlsFolder:
    """Writes `live.m3u8`, `live/init.mp4`, `live/00000001.m4s` and so on, one fragment per segment. A player never sees a playlist that
    names a file that does not exist yet.

    The init segment is locked while the video grows. Every other file is replaced in one step, so a web server never serves an incomplete
    file.
    """

    def __init__(self, path: Path, fps: int, dvr_seconds: float | None, resume: Position | None) -> None:
        """path: the playlist. fps: frames per second; a segment has at most so many frames. The others are those of `Playlist` and
        `VideoWriter`. Raises `lolrt.OutputError`."""
        self.name, self.partial_path, self._fps = str(path), path, fps
        self._folder = path.with_suffix("")
        self._playlist = Playlist(f"{self._folder.name}/{INIT}", lambda number: f"{self._folder.name}/{number:08d}.m4s", 1, dvr_seconds)
        self._number = resume.fragments if resume else 0
        self._begun = resume is not None
        self._header = self._head = b""
        try:
            self._init = self._open() if resume is None else self._reopen(resume)
        except OSError as error:
            doing, do = ("go on with", "the earlier run wrote it there") if resume else ("write", "choose another place with -o")
            raise OutputError(f"cannot {doing} {path}: {error.strerror}; {do}") from error

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.m4s"

    @staticmethod
    def _is_whole(playlist: Path) -> bool:
        return playlist.is_file() and playlist.read_bytes().endswith(f"{END}\n".encode())

    @classmethod
    def check_free(cls, path: Path) -> None:
        """Raises `lolrt.OutputError` where the video cannot be begun, as far as that can be seen without writing anything."""
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; choose another place with -o")
        if (path.with_suffix("") / INIT).exists():
            cls._claim(path).close()

    @classmethod
    def _claim(cls, path: Path) -> BinaryIO:
        """Locks the init segment of a new video, or of a complete one, which the new one is to replace."""
        init = path.with_suffix("") / INIT
        return locked(init, create=True) if cls._is_whole(path) else new_file(init)

    def _open(self) -> BinaryIO:
        if self.partial_path.is_dir():
            raise IsADirectoryError(21, "it is a folder")
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._claim(self.partial_path)

    def _begin(self) -> None:
        """Writes the init segment of a new video. Only now, with the first segment to follow, a complete video of the same name goes."""
        if self._is_whole(self.partial_path):
            self.partial_path.unlink()
            self._remove_segments(self._there())
        self._init.truncate(0)
        self._init.write(self._header)
        self._init.flush()
        self._begun = True

    def _reopen(self, position: Position) -> BinaryIO:
        """Opens the video of an earlier run, whether that is complete or not, and truncates it at the cut."""
        with contextlib.ExitStack() as on_error:
            init = on_error.enter_context(locked(self._folder / INIT))
            there, last = self._there(), self._path(position.fragments)
            if position.fragments not in there or last.stat().st_size != position.bytes:
                raise OutputError(f"{last}, the last segment before the snapshot, is gone or damaged, so {self.name} cannot go on")
            if checksum(last, position.bytes) != position.checksum:
                raise OutputError(f"{self.name} is not the video that the snapshot goes on with: another run has written it since")
            expired = [number for number in there if number > position.fragments]
            for number in there[: len(there) - len(expired)]:
                expired += self._playlist.append(number, frames_in(self._path(number).read_bytes()) / self._fps)
            remove_partials(self.partial_path)
            self._write_playlist()
            self._remove_segments(expired)
            on_error.pop_all()
            return init

    def _there(self) -> list[int]:
        """The numbers of the segments in the folder."""
        found = (SEGMENT.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _remove_segments(self, numbers: list[int]) -> None:
        for number in numbers:
            self._path(number).unlink(missing_ok=True)
            remove_partials(self._path(number))

    def check_there(self) -> None:
        check_there(self._init.fileno(), self._folder / INIT)

    def write(self, box: bytes, /) -> None:
        kind = box_kind(box)
        if kind in HEADER:
            self._header += box
        elif kind == b"moof":
            self._head = box
        else:
            if not self._begun:
                self._begin()
            self._number += 1
            write_whole(self._path(self._number), self._head + box)
            expired = self._playlist.append(self._number, frames_in(self._head) / self._fps)
            self._write_playlist()
            self._remove_segments(expired)

    def _write_playlist(self) -> None:
        write_whole(self.partial_path, os.fsencode(str(self._playlist)))  # it has the folder's name, which may be any bytes

    def flush(self) -> None:
        pass  # nothing is buffered

    def cut(self) -> tuple[int, int]:
        os.fsync(self._init.fileno())
        if not self._number:
            return 0, 0
        size = self._path(self._number).stat().st_size
        return size, checksum(self._path(self._number), size)

    def finish(self) -> None:
        if not self._begun:  # a video of no frames
            self._begin()
        self._playlist.ended = True
        os.fsync(self._init.fileno())
        self._write_playlist()
        self._init.close()  # locked until the video is complete

    def leave(self, has_pictures: bool) -> None:
        with self._init:
            if os.fstat(self._init.fileno()).st_size:  # of this video, or of a complete one that it has not replaced
                return
            with contextlib.suppress(OSError):  # the folder is gone, or holds files that are not ours
                self.check_there()
                (self._folder / INIT).unlink()
                self._folder.rmdir()
