"""The ways to watch a session: WebSocket and HLS."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import FastAPI, Query, WebSocket, WebSocketDisconnect
from fastapi.responses import Response, StreamingResponse
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from lolrt.media.hls import MEDIA_TYPE
from lolrt.serve.describe import describe, radians
from lolrt.serve.ended import Ended
from lolrt.serve.errors import NotFoundError
from lolrt.serve.hub import Fragment, Gap
from lolrt.serve.sessions import Session, Sessions

SUBPROTOCOL = "lolrt"
# WebSocket's close code for a request that the server does not allow (RFC 6455, 7.4.1).
POLICY_VIOLATION = 1008
BOUNDARY = b"picture"


async def accept(socket: WebSocket) -> None:
    await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", ()) else None)


def client_of(connection: HTTPConnection) -> str:
    """The address of a client."""
    return connection.client.host if connection.client is not None else ""


def add_routes(app: FastAPI, sessions: Sessions) -> None:
    @app.websocket("/v1/sessions/{id}/watch")
    async def watch(
        socket: WebSocket, id: str, first: Annotated[int | None, Query(alias="from", ge=0, lt=2**53)] = None, video: bool = True
    ) -> None:
        await accept(socket)
        try:
            session = sessions.find(id)
        except NotFoundError as error:
            await socket.send_json({"type": "error", "code": "not_found", "message": str(error)})
            await socket.close(POLICY_VIOLATION)
            return
        session.hub.viewers += 1
        tasks = [
            asyncio.create_task(_watch(socket, sessions, session, session.hub.newest if first is None else first, video)),
            asyncio.create_task(_gone(socket)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            session.hub.viewers -= 1
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect):
                    raise result

    @app.get("/v1/sessions/{id}/live.m3u8")
    async def playlist(id: str) -> Response:
        return Response(str(sessions.find(id).hub.playlist), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-cache"})

    @app.get("/v1/sessions/{id}/mjpeg", response_class=StreamingResponse)
    async def mjpeg(id: str) -> Response:
        kind = f"multipart/x-mixed-replace; boundary={BOUNDARY.decode()}"
        return Closing(_motion_jpeg(sessions.get(id), sessions.pipe.fps), media_type=kind)

    @app.get("/v1/sessions/{id}/init.mp4")
    async def init(id: str) -> Response:
        sessions.find(id)
        return Response(sessions.factory.init, media_type="video/mp4")

    @app.get("/v1/sessions/{id}/{sequence}.m4s")
    async def segment(id: str, sequence: int) -> Response:
        fragment = sessions.find(id).hub.fragment(sequence)
        if fragment is None:
            raise NotFoundError(f"chunk {sequence} is not there yet, or not any more")
        return Response(fragment.data, media_type="video/iso.segment")


class Closing(StreamingResponse):
    """Closes its generator at once however it ends, because a viewer counts until then."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert isinstance(self.body_iterator, AsyncGenerator)
        async with contextlib.aclosing(self.body_iterator):
            await super().__call__(scope, receive, send)


async def _motion_jpeg(session: Session, fps: int) -> AsyncGenerator[bytes, None]:
    """The pictures at the frame rate, each with its time in the stream. A viewer that is slower skips to the newest chunk."""
    hub = session.hub
    hub.viewers, hub.picture_viewers = hub.viewers + 1, hub.picture_viewers + 1
    try:
        shown: tuple[bytes, ...] = ()
        while hub.state.name != "ended":
            if hub.pictures is shown:
                await hub.changed()
                continue
            shown, due, newest = hub.pictures, time.monotonic(), hub.fragment(hub.next_sequence - 1)
            first_frame = newest.about["first_frame"] if newest is not None else 0
            for number, picture in enumerate(shown, first_frame):
                await asyncio.sleep(due - time.monotonic())
                header = f"Content-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\nLolrt-Seconds: {number / fps:.6f}\r\n"
                yield b"--%s\r\n%s\r\n%s\r\n" % (BOUNDARY, header.encode(), picture)
                due = max(due, time.monotonic() - 1 / fps) + 1 / fps
        yield b"--%s--\r\n" % BOUNDARY
    finally:
        hub.viewers, hub.picture_viewers = hub.viewers - 1, hub.picture_viewers - 1


async def _gone(socket: WebSocket) -> None:
    """Waits until the viewer disconnects; ignores its messages."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _watch(socket: WebSocket, sessions: Sessions, session: Session | Ended, first: int, video: bool) -> None:
    """Sends the events of a session to a viewer. video: whether the fragments are sent too, or only their descriptions."""
    init = sessions.factory.init
    start = {
        "type": "video.start",
        **describe(sessions, session),
        "mime": sessions.factory.mime,
        **({"byte_length": len(init)} if video else {}),
        "sequence": first,
        "radians": radians(sessions, session),
    }
    await socket.send_json(start)
    if video:
        await socket.send_bytes(init)
    async for event in session.hub.follow(first):
        if isinstance(event, Fragment) and not video:
            await socket.send_json({"type": "video.chunk_metadata", "sequence": event.sequence, **event.about})
        elif isinstance(event, Fragment):
            with sessions.metrics.sending(len(event.data)):
                await socket.send_text(event.text)
                await socket.send_bytes(event.data)
        elif isinstance(event, Gap):
            sessions.metrics.lost.inc(event.end - event.first)
            await socket.send_json({"type": "video.gap", "from": event.first, "to": event.end})
        elif event.name == "ended":
            message = {"message": event.message} if event.message else {}
            await socket.send_json({"type": "session.done", "reason": event.reason, **message})
        else:
            await socket.send_json({"type": "session.paused" if event.name == "paused" else "session.continued"})
    await socket.close()
