"""`WS /v1/realtime/video` against a client that was written from vLLM-Omni's documentation of its streaming video output and knows
nothing about lolrt, and against clients that follow no protocol."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import PROMPT, Server, in_this_process
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from lolrt.serve import realtime

pytestmark = pytest.mark.whole

OTHER = "a blue boat on the sea at night"


@pytest.fixture(scope="module")
def server(quick_model) -> Iterator[Server]:
    with Server("--model", quick_model, "--max-sessions", 2, "--lease", 5) as server:
        yield server


class OmniClient:
    """Sends `session.start`, receives events and binary frames in turn, and sends other messages after given numbers of chunks."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self.media: list[bytes] = []

    def play(self, start: dict[str, Any], later: dict[int, list[Any]] | None = None) -> None:
        """Plays until the connection ends. later: messages, by the number of chunks after which they are sent."""
        self.send({"type": "session.start", "format": "m4s", **start})
        for message in self.socket:
            if isinstance(message, bytes):
                described = self.events[-1]
                assert described["type"] == "video.chunk_metadata" and described["byte_length"] == len(message)
                self.media.append(message)
                for event in (later or {}).get(len(self.media), []):
                    self.send(event)
            else:
                assert (
                    not self.events
                    or self.events[-1]["type"] != "video.chunk_metadata"
                    or len(self.media) == len(self.of("video.chunk_metadata"))
                )
                self.events.append(json.loads(message))

    def send(self, event: Any) -> None:
        self.socket.send(event if isinstance(event, (str, bytes)) else json.dumps(event))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]


def played(server: Server, start: dict[str, Any], later: dict[int, list[Any]] | None = None) -> OmniClient:
    with connect(server.sockets + "/v1/realtime/video", max_size=None) as socket:
        client = OmniClient(socket)
        client.play(start, later)
        return client


def interaction(event_id: str, prompt: str, **more: Any) -> dict[str, Any]:
    return {"type": "session.interaction", "interaction": {"event_id": event_id, "event": {"prompt": prompt}, **more}}


# The messages of the example client without any options, except for the size.
DEFAULTS = {
    "model": "quick",
    "prompt": PROMPT,
    "width": 96,
    "height": 64,
    "fps": 48,
    "guidance_scale": 1.0,
    "extra_params": {"is_enable_stage2": True},
}


def test_a_client_of_vllm_omni_plays_from_here(server):
    later = {1: [interaction("first", OTHER, transition_chunks=2), {"type": "session.ping"}]}
    client = played(server, {**DEFAULTS, "num_frames": 50}, later)
    kinds = [event["type"] for event in client.events]
    assert kinds[0] == "video.start" and kinds[-1] == "session.done" and client.of("session.pong") == [{"type": "session.pong"}]
    start, done = client.events[0], client.events[-1]
    assert start["format"] == "m4s" and start["request_id"] and start["config"]["num_frames"] == 50
    assert done["chunks"] == len(client.media) == 5 and done["stopped"] is False and done["request_id"] == start["request_id"]
    (queued,) = client.of("session.interaction.queued")
    assert queued["event_id"] == "first" and queued["request_id"] == start["request_id"]
    chunks = client.of("video.chunk_metadata")
    assert [chunk["num_frames"] for chunk in chunks] == [9, 12, 12, 12, 5]
    assert [chunk["transport_chunk_index"] for chunk in chunks] == [chunk["generation_chunk_index"] for chunk in chunks] == list(range(5))
    assert {chunk["kind"] for chunk in chunks} == {"media"} and {chunk["request_id"] for chunk in chunks} == {start["request_id"]}
    started, completed = ([i for i in range(5) if "first" in chunks[i][f"{name}_event_ids"]] for name in ("started", "completed"))
    assert len(started) == 1 and completed == [started[0] + 1]  # over two chunks
    with av.open(io.BytesIO(b"".join(client.media))) as container:  # joined in their order they are a file
        frames = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert [round(time * 48) for time in frames] == list(range(50))
    assert server.json("GET", "/v1/sessions")["data"] == []


def test_a_session_is_stopped_when_its_client_says_so_or_is_gone(server):
    client = played(server, DEFAULTS, {2: [{"type": "session.stop"}]})
    assert client.events[-1]["type"] == "session.done" and client.events[-1]["stopped"] is True and client.events[-1]["chunks"] == 2
    with connect(server.sockets + "/v1/realtime/video") as socket:
        socket.send(json.dumps({"type": "session.start", "prompt": PROMPT}))
        assert json.loads(socket.recv())["type"] == "video.start"
        assert len(server.json("GET", "/v1/sessions")["data"]) == 1
    while server.json("GET", "/v1/sessions")["data"]:
        pass


def test_a_session_with_a_name_goes_on_where_the_connection_was_lost(server):
    begun = {"prompt": PROMPT, "seed": 5, "session_id": "named", "num_frames": 45}
    with connect(server.sockets + "/v1/realtime/video", max_size=None) as socket:
        client = OmniClient(socket)
        client.send({"type": "session.start", **begun})
        got = [socket.recv() for _ in range(5)]  # video.start and two chunks
    first = [part for part in got if isinstance(part, bytes)]
    conflict = played(server, {**DEFAULTS, **begun})
    assert [event["code"] for event in conflict.events] == ["session_exists"]
    rest = played(server, {"session_id": "named", "resume_from": 2})
    assert [chunk["sequence"] for chunk in rest.of("video.chunk_metadata")] == [2, 3]
    whole = played(server, {"prompt": PROMPT, "seed": 5, "num_frames": 45})
    assert first + rest.media == whole.media
    ended = played(server, {"session_id": "named", "resume_from": 3})  # with the connection that was lost during the last chunk
    assert ended.media == whole.media[3:] and ended.events[-1]["type"] == "session.done" and ended.events[-1]["stopped"] is False
    gone = played(server, {"session_id": "none", "resume_from": 2})
    assert [event["code"] for event in gone.events] == ["not_found"]


NOT_STARTS = {
    "unsupported_format": {**DEFAULTS, "format": "webm"},
    "unsupported_size": {**DEFAULTS, "width": 640, "height": 384},
    "unsupported_fps": {**DEFAULTS, "fps": 24},
    "unsupported_lora": {**DEFAULTS, "lora": {"name": "style", "scale": 0.8}},
    "model_mismatch": {**DEFAULTS, "model": "other"},
    "bad_message": {**DEFAULTS, "num_frames": "many"},
    "invalid": {**DEFAULTS, "prompt": "a zebra"},
}


@pytest.mark.parametrize("code", NOT_STARTS)
def test_what_cannot_be_made_is_refused_with_a_code(server, code):
    client = played(server, NOT_STARTS[code])
    assert [(event["type"], event["code"]) for event in client.events] == [("error", code)] and client.events[0]["message"]
    assert server.json("GET", "/v1/sessions")["data"] == []


def test_no_more_sessions_than_there_is_room_for(server):
    for _ in range(2):
        server.open(lease_seconds=30)
    refused = server.ask("GET", "/metrics")[2].count(b'lolrt_requests_refused_total{code="no_room"} 1.0\n')
    client = played(server, DEFAULTS)
    assert [event["code"] for event in client.events] == ["no_room"]
    assert not refused and server.ask("GET", "/metrics")[2].count(b'lolrt_requests_refused_total{code="no_room"} 1.0\n') == 1
    for session in server.json("GET", "/v1/sessions")["data"]:
        server.json("DELETE", f"/v1/sessions/{session['id']}")


WRONG = [
    ("{", "bad_json"),
    ("[" * 100_000, "bad_json"),
    ("1" * 5000, "bad_json"),
    (b"\x00\xff", "bad_json"),
    ("[]", "bad_message"),
    ('{"type": ["session.stop"]}', "unknown_type"),
    ({"type": "session.start", "prompt": PROMPT}, "unknown_type"),
    ({"type": "session.ping", "pad": "x" * 200_000}, "message_too_large"),
    ({"type": "session.interaction"}, "interaction_failed"),
    (interaction("", OTHER), "interaction_failed"),
    (interaction("e", "a zebra"), "interaction_failed"),
    (interaction("e", ""), "interaction_failed"),
    (interaction("e", "\ud800"), "interaction_failed"),
    (interaction("e", "x" * 100_000), "interaction_failed"),
    (interaction("e", OTHER, transition_chunks=1.5), "interaction_failed"),
    (interaction("e", OTHER, transition_chunks=-1), "interaction_failed"),
    ({"type": "session.interaction", "interaction": {"event": {"prompt": OTHER, "multi_modal_data": {}}}}, "interaction_failed"),
]


def test_messages_that_make_no_sense_are_answered_and_the_video_goes_on(server):
    client = played(server, {**DEFAULTS, "num_frames": 45}, {1: [message for message, _ in WRONG] + [interaction("good", OTHER)]})
    assert [event["code"] for event in client.of("error")] == [code for _, code in WRONG]
    assert [event["event_id"] for event in client.of("session.interaction.queued")] == ["good"]
    assert client.events[-1]["type"] == "session.done" and client.events[-1]["stopped"] is False


def test_a_message_over_the_limit_closes_the_connection(server):
    """It is not read to its end, so there is no event: the close code tells."""
    with connect(server.sockets + "/v1/realtime/video", max_size=None) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            socket.send("x" * ((8 << 20) + 1))
            socket.recv(timeout=60)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    assert server.ask("GET", "/health")[0] == 200


def test_an_interaction_happens_once(server):
    again = interaction("one", OTHER)
    client = played(server, {**DEFAULTS, "num_frames": 33}, {1: [again, again, interaction("one", PROMPT)]})
    assert [event["sequence"] for event in client.of("session.interaction.queued")] == [0, 0]
    assert [(event["code"], event["event_id"]) for event in client.of("error")] == [("event_id_conflict", "one")]
    assert sum(chunk["started_event_ids"].count("one") for chunk in client.of("video.chunk_metadata")) == 1


def test_who_only_makes_noise_is_sent_away(server):
    client = played(server, DEFAULTS, {1: ["noise"] * 200})
    assert client.events[-1]["code"] == "too_many_errors" and len(client.of("error")) < 110
    assert server.json("GET", "/v1/sessions")["data"] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["event", "prompt", "event_id", "x"]) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = [
    "type",
    "prompt",
    "seed",
    "rope",
    "window",
    "num_frames",
    "session_id",
    "resume_from",
    "lease_seconds",
    "interaction",
    "size",
    "seconds",
]
MESSAGES = st.lists(
    st.text(max_size=20)
    | st.binary(max_size=20)
    | st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4).map(json.dumps)
    | st.builds(
        lambda kind, more: json.dumps({**more, "type": kind}),
        st.sampled_from(["session.start", "session.interaction", "session.ping", "session.stop", ""]),
        st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(MESSAGES)
def test_whatever_is_sent_is_answered_with_events(server, messages):
    """Each answer is one of the documented events, the connection ends properly, and the server stays alive."""
    kinds = {"error", "video.start", "video.chunk_metadata", "session.pong", "session.interaction.queued", "session.done"}
    with connect(server.sockets + "/v1/realtime/video", max_size=None) as socket:
        try:
            for message in messages:
                socket.send(message)
            event = json.loads(socket.recv(timeout=30))
            assert event["type"] in kinds and (event["type"] != "error" or (event["code"] and event["message"]))
        except ConnectionClosed as closed:
            assert closed.rcvd is not None and closed.rcvd.code == 1000
    assert server.ask("GET", "/health")[0] == 200


def test_who_gets_no_chunk_and_says_nothing_is_left(quick, monkeypatch):
    """A session.ping keeps the connection, even if the session is paused."""
    monkeypatch.setattr(realtime, "STALL_SECONDS", 3.0)
    monkeypatch.setattr(realtime, "LOOK_SECONDS", 0.1)
    with in_this_process(quick) as server, connect(f"{server.sockets}/v1/realtime/video", max_size=None, ping_interval=None) as socket:

        def until(kind: str) -> dict[str, Any]:
            while True:
                message = socket.recv(timeout=60)
                if isinstance(message, str) and (told := json.loads(message))["type"] == kind:
                    return told

        socket.send(json.dumps({"type": "session.start", "prompt": PROMPT}))
        server.json("POST", f"/v1/sessions/{until('video.start')['session_id']}/pause")
        until("session.paused")
        for _ in range(4):  # longer, in total, than it may be silent
            time.sleep(1.0)
            socket.send(json.dumps({"type": "session.ping"}))
            until("session.pong")
        assert until("error")["code"] == "stalled"
        assert not server.json("GET", "/v1/sessions")["data"]  # it belonged to the connection
