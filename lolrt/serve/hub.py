"""The newest chunks of a session, encoded once, and its viewers.

A viewer is a cursor: the sequence number of its next chunk. So viewers cost no memory, and a slow viewer delays no other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lolrt.media.hls import Playlist


@dataclass(frozen=True)
class Fragment:
    """An encoded chunk, as it is sent to viewers."""

    sequence: int
    about: dict[str, Any]
    """Its description, for JSON."""
    data: bytes
    """Fragmented mp4, without the init segment. It needs no other fragment."""

    @cached_property
    def text(self) -> str:
        """The message that is sent before the bytes; one string for all viewers."""
        return json.dumps({"type": "video.chunk_metadata", "sequence": self.sequence, "byte_length": len(self.data), **self.about})


@dataclass(frozen=True)
class Gap:
    """The viewer missed the chunks `first` to `end` - 1, and they are no longer held."""

    first: int
    end: int


@dataclass(frozen=True)
class State:
    """The state of a session: "live", "paused" or "ended"; for "ended" also the reason."""

    name: str = "live"
    reason: str = ""
    message: str = ""


Event = Fragment | Gap | State

# Why a session ends here that goes on at another server, or at this one when it has restarted.
ELSEWHERE = ("moved", "shutdown")


class Hub:
    """Holds the chunks, the playlist and the state of one session for its viewers. Used only in the event loop's thread."""

    def __init__(self, first: int, chunk_seconds: float, dvr_seconds: float) -> None:
        """first: the sequence number of the first chunk. chunk_seconds: the length of the longest chunk. dvr_seconds: viewers can go back
        at least so far."""
        self._fragments: dict[int, Fragment] = {}
        self.playlist = Playlist("init.mp4", "{}.m4s".format, chunk_seconds, max(dvr_seconds, 4 * chunk_seconds + 3))
        self.next_sequence = first
        self.state = State()
        self.viewers = 0
        self.picture_viewers = 0
        """The viewers who want JPEGs. While there are none, no JPEGs are made."""
        self.pictures: tuple[bytes, ...] = ()
        """JPEGs of the newest chunk."""
        self._changed = asyncio.Event()

    @property
    def held_bytes(self) -> int:
        return sum(len(fragment.data) for fragment in self._fragments.values())

    def fragment(self, sequence: int) -> Fragment | None:
        """The chunk with this sequence number; None if it is not made yet, or no longer held."""
        return self._fragments.get(sequence)

    def publish(self, fragment: Fragment, pictures: tuple[bytes, ...] = ()) -> list[int]:
        """Adds a chunk. Returns the sequence numbers of the chunks that are no longer held. A session that has ended gets no more chunks:
        its viewers were told that there are none, and so were players of HLS."""
        if self.state.name == "ended":
            return []
        self.pictures = pictures
        self._fragments[fragment.sequence] = fragment
        self.next_sequence = fragment.sequence + 1
        gone = self.playlist.append(fragment.sequence, fragment.about["seconds"])
        for sequence in gone:
            del self._fragments[sequence]
        self._wake()
        return gone

    def tell(self, state: State) -> None:
        """Sets the state, and wakes the viewers. A session that has ended stays ended."""
        if self.state.name != "ended":
            self.state = state
            self.playlist.ended = state.name == "ended"
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Waits for the next chunk, or another state."""
        await self._changed.wait()

    @property
    def newest(self) -> int:
        """The chunk that a viewer begins with by default: the newest one, or the first one if none is made yet."""
        return self.next_sequence - 1 if self.next_sequence - 1 in self._fragments else self.next_sequence

    async def follow(self, cursor: int) -> AsyncIterator[Event]:
        """The events for one viewer, from the chunk `cursor` on; ends after the state "ended". A slow viewer still gets all chunks that
        are held. For chunks that are no longer held it gets a `Gap`, and then the newest chunk."""
        told = State()
        while True:
            changed = self._changed
            if cursor < self.next_sequence:
                if cursor not in self._fragments:
                    gap, cursor = Gap(cursor, self.newest), self.newest
                    yield gap
                else:
                    cursor += 1
                    yield self._fragments[cursor - 1]
                    await asyncio.sleep(0)  # a viewer with much to catch up must not block the event loop
            elif told != self.state:
                told = self.state
                yield told
                if told.name == "ended":
                    return
            else:
                await changed.wait()
