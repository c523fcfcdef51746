"""Effects of the clock on `lolrt serve`: the whole process stops for a while, and the wall clock jumps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from serving import PROMPT, Server, Viewer
from websockets.sync.client import ClientConnection, connect


def next_chunk(socket: ClientConnection) -> dict:
    while (message := json.loads(socket.recv(timeout=60)))["type"] != "video.chunk_metadata":
        assert message["type"] in ("video.start", "session.pong"), message
    socket.recv(timeout=60)
    return message


@pytest.mark.parametrize("seconds", [pytest.param(7, marks=pytest.mark.whole), pytest.param(65, marks=pytest.mark.slow)])
def test_a_server_that_was_stopped_goes_on(quick_model, seconds):
    """As by SIGSTOP, or in a debugger. Viewers get the next chunk. Sessions that belong to a connection, and those without viewers, are
    still there: time in which the server did not run does not count."""
    with Server("--model", quick_model) as server:
        watched = server.open()
        start = {"type": "session.start", "prompt": PROMPT}
        with Viewer(server, watched) as viewer, connect(f"{server.sockets}/v1/realtime/video", ping_interval=None, max_size=None) as client:
            client.send(json.dumps(start))
            first = next_chunk(client)["sequence"]
            seen = viewer.chunks(2)
            waiting = server.open(lease_seconds=seconds - 1)
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            server.process.send_signal(signal.SIGCONT)
            time.sleep(1.5)  # leases are looked at each second
            assert server.json("GET", f"/v1/sessions/{waiting}")["state"] == "live"
            seen += viewer.chunks(4)
            assert [next_chunk(client)["sequence"] for _ in range(4)] == [first + 1 + i for i in range(4)]
        assert [message["sequence"] for message, _ in seen] == list(range(6))


@pytest.fixture(scope="module")
def clock(tmp_path_factory) -> dict[str, str]:
    """Variables of a process whose wall clock can be moved by writing a file."""
    folder = tmp_path_factory.mktemp("clock")
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", folder / "clock.so", Path(__file__).with_name("clock_jump.c"), "-ldl"]
    subprocess.run(command, check=True)
    (folder / "offset").write_text("0")
    return {"LD_PRELOAD": str(folder / "clock.so"), "CLOCK_OFFSET": str(folder / "offset")}


@pytest.mark.slow
def test_the_wall_clock_jumps(quick_model, tmp_path, clock):
    """By a day, forwards and back: no lease and no lifetime ends because of it, and no chunk and no clip is lost. A server that is
    restarted when the clock shows yesterday goes on too."""
    options = ["--model", quick_model, "--state", tmp_path, "--save-every", 0.5, "--max-lifetime", 3600]
    offset = Path(clock["CLOCK_OFFSET"])
    with Server(*options, environment=clock) as server:
        clip = server.json("POST", "/v1/videos", {"prompt": PROMPT, "seconds": 0.2})["id"]
        while server.json("GET", f"/v1/videos/{clip}")["status"] != "completed":
            time.sleep(0.1)
        id = server.open(lease_seconds=600)
        with Viewer(server, id) as viewer:
            seen = viewer.chunks(2)
            created = server.json("GET", f"/v1/sessions/{id}")["created"]
            for jump in (86400, -86400):
                offset.write_text(str(jump))
                seen += viewer.chunks(4)
                time.sleep(1.5)
                other = server.open()
                assert server.json("GET", f"/v1/sessions/{other}")["created"] - created == pytest.approx(jump, abs=300)
                server.json("DELETE", f"/v1/sessions/{other}")
                assert server.json("GET", f"/v1/videos/{clip}")["status"] == "completed"
                chunks = server.json("GET", f"/v1/sessions/{id}")["statistics"]
                assert chunks["interval_p99"] < 600 and chunks["stall_seconds"] < 600
        server.kill()
    with Server(*options, environment=clock) as again, Viewer(again, id, len(seen)) as viewer:
        seen += viewer.chunks(2)
        time.sleep(1.5)
        assert again.json("GET", f"/v1/sessions/{id}")["state"] == "live"
    assert [message["sequence"] for message, _ in seen] == list(range(12))
