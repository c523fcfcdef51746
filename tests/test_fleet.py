"""A fleet without Ray: replicas in threads, a lease service and a gateway, as they are in one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from serving import PROMPT, Client, Viewer, pictures
from test_serve_webrtc import watching

import lolrt
from lolrt.serve.encoding import ChunkEncoder
from lolrt.serve.settings import Settings

pytest.importorskip("aiohttp", reason="needs pip install 'lolrt[fleet]'")

from lolrt.fleet.gateway import make_gateway
from lolrt.fleet.lease import Beat, Orders
from lolrt.fleet.replica import Replica
from lolrt.fleet.service import LeaseService

pytestmark = pytest.mark.whole

OTHER = "a blue boat on the sea at night"


class Lines:
    """The lease service, and the way to it of each who asks, which can be cut."""

    def __init__(self, service: LeaseService) -> None:
        self.service, self.cut = service, False

    async def beat(self, beat: Beat) -> tuple[Orders, float, float]:
        if self.cut:
            raise OSError("the network is cut")
        return await self.service.beat(beat)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.service, name)


class Fleet:
    def __init__(self, pipe: lolrt.Pipeline, state: Path) -> None:
        self.pipe, self.state = pipe, state
        self.service = LeaseService(str(state), 3.0)
        self.replicas: dict[str, tuple[Replica, Lines]] = {}

    def add(self, name: str, sessions: int = 4) -> None:
        lines = Lines(self.service)
        settings = Settings(max_sessions=sessions, save_every_seconds=0.6)
        replica = Replica(name, self.pipe, settings, str(self.state), lines, "127.0.0.1")
        replica.start()
        assert replica.address_when_ready
        self.replicas[name] = replica, lines

    def owner(self, id: str) -> str:
        """The replica that has a session, when one has it."""
        while (address := asyncio.run(self.service.locate([id])).get(id)) is None:
            time.sleep(0.05)
        return next(name for name, (replica, _) in self.replicas.items() if replica.address == address)


@pytest.fixture
def fleet(quick, tmp_path, one_thread) -> Iterator[tuple[Fleet, Client]]:
    made = Fleet(quick, tmp_path)
    server = uvicorn.Server(uvicorn.Config(make_gateway(made.service), port=0, log_level="warning", timeout_graceful_shutdown=1))

    async def run() -> None:
        watching = asyncio.create_task(made.service.watch_store())
        await server.serve()
        watching.cancel()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield made, Client(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    for replica, _ in made.replicas.values():
        if replica.is_alive():
            replica.leave(0.0)
    server.should_exit = True
    thread.join()


def undisturbed(pipe: lolrt.Pipeline, chunks: list[tuple[dict[str, Any], bytes]], seed: int) -> list[str]:
    """The hashes of a session's fragments, made by a stream that nothing happens to but the prompts that chunks tell of."""
    stream, encoder, made = pipe.stream(PROMPT, seed=seed), ChunkEncoder(pipe.height, pipe.width, pipe.fps, Settings().crf), []
    for message, _ in chunks:
        if message["started_event_ids"]:
            stream.set_prompt(message["prompt"])
        made.append(hashlib.sha256(encoder.encode(next(stream).frames)).hexdigest())
    return made


def hashes(chunks: list[tuple[dict[str, Any], bytes]]) -> list[str]:
    return [hashlib.sha256(data).hexdigest() for _, data in chunks]


def test_sessions_move_from_a_replica_that_ends_and_viewers_see_nothing_of_it(fleet, quick):
    """One after the other; interactions go where the session is. With the first replica gone, the second has both."""
    made, gateway = fleet
    made.add("a", sessions=2)
    ids = [gateway.open(session_id=f"s{seed}", seed=seed, lease_seconds=600) for seed in range(2)]
    assert gateway.ask("POST", "/v1/sessions", {"prompt": PROMPT})[0] == 429
    assert gateway.ask("POST", "/v1/sessions", {"prompt": PROMPT, "session_id": "s0"})[0] == 409
    with Viewer(gateway, ids[0]) as first, Viewer(gateway, ids[1]) as second:
        seen = {id: viewer.chunks(2) for id, viewer in zip(ids, (first, second), strict=True)}
        made.add("b", sessions=2)
        gateway.json("POST", f"/v1/sessions/{ids[0]}/interactions", {"event_id": "e", "event": {"prompt": OTHER}})
        made.replicas["a"][0].leave(60.0)
        assert {made.owner(id) for id in ids} == {"b"}
        gateway.json("POST", f"/v1/sessions/{ids[1]}/interactions", {"event_id": "f", "event": {"prompt": OTHER}})
        for id, viewer in zip(ids, (first, second), strict=True):
            while not any(message["started_event_ids"] for message, _ in seen[id]):
                seen[id] += viewer.chunks(1)
            seen[id] += viewer.chunks(2)
    assert {session["id"] for session in gateway.json("GET", "/v1/sessions")["data"]} == set(ids)
    for seed, id in enumerate(ids):
        assert [message["sequence"] for message, _ in seen[id]] == list(range(len(seen[id])))
        assert [event for message, _ in seen[id] for event in message["started_event_ids"]] == ["ef"[seed]]
        assert hashes(seen[id]) == undisturbed(quick, seen[id], seed)
        gateway.json("DELETE", f"/v1/sessions/{id}")
        assert gateway.json("GET", f"/v1/sessions/{id}")["state"] == "ended"


def test_who_was_away_at_the_end_of_a_session_still_gets_the_rest_by_the_gateway(fleet):
    """From the replica that had it, also when the lease service knows nothing of it any more."""
    made, gateway = fleet
    made.add("a")
    made.add("b")
    id = gateway.open(lease_seconds=600)
    owner = made.owner(id)
    with Viewer(gateway, id) as viewer:
        viewer.chunks(1)
    gateway.json("DELETE", f"/v1/sessions/{id}")
    while asyncio.run(made.service.locate([id])):
        time.sleep(0.05)
    told = gateway.json("GET", f"/v1/sessions/{id}")
    assert (told["state"], told["reason"]) == ("ended", "closed")
    with Viewer(gateway, id, 0) as again:
        chunks = again.chunks(told["next_sequence"])
        assert again.next()[0] == {"type": "session.done", "reason": "closed"}
    playlist = gateway.ask("GET", f"/v1/sessions/{id}/live.m3u8")[2].decode()
    assert playlist.endswith("#EXT-X-ENDLIST\n") and gateway.ask("GET", f"/v1/sessions/{id}/0.m4s")[2] == chunks[0][1]
    made.replicas[owner][0].sessions._ended.clear()  # as after a minute
    assert gateway.ask("GET", f"/v1/sessions/{id}")[0] == 404
    with contextlib.closing(Viewer(gateway, id)._connection) as socket:
        assert '"not_found"' in socket.recv()
    made.replicas[owner][0].leave(0.0)
    while gateway.ask("GET", f"/v1/sessions/{id}")[0] != 404:  # until it is known that the replica is gone
        time.sleep(0.1)


def test_a_replica_that_is_cut_off_stops_and_another_goes_on(fleet, quick):
    """It reaches the store and viewers, but not the lease service."""
    made, gateway = fleet
    made.add("a")
    id = gateway.open(seed=5, lease_seconds=600)
    made.add("b")
    with Viewer(gateway, id) as viewer:
        seen = viewer.chunks(3)
        made.replicas["a"][1].cut = True
        while "b" not in [name for name, (replica, _) in made.replicas.items() if list(replica.sessions)]:
            seen += viewer.chunks(1)
        seen += viewer.chunks(3)
        assert not list(made.replicas["a"][0].sessions)
        made.replicas["a"][1].cut = False
        seen += viewer.chunks(2)
    assert [message["sequence"] for message, _ in seen] == list(range(len(seen)))
    assert hashes(seen) == undisturbed(quick, seen, 5)


def test_by_webrtc_a_viewer_gets_the_video_from_the_replica_that_has_the_session(fleet):
    """The gateway passes the offer, the answer and the end of a connection on, and nothing in between."""
    made, gateway = fleet
    made.add("a")
    made.add("b")
    ids = [gateway.open(lease_seconds=600) for _ in range(2)]
    assert {made.owner(id) for id in ids} == {"a", "b"}

    async def look(id: str) -> tuple[int, np.ndarray]:
        async with watching(gateway, id) as viewer:
            frames = await viewer.frames(20)
            assert gateway.ask("DELETE", viewer.path)[0] == 204
        return viewer.first, frames

    for id in ids:
        first, frames = asyncio.run(look(id))
        with Viewer(gateway, id) as viewer:
            chunks = viewer.chunks(first + 2)
        assert np.array_equal(frames, pictures(viewer.init + b"".join(data for _, data in chunks[first:]))[:20])


def test_a_clip_is_found_on_whichever_replica_made_it(fleet):
    made, gateway = fleet
    made.add("a")
    made.add("b")
    ids = {}
    for name, (replica, _) in made.replicas.items():
        ids[name] = Client(f"http://{replica.address}").json("POST", "/v1/videos", {"prompt": PROMPT, "seconds": 1})["id"]
    ids["any"] = gateway.json("POST", "/v1/videos", {"prompt": PROMPT, "seconds": 1})["id"]
    assert {clip["id"] for clip in gateway.json("GET", "/v1/videos")["data"]} == set(ids.values())
    for id in ids.values():
        while gateway.json("GET", f"/v1/videos/{id}")["status"] != "completed":
            time.sleep(0.05)
        assert len(pictures(gateway.ask("GET", f"/v1/videos/{id}/content")[2])) == made.pipe.fps
    gateway.json("DELETE", f"/v1/videos/{ids['a']}")
    assert gateway.ask("GET", f"/v1/videos/{ids['a']}")[0] == 404
    assert gateway.ask("GET", f"/v1/videos/{ids['b']}")[0] == 200
    made.replicas["b"][0].leave(0.0)
    assert gateway.ask("GET", f"/v1/videos/{ids['b']}")[0] in (404, 503)


def test_what_the_gateway_passes_on(fleet):
    made, gateway = fleet
    assert gateway.ask("GET", "/readyz")[0] == 503 and gateway.ask("GET", "/health")[0] == 200
    assert gateway.ask("POST", "/v1/sessions", {"prompt": PROMPT})[0] == 429
    assert gateway.ask("GET", "/v1/sessions/none")[0] == 404
    made.add("a")
    while gateway.ask("GET", "/readyz")[0] != 200:
        time.sleep(0.05)
    assert gateway.json("GET", "/v1/models")["data"][0]["id"] == "quick"
    assert b"<html" in gateway.ask("GET", "/")[2].lower()
    id = gateway.open(lease_seconds=600)
    branch = gateway.json("POST", f"/v1/sessions/{id}/branch", {})["id"]
    with Viewer(gateway, branch, None) as viewer:
        viewer.chunks(1)
    assert gateway.ask("GET", f"/v1/sessions/{branch}/init.mp4")[2][4:8] == b"ftyp"
    assert gateway.ask("GET", "/v1/models", Host="elsewhere.example")[0] == 403
    with contextlib.closing(Viewer(gateway, "none")._connection) as socket:
        assert '"not_found"' in socket.recv()
