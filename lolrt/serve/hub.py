"""The newest chunks of a session, encoded once, and those who watch.

A viewer is a cursor: the sequence of the chunk that it gets next. So viewers cost no memory, and one that is slow or gone holds nobody up.
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
    """A chunk as it goes over the wire."""

    sequence: int
    about: dict[str, Any]
    """What is said of it, as JSON takes it."""
    data: bytes
    """Fragmented mp4 that needs no other fragment, without the init segment."""

    @cached_property
    def text(self) -> str:
        """The message before its bytes; one string for all viewers."""
        return json.dumps({"type": "video.chunk_metadata", "sequence": self.sequence, "byte_length": len(self.data), **self.about})


@dataclass(frozen=True)
class Gap:
    """Chunks `first` to `end` - 1 are not there any more, and the viewer has not had them."""

    first: int
    end: int


@dataclass(frozen=True)
class State:
    """What a session does: "live", "paused" or "ended", and then why."""

    name: str = "live"
    reason: str = ""
    message: str = ""


Event = Fragment | Gap | State


class Hub:
    """Used in the event loop's thread alone."""

    def __init__(self, first: int, chunk_seconds: float, dvr_seconds: float) -> None:
        """first: sequence of the first chunk; chunk_seconds: of the longest; dvr_seconds: that viewers can go back at least."""
        self._fragments: dict[int, Fragment] = {}
        self.playlist = Playlist("init.mp4", "{}.m4s".format, chunk_seconds, max(dvr_seconds, 4 * chunk_seconds + 3))
        self.next_sequence = first
        self.state = State()
        self.viewers = 0
        self.picture_viewers = 0
        """Those among them who want JPEGs; while there are none, none are made."""
        self.pictures: tuple[bytes, ...] = ()
        """JPEGs of the newest chunk."""
        self._changed = asyncio.Event()

    @property
    def held_bytes(self) -> int:
        return sum(len(fragment.data) for fragment in self._fragments.values())

    def fragment(self, sequence: int) -> Fragment | None:
        """None where it is not there yet, or not any more."""
        return self._fragments.get(sequence)

    def publish(self, fragment: Fragment, pictures: tuple[bytes, ...] = ()) -> list[int]:
        """Gives the sequences of those that nobody may ask for any more."""
        self.pictures = pictures
        self._fragments[fragment.sequence] = fragment
        self.next_sequence = fragment.sequence + 1
        gone = self.playlist.append(fragment.sequence, fragment.about["seconds"])
        for sequence in gone:
            del self._fragments[sequence]
        self._wake()
        return gone

    def tell(self, state: State) -> None:
        """A state that has ended stays so."""
        if self.state.name != "ended":
            self.state = state
            self.playlist.ended = state.name == "ended"
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Returns when there is a chunk more, or another state."""
        await self._changed.wait()

    @property
    def newest(self) -> int:
        """Where who has no wish begins: the newest chunk, or the first."""
        return self.next_sequence - 1 if self.next_sequence - 1 in self._fragments else self.next_sequence

    async def follow(self, cursor: int) -> AsyncIterator[Event]:
        """What a viewer is to be told, from the chunk `cursor` on; ends after the state "ended". Between two chunks that it takes there may
        have been any number of others: those that are still held follow, for those that are not it gets a `Gap`, and then the newest."""
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
                    await asyncio.sleep(0)  # who has much to catch up with leaves time to the others
            elif told != self.state:
                told = self.state
                yield told
                if told.name == "ended":
                    return
            else:
                await changed.wait()
