"""`lolrt serve --state`: sessions that outlive their server, however it ends."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from serving import PROMPT, Server, Viewer, pictures

import lolrt
from lolrt.serve.state import Store

pytestmark = pytest.mark.whole

OTHER = "a blue boat on the sea at night"


def interact(server: Server, id: str, event_id: str, prompt: str) -> dict[str, Any]:
    return server.json("POST", f"/v1/sessions/{id}/interactions", {"event_id": event_id, "event": {"prompt": prompt}})


def wanted(pipe: lolrt.Pipeline, chunks: list[dict[str, Any]]) -> np.ndarray:
    """The video of a stream that is made here without an interruption, with the prompts that the chunks name."""
    stream = pipe.stream(PROMPT, seed=3)
    made = []
    for chunk in chunks:
        if chunk["started_event_ids"]:
            stream.set_prompt(chunk["prompt"])
        made.append(next(stream).frames.numpy())
    return np.concatenate(made).repeat(4, 1).repeat(4, 2)


def counted(server: Server, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.ask("GET", "/metrics")[2].decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_a_session_comes_back_after_a_kill_with_the_same_frames(quick, quick_model, tmp_path):
    """Viewers continue without a gap or a repeat, so does the timeline, and an interaction that has been applied is not applied again."""
    with Server("--model", quick_model, "--state", tmp_path, "--save-every", 0.6) as first:
        id = first.open(lease_seconds=100)
        with Viewer(first, id) as viewer:
            seen = viewer.chunks(1)
            assert interact(first, id, "change", OTHER)["sequence"] == 0
            seen += viewer.chunks(4)
        first.kill()
    with Server("--model", quick_model, "--state", tmp_path, "--save-every", 0.6) as second:
        with Viewer(second, id, len(seen)) as viewer:
            seen += viewer.chunks(2)
        assert counted(second, 'lolrt_chunks_replayed_total{same="true"}') > 0
        assert counted(second, 'lolrt_chunks_replayed_total{same="false"}') == 0
        assert interact(second, id, "change", OTHER)["sequence"] == 0
        assert second.json("GET", f"/v1/sessions/{id}")["next_interaction"] == 1
        with Viewer(second, id, 0) as late:  # frames that were seen before are there as well
            assert late.chunks(len(seen)) == seen
        playlist = second.ask("GET", f"/v1/sessions/{id}/live.m3u8")[2].decode()
        assert "#EXT-X-MEDIA-SEQUENCE:0" in playlist and "\n0.m4s" in playlist
        second.json("DELETE", f"/v1/sessions/{id}")
    assert [message["sequence"] for message, _ in seen] == list(range(len(seen)))
    assert sum(message["started_event_ids"] == ["change"] for message, _ in seen) == 1
    messages = [message for message, _ in seen]
    video = pictures(viewer.init + b"".join(data for _, data in seen))
    assert np.abs(video.astype(int) - wanted(quick, messages)).mean() < 3
    assert not list((tmp_path / "sessions").iterdir())  # it was ended


def test_an_interaction_outlives_a_kill_before_its_chunk(quick_model, tmp_path):
    """A session is paused for long; what was accepted meanwhile takes effect when it goes on, once."""
    with Server("--model", quick_model, "--state", tmp_path, "--save-every", 0.6) as first:
        id = first.open(lease_seconds=100)
        with Viewer(first, id) as viewer:
            seen = viewer.chunks(2)
            first.json("POST", f"/v1/sessions/{id}/pause")
            while (message := viewer.next())[0]["type"] != "session.paused":
                seen.append(message)
        while first.json("GET", f"/v1/sessions/{id}")["kept"]["sequence"] != len(seen):
            pass
        assert interact(first, id, "change", OTHER)["sequence"] == 0
        first.kill()
    for _ in range(2):
        with Server("--model", quick_model, "--state", tmp_path, "--save-every", 1000) as second:
            assert second.json("GET", f"/v1/sessions/{id}")["next_interaction"] == 1
            assert interact(second, id, "change", OTHER)["sequence"] == 0
            second.json("POST", f"/v1/sessions/{id}/continue")
            with Viewer(second, id, len(seen)) as viewer:
                seen += viewer.chunks(2)
            second.kill()
    assert [message["started_event_ids"] for message, _ in seen[-4:]] == [["change"], [], [], []]
    assert {message["prompt"] for message, _ in seen[-4:]} == {OTHER}


def test_sessions_go_on_where_they_were_when_the_server_was_ended(quick_model, tmp_path):
    """One is paused; another plays and has a pending interaction; a third belongs to a connection, and ends with it."""
    with Server("--model", quick_model, "--state", tmp_path, "--save-every", 1000) as first:
        playing, paused = first.open(session_id="playing"), first.open(session_id="paused")
        first.json("POST", f"/v1/sessions/{paused}/pause")
        with Viewer(first, playing) as viewer:
            seen = viewer.chunks(2)
            interact(first, playing, "change", OTHER)
            first.process.send_signal(signal.SIGTERM)
            while (message := viewer.next())[0]["type"] != "session.done":
                seen.append(message)
            assert message[0]["reason"] == "shutdown"
        assert first.process.wait(timeout=60) == 0
    with Server("--model", quick_model, "--state", tmp_path) as second:
        states = {session["id"]: session["state"] for session in second.json("GET", "/v1/sessions")["data"]}
        assert states == {"playing": "live", "paused": "paused"}
        with Viewer(second, playing, len(seen)) as viewer:
            seen += viewer.chunks(2)
        assert counted(second, 'lolrt_chunks_replayed_total{same="true"}') == 0  # nothing had to be made again
    assert [message["sequence"] for message, _ in seen] == list(range(len(seen)))
    assert sum(message["started_event_ids"] == ["change"] for message, _ in seen) == 1


def test_what_cannot_be_brought_back_stays_on_the_disk(quick_model, tmp_path):
    """Also, only one server at a time uses a folder."""
    with Server("--model", quick_model, "--state", tmp_path) as first:
        for id in ("good", "damaged", "other"):
            first.open(session_id=id)
        command = [sys.executable, "-m", "lolrt", "serve", "--port", "0", "--model", str(quick_model), "--state", str(tmp_path)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 2 and "another server keeps its sessions in" in refused.stderr
    snapshot = tmp_path / "sessions" / "damaged" / "session.safetensors"
    content = bytearray(snapshot.read_bytes())
    content[-10] ^= 255
    snapshot.write_bytes(content)
    (tmp_path / "sessions" / "other" / "session.safetensors").write_bytes(b"{}")
    log = tmp_path / "log"
    with Server("--model", quick_model, "--state", tmp_path, log=log) as second:
        assert [session["id"] for session in second.json("GET", "/v1/sessions")["data"]] == ["good"]
        with Viewer(second, "good", None) as viewer:
            viewer.chunks(1)
        status, _, told = second.ask("POST", "/v1/sessions", {"prompt": PROMPT, "session_id": "damaged"})
        assert status == 409 and b"session_exists" in told
    logged = log.read_text()
    assert "session damaged stays on the disk" in logged and "session other stays on the disk" in logged
    assert snapshot.read_bytes() == content


def test_what_a_server_did_not_write_stays(tmp_path):
    """Only what a server has left that was killed before the first snapshot is removed."""
    folder, store = tmp_path / "sessions", Store(tmp_path, lambda _: None)
    left = [folder / "left" / name for name in ("chunks/0", "chunks/1.partial", "journal.json", "session.safetensors.7.partial")]
    others = [folder / name for name in ("photos/2024/a.jpg", "notes/chunks/a.txt", "moved/claims/1")]
    for path in left + others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert store.ids() == []
    store.close()
    assert not (folder / "left").exists() and all(path.exists() for path in others)


def test_a_session_goes_on_when_the_disk_is_full(quick_model, tmp_path):
    """A limit on the size of files simulates the disk: writes fail in the middle, and no incomplete file replaces a complete one."""
    with Server("--model", quick_model, "--state", tmp_path, "--save-every", 0.5) as server:
        id = server.open(lease_seconds=100)
        with Viewer(server, id) as viewer:
            viewer.chunks(2)
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
            viewer.chunks(2)
            kept = server.json("GET", f"/v1/sessions/{id}")["kept"]
            assert kept["failures"] > 1 and kept["error"]
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            viewer.chunks(3)
            assert server.json("GET", f"/v1/sessions/{id}")["kept"]["error"] is None
        server.kill()
    with Server("--model", quick_model, "--state", tmp_path) as again, Viewer(again, id, 7) as viewer:
        assert [message["sequence"] for message, _ in viewer.chunks(2)] == [7, 8]
        again.json("DELETE", f"/v1/sessions/{id}")
    assert not list((tmp_path / "sessions").iterdir())  # no incomplete file was left anywhere
