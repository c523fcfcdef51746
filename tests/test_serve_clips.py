"""The queue of clips (`/v1/videos`) without a server: what waits, what is removed, and what fails."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from lolrt.serve.clips import MOST_QUEUED, Clip, Clips
from lolrt.serve.errors import NoRoomError
from lolrt.serve.hub import Hub, State
from lolrt.serve.protocol import Stream
from lolrt.serve.sessions import Sessions
from lolrt.serve.settings import Settings


class Scarce:
    """Sessions for clips: those of a server without room, whose memory is too small, or whose engine is busy with others."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.metrics, self.opened = fault, SimpleNamespace(watch=lambda gauges: None), 0
        self.factory = SimpleNamespace(init=b"")

    async def open(self, *_: Any, **__: Any) -> Any:
        self.opened += 1
        if self.fault is not None:
            raise self.fault
        return SimpleNamespace(hub=Hub(0, 0.75, 6))

    async def end(self, session: Any, state: State) -> None:
        session.hub.tell(state)


def with_clips(sessions: Scarce, use: Callable[[Clips], Awaitable[None]]) -> None:
    async def run() -> None:
        clips = Clips(sessions)  # type: ignore[arg-type]
        making = asyncio.create_task(clips.run())
        await asyncio.wait_for(use(clips), 20)
        making.cancel()

    asyncio.run(run())


def clip() -> Clip:
    return Clip(Stream(prompt="a"), 12, "", None)


def test_nothing_is_held_of_clips_that_are_removed_before_they_are_made():
    async def use(clips: Clips) -> None:
        clips.add(clip())
        await asyncio.sleep(0.01)
        gone = []
        for _ in range(3 * MOST_QUEUED):
            one = clip()
            clips.add(one)
            await clips.delete(one)
            gone.append(weakref.ref(one))
            del one
        assert not any(each() for each in gone)

    with_clips(Scarce(NoRoomError("full")), use)


def test_a_clip_that_the_server_cannot_make_is_not_the_last():
    async def use(clips: Clips) -> None:
        ones = [clip(), clip()]
        for one in ones:
            clips.add(one)
        while not all(one.over for one in ones):
            await asyncio.sleep(0.01)
        assert [one.error for one in ones] == ["MemoryError in the server"] * 2

    with_clips(Scarce(MemoryError()), use)


def test_a_clip_waits_while_its_client_has_all_the_sessions_that_it_may_have(quick):
    """And lets those of others by."""

    async def run() -> None:
        sessions = Sessions(quick, Settings(max_sessions=4, max_client_sessions=1))
        await sessions.start()
        held = await sessions.open(Stream(prompt="a red car by the sea"), "busy")
        await sessions.pause(held, True)  # otherwise it may need the engine all the time
        clips = Clips(sessions)
        making = asyncio.create_task(clips.run())
        first, second, other = [Clip(Stream(prompt="a red car by the sea"), 12, client, None) for client in ("busy", "busy", "other")]
        for one in (first, second, other):
            clips.add(one)
        while other.status != "completed":
            await asyncio.sleep(0.01)
        assert (first.status, second.status) == ("queued", "queued")
        await sessions.end(held, State("ended", "closed"))
        while second.status != "completed":
            await asyncio.sleep(0.01)
        assert first.status == "completed" and clips.path(first).stat().st_size > len(sessions.factory.init)
        making.cancel()
        await sessions.close()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_clip_that_waits_for_the_engine_is_removed_at_once():
    sessions = Scarce()

    async def use(clips: Clips) -> None:
        first, second = clip(), clip()
        clips.add(first)
        clips.add(second)
        while first.status != "in_progress":
            await asyncio.sleep(0.01)
        session = first.session
        await clips.delete(first)
        while second.status != "in_progress":
            await asyncio.sleep(0.01)
        assert session is not None and session.hub.viewers == 0 and list(clips) == [second] and sessions.opened == 2

    with_clips(sessions, use)
