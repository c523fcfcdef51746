"""The gateway: passes each request on to the replica that has the session, wherever that is at the moment.

A viewer keeps its connection while its session moves: the gateway connects to the next replica, and goes on with the next chunk. What
replicas answer is not changed. The video of WebRTC does not come this way: docs/fleet.md says what that means, and what does not move.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import aiohttp
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, Response, StreamingResponse

from lolrt.errors import Error
from lolrt.fleet.batched import Batched
from lolrt.fleet.relay import Relay
from lolrt.fleet.service import Leases
from lolrt.serve.errors import NoRoomError, NotFoundError, UnavailableError, code_of, message_of, status_of
from lolrt.serve.guard import Guard
from lolrt.serve.realtime import START_SECONDS, parse
from lolrt.serve.watching import accept

# How long a request waits for a session that is moving. A replica that dies is noticed after the length of a lease.
PATIENCE_SECONDS = 30.0
LOOK_SECONDS = 0.1
RETRY_SECONDS = 5
# Of so many sessions a gateway remembers where they were last.
MOST_REMEMBERED = 10_000
# Headers that belong to one connection (RFC 9110, 7.6.1), and those that say where the gateway was asked.
OWN_HEADERS = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "origin", "content-length"}


def make_gateway(leases: Leases, token: str | None = None) -> FastAPI:
    """The application. token: that of the replicas, which clients have to send."""
    gateway = Gateway(leases)
    app = FastAPI(title="lolrt", lifespan=gateway.lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token=token)

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        status = status_of(error)
        headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
        return JSONResponse({"error": {"message": message_of(error), "code": code_of(error)}}, status, headers)

    app.add_exception_handler(Error, refuse)
    app.add_api_route("/health", gateway.health)
    app.add_api_route("/readyz", gateway.ready)
    app.add_api_route("/v1/sessions", gateway.create, methods=["POST"])
    app.add_api_route("/v1/sessions", gateway.listed, methods=["GET"])
    app.add_api_route("/v1/sessions/{id}/branch", gateway.branch, methods=["POST"])
    app.add_api_websocket_route("/v1/sessions/{id}/watch", gateway.watch)
    app.add_api_websocket_route("/v1/realtime/video", gateway.realtime)
    app.add_api_route("/v1/videos", gateway.listed, methods=["GET"])
    every = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
    app.add_api_route("/v1/sessions/{id}", gateway.of_session, methods=every)
    app.add_api_route("/v1/sessions/{id}/{rest:path}", gateway.of_session, methods=every)
    app.add_api_route("/v1/videos/{id}", gateway.of_clip, methods=every)
    app.add_api_route("/v1/videos/{id}/{rest:path}", gateway.of_clip, methods=every)
    app.add_api_route("/{rest:path}", gateway.of_any, methods=every)
    return app


class Gateway:
    def __init__(self, leases: Leases) -> None:
        self._leases, self._locate, self._place = leases, Batched(leases.locate), Batched(leases.place)
        self._last: OrderedDict[str, str] = OrderedDict()
        """The address of the replica that each session was found at last."""

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as self._client:
            yield

    # Where to.

    async def _find(self, session: str) -> str:
        """The address of the replica that has a session; waits while it moves. Raises `NotFoundError`, and `UnavailableError` when no
        replica has taken it."""
        end = time.monotonic() + PATIENCE_SECONDS
        try:
            while (address := await self._locate(session)) is None:
                if time.monotonic() > end:
                    raise UnavailableError("no server has room for the session at the moment", "moving")
                await asyncio.sleep(LOOK_SECONDS)
        except KeyError:
            raise NotFoundError("there is no such session: it has ended") from None
        self._last[session] = address
        self._last.move_to_end(session)
        if len(self._last) > MOST_REMEMBERED:
            self._last.popitem(last=False)
        return address

    async def _find_to_read(self, session: str) -> tuple[str, bool]:
        """The address of the replica that has a session, or had it when it ended, where the rest of it can be read for a while; and whether
        it has it still. Raises `NotFoundError` and `UnavailableError`."""
        try:
            return await self._find(session), True
        except NotFoundError:
            address = self._last.get(session)
            if address is None or address not in await self._leases.addresses():
                raise
            return address, False

    async def _any(self) -> str:
        addresses = await self._leases.addresses()
        if not addresses:
            raise UnavailableError("no server is ready", "ending")
        return addresses[0]

    # Requests of HTTP.

    async def health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def ready(self) -> dict[str, str]:
        await self._any()
        return {"status": "ok"}

    async def create(self, request: Request) -> Response:
        wanted = _wanted(await request.body())
        address = await self._place(wanted["session_id"])
        if address is None:
            raise NoRoomError("no server has room for another session: close one, or wait")
        return await self._pass(request, address, json.dumps(wanted).encode())

    async def branch(self, id: str, request: Request) -> Response:
        wanted, address = _wanted(await request.body()), await self._find(id)
        await self._leases.place([wanted["session_id"]], address)
        return await self._pass(request, address, json.dumps(wanted).encode())

    async def listed(self, request: Request) -> dict[str, Any]:
        """The lists of all replicas as one."""

        async def of(address: str) -> list[dict[str, Any]]:
            async with self._client.get(f"http://{address}{request.url.path}", headers=_headers(request)) as answer:
                return (await answer.json())["data"]

        found = await asyncio.gather(*[of(address) for address in await self._leases.addresses()], return_exceptions=True)
        return {"object": "list", "data": [one for part in found if not isinstance(part, BaseException) for one in part]}

    async def of_session(self, id: str, request: Request) -> Response:
        address, _ = await self._find_to_read(id)
        return await self._pass(request, address, await request.body())

    async def of_clip(self, request: Request) -> Response:
        """A clip stays on the replica that makes it, which only that one knows."""
        body, silent = await request.body(), False
        for address in await self._leases.addresses():
            try:
                answer = await self._ask(request, address, body)
            except UnavailableError:
                silent = True
                continue
            if answer.status != NotFoundError.status:
                return _passed(answer)
            answer.release()
        if silent:
            raise UnavailableError("the server that may have the video does not answer: ask again", "moving")
        raise NotFoundError("there is no such video: it was removed, or the server that had it has ended")

    async def of_any(self, request: Request) -> Response:
        return await self._pass(request, await self._any(), await request.body())

    async def _pass(self, request: Request, address: str, body: bytes) -> Response:
        """A replica's answer to a request."""
        return _passed(await self._ask(request, address, body))

    async def _ask(self, request: Request, address: str, body: bytes) -> aiohttp.ClientResponse:
        target = f"http://{address}{request.url.path}" + (f"?{request.url.query}" if request.url.query else "")
        try:
            return await self._client.request(request.method, target, data=body or None, headers=_headers(request), allow_redirects=False)
        except aiohttp.ClientError as error:
            raise UnavailableError("the server that had the session does not answer: ask again", "moving") from error

    # Connections of WebSocket.

    async def watch(self, socket: WebSocket, id: str) -> None:
        await accept(socket)
        first = socket.query_params.get("from")
        relay = Relay(int(first) if first is not None and first.isdecimal() else None)
        others = {name: value for name, value in socket.query_params.items() if name != "from"}
        await _until_either(self._send(socket, id, relay, others), _gone(socket))

    async def _send(self, socket: WebSocket, id: str, relay: Relay, others: dict[str, str]) -> None:
        try:
            while not relay.ended:
                address, there = await self._find_to_read(id)
                asked = others | ({} if relay.next is None else {"from": str(relay.next)})
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    async with self._upstream(socket, address, f"/v1/sessions/{id}/watch", asked) as replica:
                        await _relay(replica, socket, relay)
                if not relay.ended:
                    if not there:
                        raise NotFoundError("there is no such session: it has ended")
                    await asyncio.sleep(LOOK_SECONDS)
        except Error as error:
            await socket.send_json({"type": "error", "code": code_of(error), "message": str(error)})
        await socket.close()

    async def realtime(self, socket: WebSocket) -> None:
        """The first message says which session is meant. Without a `session_id` it is new, and ends with the connection."""
        await accept(socket)
        try:
            text = await asyncio.wait_for(socket.receive_text(), START_SECONDS)
            start = parse(text)
            address = await self._start(start)
            async with self._upstream(socket, address, "/v1/realtime/video", {}) as replica:
                await replica.send_str(json.dumps(start))
                await _until_either(_copy_out(replica, socket), _copy_in(socket, replica))
        except (Error, aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            code = code_of(error) if isinstance(error, Error) else "moving"
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await socket.send_json({"type": "error", "code": code, "message": str(error) or "no session.start came in time"})
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await socket.close()

    async def _start(self, start: dict[str, Any]) -> str:
        id = start.get("session_id")
        if not isinstance(id, str):
            return await self._any()
        if start.get("resume_from") is not None:
            return (await self._find_to_read(id))[0]
        address = await self._place(id)
        if address is None:
            raise NoRoomError("no server has room for another session: close one, or wait")
        return address

    def _upstream(self, socket: WebSocket, address: str, path: str, query: dict[str, str]) -> Any:
        headers = {name: value for name, value in socket.headers.items() if name in ("authorization", "sec-websocket-protocol")}
        protocols = [name.strip() for name in headers.pop("sec-websocket-protocol", "").split(",") if name.strip()]
        return self._client.ws_connect(
            f"http://{address}{path}", params=query, headers=headers, protocols=protocols, max_msg_size=0, compress=0, heartbeat=5.0
        )


def _passed(answer: aiohttp.ClientResponse) -> Response:
    """The answer of a replica, as it comes."""

    async def content() -> AsyncIterator[bytes]:
        async with answer:
            async for data in answer.content.iter_any():
                yield data

    headers = {name: value for name, value in answer.headers.items() if name.lower() not in OWN_HEADERS}
    return StreamingResponse(content(), answer.status, headers)


async def _relay(replica: aiohttp.ClientWebSocketResponse, socket: WebSocket, relay: Relay) -> None:
    """Passes a replica's messages on until it has no more. A description is passed on together with its bytes or not at all: a replica
    that dies between the two leaves the viewer with neither."""
    while (message := await replica.receive()).type == aiohttp.WSMsgType.TEXT:
        described = json.loads(message.data)
        data = None
        if "byte_length" in described:
            follows = await replica.receive()
            if follows.type != aiohttp.WSMsgType.BINARY:
                return
            data = follows.data
        if relay.takes(described):
            await socket.send_text(message.data)
            if data is not None:
                await socket.send_bytes(data)
        if described["type"] in ("session.done", "error"):
            return


async def _copy_out(replica: aiohttp.ClientWebSocketResponse, socket: WebSocket) -> None:
    async for message in replica:
        if message.type == aiohttp.WSMsgType.TEXT:
            await socket.send_text(message.data)
        elif message.type == aiohttp.WSMsgType.BINARY:
            await socket.send_bytes(message.data)


async def _copy_in(socket: WebSocket, replica: aiohttp.ClientWebSocketResponse) -> None:
    while True:
        await replica.send_str(await socket.receive_text())


async def _gone(socket: WebSocket) -> None:
    """Waits until the viewer disconnects; ignores its messages."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _until_either(*work: Coroutine[Any, Any, None]) -> None:
    """Runs all until one of them ends. Errors of a connection that has ended are none."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, (WebSocketDisconnect, RuntimeError, aiohttp.ClientError)):
                raise result


def _wanted(body: bytes) -> dict[str, Any]:
    """The request for a session, with an id. Raises `lolrt.Error`."""
    wanted = parse(body.decode(errors="replace") or "{}")
    if not isinstance(wanted.get("session_id"), str):
        wanted["session_id"] = uuid.uuid4().hex
    return wanted


def _headers(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name not in OWN_HEADERS}
