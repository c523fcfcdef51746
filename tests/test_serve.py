"""`lolrt serve` over HTTP and WebSocket: sessions and their viewers."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import PROMPT, Server, Viewer, pictures

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def temporary(tmp_path_factory) -> Path:
    """The temporary folder of the server."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(quick_model, temporary) -> Iterator[Server]:
    with Server("--model", quick_model, "--max-sessions", 3, "--lease", 20, environment={"TMPDIR": str(temporary)}) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_left(server: Server) -> Iterator[None]:
    yield
    for session in server.json("GET", "/v1/sessions")["data"]:
        server.json("DELETE", f"/v1/sessions/{session['id']}")


def test_a_viewer_sees_the_video_of_the_pipeline(server, quick):
    """Against a stream that is made here: the same pictures, one pixel per square, except for the loss of the encoder."""
    with Viewer(server, server.open(probe=True)) as viewer:
        assert viewer.start["type"] == "video.start" and viewer.start["sequence"] == 0
        chunks = viewer.chunks(3)
    assert [message["sequence"] for message, _ in chunks] == [0, 1, 2]
    assert [(message["first_frame"], message["num_frames"]) for message, _ in chunks] == [(0, 9), (9, 12), (21, 12)]
    seen = pictures(viewer.init + b"".join(data for _, data in chunks))
    stream = quick.stream(PROMPT, seed=3, probe=True)
    made = [next(stream) for _ in range(3)]
    wanted = np.concatenate([chunk.frames.numpy() for chunk in made]).repeat(4, 1).repeat(4, 2)
    assert seen.shape == wanted.shape and np.abs(seen.astype(int) - wanted).mean() < 3
    other = pictures(viewer.init + chunks[2][1])  # a fragment by itself
    assert np.array_equal(other, seen[21:])
    for (message, _), chunk in zip(chunks, made, strict=True):
        mass = chunk.mass[..., : chunk.sink_frames].sum(-1).mean(-1)
        assert np.allclose(message["sink_mass"], mass.numpy(), atol=0.02)


OTHER = "a blue boat on the sea at night"


def refused(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    """Status and code of an error answer."""
    status, headers, content = answer
    assert headers["content-type"] == "application/json"
    error = json.loads(content)["error"]
    assert error["message"] and (status != 429 or int(headers["retry-after"]) > 0)
    return status, error["code"]


def test_many_watch_what_is_encoded_once(server):
    """A late viewer begins at the newest chunk, or where it asks to; all viewers get the same bytes."""
    id = server.open()
    with Viewer(server, id) as first:
        chunks = first.chunks(3)
        with Viewer(server, id, None) as second, Viewer(server, id, 1) as third, Viewer(server, id, 0) as fourth:
            newest = second.chunks(1)[0]
            assert newest[0]["sequence"] >= 2 and newest == fourth.chunks(newest[0]["sequence"] + 1)[-1]
            assert third.chunks(2) == chunks[1:3]
            assert server.json("GET", f"/v1/sessions/{id}")["viewers"] == 4
        server.json("DELETE", f"/v1/sessions/{id}")
        while (message := first.next()[0])["type"] != "session.done":
            pass
        assert message["reason"] == "closed"
    with Viewer(server, "none") as gone:
        assert gone.start["type"] == "error" and gone.start["code"] == "not_found"


def test_who_was_away_at_the_end_of_a_session_still_gets_the_rest(server):
    """By each way that does not need the engine, until another session has the name."""
    id = server.open(session_id="name", probe=True)
    with Viewer(server, id) as viewer:
        seen, radians = viewer.chunks(2), viewer.start["radians"]
        with Viewer(server, id) as present:
            server.json("DELETE", f"/v1/sessions/{id}")
            whole = list(iter(present.next, ({"type": "session.done", "reason": "closed"}, b"")))
    with Viewer(server, id, 2) as again:
        assert again.start["state"] == "ended" and again.start["reason"] == "closed" and again.start["radians"] == radians
        rest = list(iter(again.next, ({"type": "session.done", "reason": "closed"}, b"")))
    assert again.init == viewer.init and seen + rest == whole
    told = server.json("GET", f"/v1/sessions/{id}")
    assert (told["state"], told["reason"], told["next_sequence"]) == ("ended", "closed", len(whole))
    assert told["bytes"] == sum(len(data) for _, data in whole) and 0 < told["expires_in"] <= 60
    playlist = server.ask("GET", f"/v1/sessions/{id}/live.m3u8")[2].decode()
    names = re.findall(r"^\d+\.m4s$", playlist, re.MULTILINE)
    assert playlist.endswith("#EXT-X-ENDLIST\n") and names == [f"{message['sequence']}.m4s" for message, _ in whole]
    parts = [server.ask("GET", f"/v1/sessions/{id}/{name}")[2] for name in ("init.mp4", *names)]
    assert parts == [viewer.init, *(data for _, data in whole)]
    assert server.json("GET", "/v1/sessions")["data"] == []
    for method, path, body in (("DELETE", "", None), ("POST", "/interactions", {"event": {"prompt": OTHER}}), ("POST", "/pause", {})):
        assert refused(server.ask(method, f"/v1/sessions/{id}{path}", body)) == (404, "not_found")
    server.open(session_id="name")
    assert server.json("GET", f"/v1/sessions/{id}")["state"] == "live"
    with Viewer(server, id) as new:
        assert new.chunks(1)[0][0]["sequence"] == 0
    assert "#EXT-X-ENDLIST" not in server.ask("GET", f"/v1/sessions/{id}/live.m3u8")[2].decode()


def test_a_prompt_changes_once_and_in_its_turn(server):
    id = server.open()
    ask = {"event_id": "one", "event": {"prompt": OTHER}, "sequence": 0}
    with Viewer(server, id) as viewer:
        viewer.chunks(1)
        path = f"/v1/sessions/{id}/interactions"
        for _ in range(2):
            assert server.json("POST", path, ask) == {"type": "session.interaction.queued", "event_id": "one", "sequence": 0}
        assert refused(server.ask("POST", path, {**ask, "event": {"prompt": PROMPT}})) == (409, "event_id_conflict")
        assert refused(server.ask("POST", path, {**ask, "event_id": "two"})) == (409, "sequence_conflict")
        assert refused(server.ask("POST", path, {"event": {"prompt": "a zebra"}})) == (400, "invalid")
        assert refused(server.ask("POST", path, {"event": {"prompt": OTHER}, "more": 1})) == (422, "invalid")
        chunks = [message for message, _ in viewer.chunks(3)]
    assert [chunk["started_event_ids"] for chunk in chunks].count(["one"]) == 1
    assert chunks[-1]["prompt"] == OTHER == server.json("GET", f"/v1/sessions/{id}")["prompt"]
    assert server.json("GET", f"/v1/sessions/{id}")["next_interaction"] == 1


def test_a_branch_goes_on_from_the_same_moment(server, quick):
    """Both futures are compared with a stream that is made here and forked by its state. Frames, sequence and timeline continue."""
    id = server.open()
    with Viewer(server, id) as viewer:
        chunks = viewer.chunks(2)
        branch = server.json("POST", f"/v1/sessions/{id}/branch", {})
        server.json("POST", f"/v1/sessions/{branch['id']}/interactions", {"event": {"prompt": OTHER}})
        first = branch["next_sequence"]
        chunks += viewer.chunks(first + 2 - len(chunks))
    with Viewer(server, branch["id"], first) as viewer:
        other = viewer.chunks(3)
    assert [message["sequence"] for message, _ in other] == [first, first + 1, first + 2]
    assert [message["first_frame"] for message, _ in other[:2]] == [message["first_frame"] for message, _ in chunks[first : first + 2]]
    stream = quick.stream(PROMPT, seed=3)
    past = [next(stream).frames for _ in range(first)]
    state = stream.state_dict()
    same = next(stream).frames.numpy().repeat(4, 1).repeat(4, 2)
    stream.load_state_dict(state)
    branched = []
    for message, _ in other:
        if message["started_event_ids"]:
            stream.set_prompt(OTHER)
        branched.append(next(stream).frames.numpy())
    video = pictures(viewer.init + b"".join(data for _, data in other))
    assert np.abs(video.astype(int) - np.concatenate(branched).repeat(4, 1).repeat(4, 2)).mean() < 3
    assert np.abs(pictures(viewer.init + chunks[first][1]).astype(int) - same).mean() < 3
    assert sum(len(frames) for frames in past) == other[0][0]["first_frame"]


def test_pausing_and_going_on(server):
    id = server.open()
    with Viewer(server, id) as viewer:
        viewer.chunks(1)
        assert server.json("POST", f"/v1/sessions/{id}/pause")["state"] == "paused"
        seen = [viewer.next()[0]]
        while seen[-1]["type"] != "session.paused":
            seen.append(viewer.next()[0])
        with pytest.raises(TimeoutError):
            viewer.socket.recv(timeout=1.5)  # in this time two chunks would have come
        for _ in range(2):
            assert server.json("POST", f"/v1/sessions/{id}/continue")["state"] == "live"
        assert viewer.next()[0]["type"] == "session.continued"
        assert viewer.chunks(1)[0][0]["sequence"] == len(seen)


def test_a_snapshot_goes_on_elsewhere(server, quick, tmp_path):
    id = server.open()
    with Viewer(server, id) as viewer:
        viewer.chunks(1)
        status, headers, content = server.ask("GET", f"/v1/sessions/{id}/snapshot")
        assert status == 200 and f'filename="{id}.snapshot.safetensors"' in headers["content-disposition"]
        (tmp_path / "taken.safetensors").write_bytes(content)
        stream = quick.resume(tmp_path / "taken.safetensors")
        chunk = next(stream)
        same = next(data for message, data in iter(lambda: viewer.chunks(1)[0], None) if message["first_latent_frame"] == chunk.first_frame)
    assert np.abs(pictures(viewer.init + same).astype(int) - chunk.frames.numpy().repeat(4, 1).repeat(4, 2)).mean() < 3


def test_a_snapshot_for_which_there_is_no_temporary_folder_is_not_the_clients_fault(server, temporary):
    id = server.open()
    away = temporary.rename(temporary.with_name("away"))
    try:
        status, _, content = server.ask("GET", f"/v1/sessions/{id}/snapshot")
    finally:
        away.rename(temporary)
    told = json.loads(content)["error"]
    assert status == 503 and told["code"] == "storage" and "there is no temporary folder" in told["message"]
    assert server.ask("GET", f"/v1/sessions/{id}/snapshot")[0] == 200


def test_hls_and_motion_jpeg_show_the_same_video(server):
    id = server.open()
    with Viewer(server, id) as viewer:
        chunks = viewer.chunks(2)
        playlist = server.ask("GET", f"/v1/sessions/{id}/live.m3u8")
        assert playlist[1]["content-type"] == "application/vnd.apple.mpegurl"
        names = re.findall(r"^\d+\.m4s$", playlist[2].decode(), re.MULTILINE)
        assert names[:2] == ["0.m4s", "1.m4s"] and 'URI="init.mp4"' in playlist[2].decode()
        parts = [server.ask("GET", f"/v1/sessions/{id}/{name}")[2] for name in ("init.mp4", *names[:2])]
        assert parts == [viewer.init, chunks[0][1], chunks[1][1]]
        assert refused(server.ask("GET", f"/v1/sessions/{id}/999.m4s")) == (404, "not_found")
        host, port = server.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as raw:
            raw.sendall(f"GET /v1/sessions/{id}/mjpeg HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            stream = raw.makefile("rb")
            found = []
            while len(found) < 14:  # from the beginning of a chunk into the next one
                while not stream.readline().startswith(b"--"):
                    pass
                header = dict(line.strip().split(b": ") for line in iter(stream.readline, b"\r\n"))
                picture = Image.open(io.BytesIO(stream.read(int(header[b"Content-Length"]))))
                picture.load()
                assert picture.format == "JPEG" and picture.size == (384, 256)
                found.append((float(header[b"Lolrt-Seconds"]), np.asarray(picture)))
        times = [seconds for seconds, _ in found]
        numbers = [round(viewer.start["fps"] * seconds) for seconds in times]
        assert numbers == list(range(numbers[0], numbers[0] + 14)) and np.allclose(
            np.multiply(times, viewer.start["fps"]), numbers, atol=1e-4
        )
        while sum(message["num_frames"] for message, _ in chunks) <= numbers[-1]:
            chunks += viewer.chunks(1)
    shown = pictures(viewer.init + b"".join(data for _, data in chunks))
    for number, (_, picture) in zip(numbers, found, strict=True):
        differences = [np.abs(shown[at].astype(int) - picture).mean() for at in (number - 1, number, number + 1) if at < len(shown)]
        assert differences[1] == min(differences) < 6, (number, differences)


def test_a_session_starts_from_an_image_and_what_is_none_is_refused(server, quick):
    image = np.asarray(Image.effect_noise((96, 64), 60).convert("RGB"))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    start = base64.b64encode(file.getvalue()).decode()
    with Viewer(server, server.open(start=f"data:image/png;base64,{start}")) as viewer:
        (first, data), (second, _) = viewer.chunks(2)
    assert (first["num_frames"], second["first_frame"], second["num_frames"]) == (1, 1, 12)
    stream = quick.stream(PROMPT, seed=3, start=quick.encode_video([torch.from_numpy(image.copy())]))
    wanted = next(stream).frames.numpy().repeat(4, 1).repeat(4, 2)
    assert np.abs(pictures(viewer.init + data).astype(int) - wanted).mean() < 4
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    for wrong in ("", "%%%", base64.b64encode(b"GIF89a...").decode(), start[:200], base64.b64encode(bomb.getvalue()).decode()):
        assert refused(server.ask("POST", "/v1/sessions", {"prompt": PROMPT, "start": wrong})) == (400, "bad_image"), wrong[:20]


def test_a_clip_is_made_and_fetched(server, quick):
    asked = {"prompt": PROMPT, "seconds": "2", "seed": 3, "size": "96x64", "model": "quick"}
    made = server.json("POST", "/v1/videos", asked)
    assert (made["object"], made["status"], made["seconds"], made["size"]) == ("video", "queued", "2", "96x64")
    assert refused(server.ask("GET", f"/v1/videos/{made['id']}/content")) == (409, "not_completed")
    while made["status"] in ("queued", "in_progress"):
        time.sleep(0.05)
        made = server.json("GET", f"/v1/videos/{made['id']}")
    assert made["status"] == "completed" and made["progress"] == 100 and made["error"] is None
    status, headers, content = server.ask("GET", f"/v1/videos/{made['id']}/content")
    stream = quick.stream(PROMPT, seed=3)
    wanted = np.concatenate([next(stream).frames.numpy() for _ in range(9)])[:96].repeat(4, 1).repeat(4, 2)
    video = pictures(content)
    assert (status, headers["content-type"]) == (200, "video/mp4")
    assert video.shape == wanted.shape and np.abs(video.astype(int) - wanted).mean() < 3
    assert [one["id"] for one in server.json("GET", "/v1/videos")["data"]] == [made["id"]]
    assert server.json("DELETE", f"/v1/videos/{made['id']}")["deleted"] is True
    assert refused(server.ask("GET", f"/v1/videos/{made['id']}")) == (404, "not_found")
    for wrong, code in (({"seconds": 1e6}, "invalid"), ({"model": "other"}, "model_mismatch"), ({"size": "720x1280"}, "unsupported_size")):
        assert refused(server.ask("POST", "/v1/videos", {"prompt": PROMPT, **wrong})) == (400, code)


def test_room_leases_and_names(server):
    """There is room for three sessions. A fourth is refused until one ends: because it is closed, or because nobody watches it."""
    names = [server.open(session_id=f"s{i}", lease_seconds=1.5 if i == 0 else 60) for i in range(3)]
    assert refused(server.ask("POST", "/v1/sessions", {"prompt": PROMPT})) == (429, "no_room")
    assert refused(server.ask("POST", "/v1/sessions", {"prompt": PROMPT, "session_id": "s1"})) == (409, "session_exists")
    with Viewer(server, "s2") as viewer:
        while len(server.json("GET", "/v1/sessions")["data"]) == 3:
            time.sleep(0.1)
        viewer.chunks(1)
    assert [session["id"] for session in server.json("GET", "/v1/sessions")["data"]] == names[1:]
    told = server.json("GET", "/v1/sessions/s0")
    assert (told["state"], told["reason"]) == ("ended", "expired")
    server.open()
    assert refused(server.ask("POST", "/v1/sessions", {"prompt": PROMPT, "window": {"recent_frames": 999}})) == (400, "invalid")
    for wrong in (
        {"session_id": "../x"},
        {"session_id": "a/b"},
        {"seed": -1},
        {"lease_seconds": 0},
        {"prompt": "x" * 5000},
        {"rope": {"sigma": "much"}},
    ):
        assert refused(server.ask("POST", "/v1/sessions", {"prompt": PROMPT, **wrong})) == (422, "invalid")
    assert refused(server.ask("POST", "/v1/sessions", b"{" * 5000)) == (422, "invalid")


NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 12, -1, 10**30, 0.5, 1e308, -1e308, float("inf"), float("nan"), "x", None, [], True])


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.sampled_from(["sigma", "theta", "anchor_frames", "bases", "stretch", "length_frames", "jitter_seed", "share"]),
        NUMBERS,
        max_size=3,
    ),
    st.dictionaries(
        st.sampled_from(["sink_frames", "recent_frames", "chunk_frames", "recall_frames", "store_frames", "gate"]), NUMBERS, max_size=3
    ),
    st.sampled_from(["absolute", "window", "anchored", "other"]),
)
def test_whatever_options_are_asked_for_the_server_answers_and_lives(server, rope, window, positions):
    """Invalid options are refused; options that fail only later end only their own session."""
    status, _, content = server.ask("POST", "/v1/sessions", {"prompt": PROMPT, "rope": {**rope, "positions": positions}, "window": window})
    assert status in (201, 400, 422, 429), content
    if status == 201:
        id = json.loads(content)["id"]
        with Viewer(server, id) as viewer:
            assert viewer.next()[0]["type"] in ("video.chunk_metadata", "session.done")
        server.ask("DELETE", f"/v1/sessions/{id}")
    assert server.ask("GET", "/health")[0] == 200


def test_schemas_are_kept_to(server):
    """Schemathesis, with all requests of OpenAPI that it can write: no answer is an error of the server."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.address}/openapi.json", "--checks", "not_a_server_error"]
    command += ["--phases", "fuzzing", "--max-examples", "5", "--exclude-path-regex", "mjpeg|whep", "--warnings", "off", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert re.search(r"Tested: [2-9]\d", done.stdout), done.stdout[-1000:]


def test_metrics_are_those_of_the_document(server):
    """Each of our metrics by its name, and no others."""
    families = text_string_to_metric_families(server.ask("GET", "/metrics")[2].decode())
    names = {family.name for family in families if family.name.startswith("lolrt_") and not family.name.endswith("_created")}
    document = (Path(__file__).parents[1] / "docs" / "serve.md").read_text().partition("## Metrics")[2]
    assert names == set(re.findall(r"`(lolrt_\w+)", document))


def test_metrics_are_those_of_what_happened(server):
    """Read by Prometheus's own parser."""

    def read() -> dict[str, float]:
        families = text_string_to_metric_families(server.ask("GET", "/metrics")[2].decode())
        return {f"{s.name}{sorted(s.labels.items())}": s.value for family in families for s in family.samples}

    before = read()
    id = server.open()
    with Viewer(server, id) as viewer:
        viewer.chunks(1)
        server.json("POST", f"/v1/sessions/{id}/interactions", {"event": {"prompt": OTHER}})
        chunks = viewer.chunks(2)
        during = read()
    size = sum(len(data) for _, data in chunks)
    assert during[f"lolrt_session_bytes[('session', '{id}')]"] > 2e6 and during["lolrt_sessions[('state', 'live')]"] == 1
    assert during["lolrt_viewers[]"] == 1 and during["lolrt_pages_free[]"] == during["lolrt_pages[]"] - 12

    def rise(name: str) -> float:
        return during[name] - before.get(name, 0.0)

    assert rise("lolrt_sessions_opened_total[]") == 1 and rise("lolrt_first_chunk_seconds_count[]") == 1
    assert rise("lolrt_chunks_total[]") >= 3 and rise("lolrt_chunks_timed_total[]") == rise("lolrt_chunks_total[]") - 1
    assert rise("lolrt_chunk_interval_seconds_count[]") == rise("lolrt_chunks_timed_total[]")
    assert rise("lolrt_control_seconds_count[]") == 1 and rise("lolrt_sent_bytes_total[]") >= size
    for stage in ("denoise", "cache", "decode", "encode"):
        assert rise(f"lolrt_stage_seconds_count[('stage', '{stage}')]") == rise("lolrt_chunks_total[]")
    server.json("DELETE", f"/v1/sessions/{id}")
    after = read()
    assert not any(id in name for name in after) and after["lolrt_pages_free[]"] == after["lolrt_pages[]"]


def test_floods_and_silence_cost_the_others_nothing(server):
    """Connections that send half a request, or nothing, or do not read; and a process that is stopped for a while."""
    host, port = server.address.removeprefix("http://").split(":")
    id = server.open()
    silent = [socket.create_connection((host, int(port))) for _ in range(60)]
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    for i, raw in enumerate(silent):
        path = ("/v1/realtime/video", f"/v1/sessions/{id}/watch?from=0", "/v1/sessions")[i % 3]
        whole = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{upgrade}\r\n"
        raw.sendall(whole[: len(whole) // (1 + i // 3 % 2)].encode() + (b"\x81\xfe\xff" if i % 2 else b""))
    with Viewer(server, id) as viewer:
        assert [message["sequence"] for message, _ in viewer.chunks(3)] == [0, 1, 2]
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(2)
        server.process.send_signal(signal.SIGCONT)
        chunks = [message for message, _ in viewer.chunks(4)]
    assert [chunk["sequence"] for chunk in chunks] == [3, 4, 5, 6]
    assert sum(chunk["slack_seconds"] < -1.5 for chunk in chunks) <= 1  # it is late once, and does not try to catch up
    for raw in silent:
        raw.close()
    while server.json("GET", f"/v1/sessions/{id}")["viewers"]:
        time.sleep(0.05)
