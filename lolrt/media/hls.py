"""HTTP Live Streaming: the playlist of a growing video. Source: RFC 8216.

An init segment (ftyp, moov) and segments of one or more fragments (moof, mdat), each of which begins with a key frame.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lolrt.errors import Error

# A playlist that drops segments at its beginning keeps at least so many target durations (RFC 8216, 6.2.2).
LEAST_TARGETS = 3
MEDIA_TYPE = "application/vnd.apple.mpegurl"
END = "#EXT-X-ENDLIST"


@dataclass(frozen=True)
class Segment:
    number: int
    seconds: float


class Playlist:
    """The text of a media playlist. Segments are added at the end and, if it covers a limited time, removed at the beginning."""

    def __init__(self, init: str, name: Callable[[int], str], target_seconds: float, dvr_seconds: float | None = None) -> None:
        """init: URI of the init segment. name: returns the URI of a segment by its number. target_seconds: the longest length of a
        segment. dvr_seconds: how far a player can go back, at least; by default to the beginning. Raises `lolrt.Error` if that is too
        short."""
        self._init, self._name, self._target = init, name, math.ceil(target_seconds)
        if dvr_seconds is not None and not dvr_seconds >= LEAST_TARGETS * self._target:
            raise Error(f"a live playlist of {dvr_seconds:g} s is too short to play; expected at least {LEAST_TARGETS * self._target} s")
        self._dvr_seconds = dvr_seconds
        self._segments: deque[Segment] = deque()
        self._seconds = 0.0
        self._leaving: deque[tuple[Segment, float]] = deque()
        """The segments that are no longer listed, each with the seconds of video for which it stays available."""
        self.ended = False

    def append(self, number: int, seconds: float) -> list[int]:
        """Adds the next segment of the video. Returns the numbers of the segments that can be deleted. A segment that is no longer listed
        stays available for its own length plus that of the playlist, for players that have an old playlist (RFC 8216, 6.2.2)."""
        segment = Segment(number, round(seconds, 6))
        self._leaving = deque((gone, left - segment.seconds) for gone, left in self._leaving)
        self._segments.append(segment)
        self._seconds += segment.seconds
        while self._dvr_seconds is not None and self._seconds - self._segments[0].seconds >= self._dvr_seconds:
            gone = self._segments.popleft()
            self._leaving.append((gone, gone.seconds + self._seconds))
            self._seconds -= gone.seconds
        expired = []
        while self._leaving and self._leaving[0][1] <= 0:
            expired.append(self._leaving.popleft()[0].number)
        return expired

    def __str__(self) -> str:
        first = self._segments[0].number if self._segments else 1
        lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-INDEPENDENT-SEGMENTS", f"#EXT-X-TARGETDURATION:{self._target}"]
        lines += [f"#EXT-X-MEDIA-SEQUENCE:{first}", *(["#EXT-X-PLAYLIST-TYPE:EVENT"] if self._dvr_seconds is None else [])]
        lines += [f'#EXT-X-MAP:URI="{self._init}"']
        for segment in self._segments:
            lines += [f"#EXTINF:{segment.seconds:.6f},", self._name(segment.number)]
        return "\n".join([*lines, *([END] if self.ended else []), ""])
