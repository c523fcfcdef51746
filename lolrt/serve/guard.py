"""Checks the token, origin, host and size of each request, and tells browsers what they may do with the responses. See
docs/threat-model.md."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import re
import stat
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lolrt.errors import Error

# A token that is valid in a header and in the name of a subprotocol (RFC 9110, 5.6.2).
TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{16,256}")
TOKEN_SUBPROTOCOL = "token."
# The paths that need the token. All others belong to the page, which shows nothing of any session.
GUARDED = ("/v1/", "/metrics", "/openapi.json")
# The largest request body, in bytes. A request that opens a session or a clip may hold a start image.
MOST_BODY = 256 << 10
MOST_BODY_WITH_IMAGE = 8 << 20
WITH_IMAGE = ("/v1/sessions", "/v1/videos")
# A client that takes nothing of a response for so long is given up. Otherwise it would keep its session, its pictures or its file for ever.
SEND_SECONDS = 60.0

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'{sockets}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HOST = re.compile(r"[A-Za-z0-9._\[\]:-]+")


def read_token(path: Path) -> str:
    """The token in a file. Raises `lolrt.Error` if the file holds no token, or if other users of the machine can read it."""
    try:
        text, mode = path.read_text("ascii").strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"cannot read the token in {path}: {error}") from error
    if not TOKEN.fullmatch(text):
        make = "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
        raise Error(f"{path} holds no token; expected 16 to 256 letters, digits or -._~, such as {make} makes")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        raise Error(f"{path} can be read by others: chmod 600 {path}")
    return text


def is_loopback(host: str) -> bool:
    """Whether an address can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class UnreadError(Exception):
    """The client has stopped reading the response."""


class Guard:
    """An ASGI middleware: it refuses requests or passes them on to `app`."""

    def __init__(self, app: ASGIApp, token: str | None = None) -> None:
        """token: clients have to send it. Without a token, the server answers only requests whose Host header names this machine."""
        self.app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope, headers)
        if refused is not None:
            await _refuse(scope, receive, send, *refused)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)
        else:
            await self._answer(scope, headers, receive, send)

    def _refused(self, scope: Scope, headers: Headers) -> tuple[int, str, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        # DNS rebinding: a page of a foreign name that resolves to this machine sends that name as both Host and Origin.
        if self._token is None and not is_loopback(_name(host)):
            return 403, "wrong_host", "this server answers to names of this machine alone: start it with --token-file for others"
        if origin is not None and _netloc(origin) != host.lower():
            return 403, "wrong_origin", "the request comes from a page of another server"
        path = scope["path"]
        if self._token is not None and path.startswith(GUARDED) and not self._knows(scope, headers):
            return (
                401,
                "no_token",
                "expected the server's token, as Authorization: Bearer TOKEN or, of a WebSocket, as subprotocol token.TOKEN",
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > _most(path):
            return 413, "too_large", f"the request has {length[:20]} bytes; expected {_most(path)} at most"
        return None

    def _knows(self, scope: Scope, headers: Headers) -> bool:
        given = [text[7:] for text in headers.getlist("authorization") if text[:7].lower() == "bearer "]
        given += [name[len(TOKEN_SUBPROTOCOL) :] for name in scope.get("subprotocols", ()) if name.startswith(TOKEN_SUBPROTOCOL)]
        assert self._token is not None
        return any([hmac.compare_digest(text.encode(), self._token.encode()) for text in given])

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Passes a request on; limits the size of its body, and adds headers to the response."""
        taken, most = 0, _most(scope["path"])

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:  # more than its content-length, or it had none
                raise HTTPException(413, f"the request has more than {most} bytes")
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    added.setdefault(name, value)
                host = headers.get("host", "")
                sockets = f" ws://{host} wss://{host}" if HOST.fullmatch(host) else ""
                added.setdefault("Content-Security-Policy", POLICY.format(sockets=sockets))
                added.setdefault("Cache-Control", "no-store" if scope["path"].startswith(GUARDED) else "no-cache")
            try:
                await asyncio.wait_for(send(message), SEND_SECONDS)
            except asyncio.TimeoutError:
                raise UnreadError from None

        with contextlib.suppress(UnreadError):  # uvicorn closes the connection of a response that is not complete
            await self.app(scope, counted, guarded)


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    """The host and port of an origin; empty if it is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _most(path: str) -> int:
    return MOST_BODY_WITH_IMAGE if path in WITH_IMAGE else MOST_BODY


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"www-authenticate", b"Bearer")] if status == 401 else []
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})
            return
        kind = "websocket.http.response"
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
