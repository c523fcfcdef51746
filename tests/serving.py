"""`lolrt serve` in a process of its own, for tests, and what a client of it says over HTTP."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
import uvicorn
from websockets.sync.client import ClientConnection, connect

import lolrt
from lolrt.serve.app import make_app
from lolrt.serve.hub import Fragment
from lolrt.serve.server import listening
from lolrt.serve.settings import Settings

PROMPT = "a red car by the sea"


def fragment(sequence: int, seconds: float = 0.75) -> Fragment:
    """A chunk as a hub holds it."""
    return Fragment(sequence, {"seconds": seconds}, b"x" * sequence)


class Client:
    """Who asks a server at an address."""

    def __init__(self, address: str) -> None:
        self.address = address

    @property
    def sockets(self) -> str:
        """Where WebSockets begin."""
        return self.address.replace("http", "ws", 1)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers with small letters, and body of an answer."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        asked = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json", **headers}, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, {name.lower(): value for name, value in refused.headers.items()}, refused.read()

    def json(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """What is answered, which has to be yes."""
        status, _, content = self.ask(method, path, body, **headers)
        assert status < 300, content
        return json.loads(content) if content else None

    def open(self, prompt: str = PROMPT, **wanted: Any) -> str:
        return self.json("POST", "/v1/sessions", {"prompt": prompt, "seed": 3, **wanted})["id"]


class Server(Client):
    """A context manager: listens when it is entered, at any port that is free; ended by SIGTERM."""

    def __init__(
        self,
        *options: object,
        program: tuple[str, ...] = ("-m", "lolrt"),
        environment: dict[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self._command = [sys.executable, *program, "serve", "--port", "0", *map(str, options)]
        self._environment, self._log = {**os.environ, **(environment or {})}, log

    def __enter__(self) -> Server:
        errors = None if self._log is None else open(self._log, "ab")
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=errors, text=True, env=self._environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert re.fullmatch(r"http://\S+:\d+", line), line
        super().__init__(line)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(timeout=60)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=60)


@contextlib.contextmanager
def in_this_process(pipe: lolrt.Pipeline) -> Iterator[Client]:
    """A server in a thread, with room for one session."""
    listener = listening("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(pipe, Settings(max_sessions=1)), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join()


class Viewer:
    """A client of `watch`: messages in their order, each with the bytes that follow it."""

    def __init__(self, server: Client, id: str, first: int | None = 0) -> None:
        asked = "" if first is None else f"?from={first}"
        self._connection = connect(f"{server.sockets}/v1/sessions/{id}/watch{asked}", max_size=None, ping_interval=None)

    def __enter__(self) -> Viewer:
        self.socket: ClientConnection = self._connection.__enter__()
        self.start, self.init = self.next()
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def next(self) -> tuple[dict[str, Any], bytes]:
        message = json.loads(self.socket.recv(timeout=60))
        data = self.socket.recv(timeout=60) if "byte_length" in message else b""
        assert isinstance(data, bytes) and len(data) == message.get("byte_length", 0)
        return message, data

    def chunks(self, count: int) -> list[tuple[dict[str, Any], bytes]]:
        """The next ones; nothing else may come."""
        found = [self.next() for _ in range(count)]
        assert all(message["type"] == "video.chunk_metadata" for message, _ in found), found
        return found


def pictures(data: bytes) -> np.ndarray:
    """The frames of an mp4, [n, height, width, 3]."""
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
