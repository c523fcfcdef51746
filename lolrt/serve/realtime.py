"""`WS /v1/realtime/video`: one connection opens, steers and watches a session. The events are vLLM-Omni's (docs/serve.md)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from typing import Any, TypeVar

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ValidationError

from lolrt.errors import Error
from lolrt.serve.describe import describe
from lolrt.serve.ended import Ended
from lolrt.serve.errors import ConflictError, NotFoundError, RequestError, code_of, message_of
from lolrt.serve.hub import Fragment, State
from lolrt.serve.protocol import InteractMessage, Start, Stream
from lolrt.serve.sessions import Session, Sessions
from lolrt.serve.watching import accept, client_of

Model = TypeVar("Model", bound=BaseModel)

START_SECONDS = 10.0
STALL_SECONDS = 60.0
# How often the connection is checked for a stall.
LOOK_SECONDS = 1.0
# The longest message after the first, in characters.
MOST_CONTROL = 128 << 10
# The connection ends after more invalid messages than this.
MOST_ERRORS = 100


def add_routes(app: FastAPI, sessions: Sessions) -> None:
    @app.websocket("/v1/realtime/video")
    async def realtime(socket: WebSocket) -> None:
        await accept(socket)
        with contextlib.suppress(WebSocketDisconnect):
            await Conversation(socket, sessions).run()
            await socket.close()


class EndedError(Error):
    """An error that ends the connection."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Conversation:
    def __init__(self, socket: WebSocket, sessions: Sessions) -> None:
        self._socket, self._sessions = socket, sessions
        self._request_id = f"video-{uuid.uuid4().hex}"
        self._sending = asyncio.Lock()  # so that a fragment comes right after its metadata
        self._errors = self._chunks = 0
        self._still = 0.0
        """Seconds without a chunk or a ping. Time in which the whole process was stopped does not count."""

    async def run(self) -> None:
        try:
            start = await self._start()
            session, owned = await self._session(start)
        except Error as error:
            self._sessions.metrics.refused.labels(code_of(error)).inc()
            await self._tell_error(code_of(error), message_of(error))
            return
        session.hub.viewers += 1
        try:
            await self._run(session, start)
        finally:
            session.hub.viewers -= 1
            if owned and isinstance(session, Session):
                await self._sessions.end(session, State("ended", "closed"))

    async def _start(self) -> Start:
        try:
            text = await asyncio.wait_for(self._text(), START_SECONDS)
        except asyncio.TimeoutError:
            raise RequestError(f"no session.start came within {START_SECONDS:g} s", "start_timeout") from None
        message = parse(text)
        if message.get("type") != "session.start":
            raise RequestError("expected session.start", "unexpected_message")
        start = validated(Start, message)
        if start.format != "m4s":
            raise RequestError("expected the format 'm4s'", "unsupported_format")
        pipe = self._sessions.pipe
        start.check(pipe.name, pipe.width, pipe.height, pipe.fps)
        return start

    async def _session(self, start: Start) -> tuple[Session | Ended, bool]:
        """The session that the message opens or resumes, and whether it ends with the connection."""
        if start.session_id is not None and start.resume_from is not None:
            return self._sessions.find(start.session_id), False
        if start.prompt is None:
            raise RequestError("prompt: expected a text; only a session that is resumed has one already", "bad_message")
        wanted = Stream(
            prompt=start.prompt, seed=start.seed or 0, rope=start.rope, window=start.window, lora=start.adapters(),
            probe=start.probe, session_id=start.session_id, lease_seconds=start.lease_seconds,
        )  # fmt: skip
        named, frames = start.session_id is not None, start.frames(self._sessions.pipe.fps)
        return await self._sessions.open(wanted, client_of(self._socket), frames=frames, lasts=named), not named

    async def _run(self, session: Session | Ended, start: Start) -> None:
        """Sends and receives at the same time, until one of the two ends."""
        tasks = [asyncio.create_task(self._send(session, start)), asyncio.create_task(self._hear(session))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            for task in done:
                task.result()
        except EndedError as error:
            with contextlib.suppress(asyncio.TimeoutError):  # the client may have stopped reading
                await asyncio.wait_for(self._tell_error(error.code, str(error)), START_SECONDS)

    # To the client.

    async def _tell(self, message: dict[str, Any], data: bytes = b"") -> None:
        async with self._sending:
            await self._socket.send_text(json.dumps(message))
            if data:
                await self._socket.send_bytes(data)

    async def _tell_error(self, code: str, message: str, event_id: str | None = None) -> None:
        about = {"request_id": self._request_id, **({} if event_id is None else {"event_id": event_id})}
        await self._tell({"type": "error", "code": code, "message": message, **about})

    async def _send(self, session: Session | Ended, start: Start) -> None:
        description, first = describe(self._sessions, session), session.hub.newest if start.resume_from is None else start.resume_from
        config = {"model": self._sessions.pipe.name, **start.model_dump(include={"num_frames", "probe"}, exclude_none=True)}
        config |= {name: description[name] for name in ("prompt", "seed", "width", "height", "fps", "rope", "window")}
        about = {"session_id": description["id"], "sequence": first, "mime": self._sessions.factory.mime}
        await self._tell({"type": "video.start", "request_id": self._request_id, "format": "m4s", "config": config, **about})
        init = b"" if start.resume_from else self._sessions.factory.init
        async for event in session.hub.follow(first):
            if isinstance(event, Fragment):
                with self._sessions.metrics.sending(len(event.data)):
                    await self._tell(self._metadata(event, len(init)), init + event.data)
                self._chunks += 1
                self._still = 0.0
                init = b""
            elif isinstance(event, State):
                await self._tell_state(event)
            else:
                self._sessions.metrics.lost.inc(event.end - event.first)
                await self._tell({"type": "video.gap", "request_id": self._request_id, "from": event.first, "to": event.end})

    def _metadata(self, fragment: Fragment, more: int) -> dict[str, Any]:
        return {
            "type": "video.chunk_metadata",
            "request_id": self._request_id,
            "kind": "media",
            "transport_chunk_index": self._chunks,
            "generation_chunk_index": fragment.sequence,
            "sequence": fragment.sequence,
            "byte_length": more + len(fragment.data),
            **fragment.about,
        }

    async def _tell_state(self, state: State) -> None:
        if state.reason == "failed":
            raise EndedError(state.message, "failed")
        if state.name == "ended":
            await self._tell_done(state.reason != "complete", state.reason)
        else:
            await self._tell({"type": "session.paused" if state.name == "paused" else "session.continued", "request_id": self._request_id})

    async def _tell_done(self, stopped: bool, reason: str) -> None:
        done = {"type": "session.done", "request_id": self._request_id, "chunks": self._chunks, "stopped": stopped, "reason": reason}
        await self._tell(done)

    # From the client.

    async def _text(self) -> str:
        """The next message. Raises WebSocketDisconnect."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        return message.get("text") or ""

    async def _hear(self, session: Session | Ended) -> None:
        """Receives messages until the client stops the session."""
        coming: asyncio.Task[str] | None = None
        try:
            while True:
                coming = coming or asyncio.create_task(self._text())
                done, _ = await asyncio.wait([coming], timeout=LOOK_SECONDS)
                if not done:
                    self._still += LOOK_SECONDS
                    if self._still >= STALL_SECONDS:
                        raise EndedError(f"neither a chunk nor a session.ping for {STALL_SECONDS:g} s", "stalled")
                    continue
                text, coming = coming.result(), None
                session.renew()
                if await self._answered(session, text):
                    return
        finally:
            if coming is not None:
                coming.cancel()

    async def _answered(self, session: Session | Ended, text: str) -> bool:
        """Answers a message. Returns whether it was the last one."""
        try:
            message = parse(text, MOST_CONTROL)
            match message.get("type"):
                case "session.stop":
                    await self._tell_done(True, "stopped")
                    return True
                case "session.ping":
                    self._still = 0.0
                    await self._tell({"type": "session.pong"})
                case "session.interaction":
                    await self._interact(session, message)
                case _:
                    raise RequestError("expected session.interaction, session.ping or session.stop", "unknown_type")
        except RequestError as error:
            await self._tell_wrong(error.code, error)
        return False

    async def _interact(self, session: Session | Ended, message: dict[str, Any]) -> None:
        asked = message.get("interaction")
        event_id = asked.get("event_id") if isinstance(asked, dict) else None
        try:
            if isinstance(session, Ended):
                raise NotFoundError("the session has ended")
            taken = await self._sessions.interact(session, validated(InteractMessage, message).interaction)
        except Error as error:
            code = error.code if isinstance(error, (ConflictError, NotFoundError)) else "interaction_failed"
            await self._tell_wrong(code, error, event_id if isinstance(event_id, str) else None)
            return
        queued = {"event_id": taken.event_id, "sequence": taken.sequence}
        await self._tell({"type": "session.interaction.queued", "request_id": self._request_id, **queued})

    async def _tell_wrong(self, code: str, error: Error, event_id: str | None = None) -> None:
        """Answers an invalid message with an error. The session goes on, unless there were too many."""
        self._errors += 1
        if self._errors > MOST_ERRORS:
            raise EndedError(f"more than {MOST_ERRORS} messages were invalid", "too_many_errors")
        await self._tell_error(code, str(error), event_id)


def parse(text: str, most: int | None = None) -> dict[str, Any]:
    """The JSON object in a message. Raises `RequestError`."""
    if most is not None and len(text) > most:
        raise RequestError(f"the message has {len(text)} characters; expected {most} at most", "message_too_large")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("the message is not JSON; expected a JSON object as text", "bad_json") from None
    if not isinstance(message, dict):
        raise RequestError("expected a JSON object with a type", "bad_message")
    return message


def validated(kind: type[Model], message: dict[str, Any]) -> Model:
    """A message checked against its schema. Raises `RequestError`."""
    try:
        return kind.model_validate(message)
    except ValidationError as error:
        raise RequestError(message_of(error), "bad_message") from None
