"""Faults within the server: a session whose numbers are not finite, an encoder that fails, a pass that cannot be run. Its session ends with
an error, all others go on, and all pages are given back."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from serving import PROMPT

import lolrt
from lolrt.serve.hub import Fragment, State
from lolrt.serve.protocol import Branch, Interact, InteractionEvent, Stream
from lolrt.serve.sessions import Session, Sessions
from lolrt.serve.settings import Settings

pytestmark = pytest.mark.whole


async def watched(session: Session, chunks: int) -> list[Any]:
    """So many events, or those until it ends."""
    told: list[Any] = []
    async for event in session.hub.follow(0):
        told.append(event)
        if len(told) == chunks:
            break
    return told


def not_finite(session: Session) -> None:
    stream = session.live.stream.latent_stream.session
    stream.noise = lambda *_: torch.full((3, *stream.engine.latents.shape[1:]), torch.nan)


def no_encoder(session: Session) -> None:
    def encode(frames: torch.Tensor) -> bytes:
        raise OSError("the encoder is gone")

    session.live.encoder.encode = encode  # type: ignore[method-assign]


def no_decoder(session: Session) -> None:
    def decode_next() -> lolrt.Chunk:
        raise MemoryError

    session.live.stream.decode_next = decode_next  # type: ignore[method-assign]


def no_pass(session: Session) -> None:
    """What goes wrong in the pass of all that are joined, and not before."""
    stream = session.live.stream.latent_stream.session
    pending = stream.pending

    def wrong() -> Any:
        inputs = pending()
        inputs.page_table = inputs.page_table.clone().fill_(10_000)
        return inputs

    stream.pending = wrong  # type: ignore[method-assign]


def test_nothing_refers_to_what_is_over(quick):
    """Snapshots and sessions go when they are not needed any more, not when the collector of cycles comes, which may take hours."""

    async def run() -> None:
        sessions = Sessions(quick, Settings(max_sessions=2))
        await sessions.start()
        gc.collect()
        gc.disable()

        async def use() -> list[Any]:
            session = await sessions.open(Stream(prompt=PROMPT))
            await watched(session, 1)
            snapshot = await sessions.snapshot(session)
            branched = await sessions.branch(session, Branch())
            await sessions.pause(session, True)
            await sessions.interact(session, Interact(event=InteractionEvent(prompt=PROMPT)))
            for one in (session, branched):
                await sessions.end(one, State("ended", "closed"))
            return [weakref.ref(each) for each in (session, session.live, session.live.stream, branched.live, snapshot)]

        try:
            gone = await use()
            for _ in range(100):
                if not any(each() for each in gone):
                    break
                await asyncio.sleep(0.05)
            assert [each() for each in gone] == [None] * len(gone)
        finally:
            gc.enable()
            await sessions.close()

    asyncio.run(run())


def test_a_server_ends_while_a_session_does(quick, capsys):
    """By itself, between the first and the last that is left: the others are told, and all pages are given back."""

    async def run() -> None:
        sessions = Sessions(quick, Settings(max_sessions=2))
        await sessions.start()
        first, second = [await sessions.open(Stream(prompt=PROMPT, seed=seed)) for seed in range(2)]
        leave = sessions.leave

        async def leave_later(session: Session) -> None:
            await sessions.end(second, State("ended", "closed"))
            await leave(session)

        sessions.leave = leave_later  # type: ignore[method-assign]
        await sessions.close()
        assert (first.hub.state.reason, second.hub.state.reason) == ("shutdown", "closed")
        pool = sessions.factory.engine.engine.pool
        assert pool.unreserved_pages == pool.free_pages == pool.pages.shape[1]

    asyncio.run(run())
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "fault,told",
    [(not_finite, "not finite"), (no_encoder, "OSError"), (no_decoder, "MemoryError"), (no_pass, "")],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_session_that_fails_ends_alone(quick, fault: Callable[[Session], None], told, capsys):
    async def run() -> None:
        sessions = Sessions(quick, Settings(max_sessions=3))
        await sessions.start()
        bad, good = [await sessions.open(Stream(prompt=PROMPT, seed=seed)) for seed in range(2)]
        await watched(bad, 1)
        await sessions._asked(sessions._thread.between_chunks(bad.live, lambda: fault(bad)))
        events = await asyncio.wait_for(watched(bad, 100), 60)
        assert isinstance(events[-1], State) and (events[-1].name, events[-1].reason) == ("ended", "failed") and told in events[-1].message
        seen = len(await watched(good, 1))
        more = await asyncio.wait_for(watched(good, good.hub.next_sequence + 2), 60)
        assert seen and all(isinstance(event, Fragment) for event in more)
        assert (
            list(sessions) == [good] and sessions.metrics.registry.get_sample_value("lolrt_sessions_ended_total", {"reason": "failed"}) == 1
        )
        await sessions.close()
        pool = sessions.factory.engine.engine.pool
        assert pool.unreserved_pages == pool.free_pages == pool.pages.shape[1]

    asyncio.run(run())
    assert "has failed" in capsys.readouterr().err
