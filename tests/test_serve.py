"""`lolrt serve` over HTTP and WebSocket: sessions, and those who watch them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
from serving import PROMPT, Server
from websockets.sync.client import ClientConnection, connect

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--max-sessions", 3, "--lease", 20) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left(server: Server) -> Iterator[None]:
    yield
    for session in server.json("GET", "/v1/sessions")["data"]:
        server.json("DELETE", f"/v1/sessions/{session['id']}")


class Viewer:
    """A client of `watch`: messages in their order, each with the bytes that follow it."""

    def __init__(self, server: Server, id: str, first: int | None = 0) -> None:
        asked = "" if first is None else f"?from={first}"
        self._connection = connect(f"{server.sockets}/v1/sessions/{id}/watch{asked}", max_size=None)

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


def test_a_viewer_sees_the_video_of_the_pipeline(server, tiny):
    """Against a stream that is made here: the same pictures, a pixel a square, but for what the encoder loses."""
    with Viewer(server, server.open(probe=True)) as viewer:
        assert viewer.start["type"] == "video.start" and viewer.start["sequence"] == 0
        chunks = viewer.chunks(3)
    assert [message["sequence"] for message, _ in chunks] == [0, 1, 2]
    assert [(message["first_frame"], message["num_frames"]) for message, _ in chunks] == [(0, 9), (9, 12), (21, 12)]
    seen = pictures(viewer.init + b"".join(data for _, data in chunks))
    stream = tiny.stream(PROMPT, seed=3, probe=True)
    made = [next(stream) for _ in range(3)]
    wanted = np.concatenate([chunk.frames.numpy() for chunk in made]).repeat(4, 1).repeat(4, 2)
    assert seen.shape == wanted.shape and np.abs(seen.astype(int) - wanted).mean() < 3
    other = pictures(viewer.init + chunks[2][1])  # a fragment alone
    assert np.array_equal(other, seen[21:])
    for (message, _), chunk in zip(chunks, made, strict=True):
        mass = chunk.mass[..., : chunk.sink_frames].sum(-1).mean(-1)
        assert np.allclose(message["sink_mass"], mass.numpy(), atol=0.02)
