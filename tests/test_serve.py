"""`lolrt serve` over HTTP and WebSocket: sessions, and those who watch them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from serving import PROMPT, Server, Viewer, pictures

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
