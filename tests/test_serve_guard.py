"""Who may use `lolrt serve`, and for what: tokens, origins, hosts, sizes and numbers (docs/threat-model.md)."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import time
from collections.abc import Iterator

import pytest
from serving import PROMPT, Client, Server, in_this_process
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from lolrt.serve import guard
from lolrt.serve.app import MOST_SNAPSHOTS

pytestmark = pytest.mark.whole

TOKEN = "a-token-that-nobody-guesses"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def open_server(quick_model) -> Iterator[Server]:
    """A server without a token."""
    with Server("--model", quick_model) as server:
        yield server


@pytest.fixture(scope="module")
def server(quick_model, tmp_path_factory) -> Iterator[Server]:
    """A server with a token, limits for a client, and a model whose files are removed after it is loaded."""
    folder = tmp_path_factory.mktemp("guard")
    token, model = folder / "token", folder / "model"
    token.write_text(TOKEN)
    token.chmod(0o600)
    shutil.copytree(quick_model, model)
    with Server("--token-file", token, "--model", model, "--max-client-sessions", 1, "--max-lifetime", 3) as server:
        shutil.rmtree(model)
        token.unlink()
        yield server


def raw(server: Server, request: str) -> str:
    """The first line of the answer to bytes that are sent as they are."""
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        return connection.makefile("r", newline="").readline().strip()


def test_what_is_guarded_needs_the_token(server):
    guarded = [
        "/v1/models",
        "/v1/sessions",
        "/v1/videos",
        "/v1/sessions/x",
        "/v1/sessions/x/live.m3u8",
        "/v1/nothing",
        "/metrics",
        "/openapi.json",
    ]
    for path in guarded:
        for headers in (
            {},
            {"Authorization": "Bearer "},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": TOKEN},
            {"Authorization": "Basic eDp5"},
        ):
            status, told, content = server.ask("GET", path, **headers)
            assert (status, told["www-authenticate"], json.loads(content)["error"]["code"]) == (401, "Bearer", "no_token"), path
        assert server.ask("GET", path, **KNOWN)[0] in (200, 404), path
    for path in ("/", "/main.js", "/health", "/readyz"):
        status, told, content = server.ask("GET", path)
        assert status == 200 and TOKEN.encode() not in content
        assert "default-src 'none'" in told["content-security-policy"] and told["x-content-type-options"] == "nosniff"
    for path in ("/v1/sessions", "/v1/sessions/x/whep"):
        assert server.ask("POST", path, {"prompt": PROMPT})[0] == 401


@pytest.mark.parametrize("path", ["/v1/realtime/video", "/v1/sessions/x/watch"])
def test_sockets_need_the_token_in_a_header_or_a_subprotocol(server, path):
    for wrong in ([], ["lolrt"], ["lolrt", "token."], ["lolrt", f"token.{TOKEN}x"], [f"token{TOKEN}"]):
        with pytest.raises(InvalidStatus) as refused, connect(server.sockets + path, subprotocols=wrong or None):  # type: ignore[arg-type]
            pass
        assert refused.value.response.status_code == 401
    with connect(server.sockets + path, subprotocols=["lolrt", f"token.{TOKEN}"]) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "lolrt"
    with connect(server.sockets + path, additional_headers=KNOWN) as socket:
        assert socket.subprotocol is None


def test_pages_of_other_servers_are_refused(server, open_server):
    """By their origin; and, if no token is needed, by the host name that they use for this server."""
    for one, headers in ((server, KNOWN), (open_server, {})):
        port = one.address.rpartition(":")[2]
        for origin, right in (
            (one.address, True),
            (f"http://localhost:{port}", False),
            ("https://evil.example", False),
            ("null", False),
            ("http://[", False),
            ("", False),
        ):
            assert (one.ask("GET", "/v1/models", **headers, Origin=origin)[0] == 200) is right, origin
            try:
                with connect(one.sockets + "/v1/realtime/video", additional_headers={**headers, "Origin": origin}):
                    assert right
            except InvalidStatus as refused:
                assert refused.response.status_code == 403 and not right
    port = open_server.address.rpartition(":")[2]
    for host, status in (
        ("127.0.0.1", 200),
        ("localhost", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ):
        for suffix in ("", f":{port}"):
            assert f" {status} " in raw(open_server, f"GET /health HTTP/1.1\nHost: {host}{suffix}\nConnection: close\n\n"), host
    assert " 200 " in raw(server, "GET /health HTTP/1.1\nHost: example.org\nConnection: close\n\n")


def test_requests_are_limited_in_size(open_server):
    head = "POST {} HTTP/1.1\nHost: localhost\nContent-Type: application/json\nConnection: close\n"
    for path, most in (("/v1/sessions", 8 << 20), ("/v1/videos", 8 << 20), ("/v1/sessions/x/interactions", 256 << 10)):
        assert " 413 " in raw(open_server, head.format(path) + f"Content-Length: {most + 1}\n\n")
    chunk = f"{1 << 16:x}\n" + "x" * (1 << 16) + "\n"  # without a Content-Length
    chunked = head.format("/v1/sessions/x/interactions") + "Transfer-Encoding: chunked\n\n" + 5 * chunk
    assert " 413 " in raw(open_server, chunked)
    assert open_server.ask("GET", "/health")[0] == 200


def test_no_name_of_a_client_leads_to_a_file(open_server):
    for path in (
        "/../pyproject.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/v1/sessions/..%2f..%2fx/init.mp4",
        "//etc/passwd",
        "/v1/videos/..%2fx/content",
    ):
        assert raw(open_server, f"GET {path} HTTP/1.1\nHost: localhost\nConnection: close\n\n").split()[1] in ("400", "404"), path


def test_a_client_has_so_many_sessions_and_a_session_so_much_time(server):
    """The model's files are gone, and are not needed."""
    first = server.json("POST", "/v1/sessions", {"prompt": PROMPT}, **KNOWN)["id"]
    status, headers, content = server.ask("POST", "/v1/sessions", {"prompt": PROMPT}, **KNOWN)
    assert (status, json.loads(content)["error"]["code"]) == (409, "client_limit") and int(headers["retry-after"]) > 0
    connection = connect(f"{server.sockets}/v1/sessions/{first}/watch?from=0", additional_headers=KNOWN, max_size=None)
    with connection as socket:
        texts = [json.loads(message) for message in socket if isinstance(message, str)]
    assert texts[-1] == {"type": "session.done", "reason": "lifetime"} and len(texts) > 3


def ask_and_read_nothing(connection: socket.socket, client: Client, path: str) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # little is under way
    host, port = client.address.removeprefix("http://").split(":")
    connection.connect((host, int(port)))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())


def test_snapshots_that_nobody_reads_fill_neither_memory_nor_disk(open_server):
    """So many at a time; when a client is gone, another gets its place."""
    id = open_server.open()
    path = f"/v1/sessions/{id}/snapshot"
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_SNAPSHOTS):
            ask_and_read_nothing(stack.enter_context(socket.socket()), open_server, path)
        until = time.monotonic() + 30
        while (answer := open_server.ask("GET", path))[0] == 200:  # they are only now being asked for
            assert time.monotonic() < until
        assert answer[0] == 429 and int(answer[1]["retry-after"]) > 0 and json.loads(answer[2])["error"]["code"] == "no_room"
    while open_server.ask("GET", path)[0] != 200:
        assert time.monotonic() < until
    open_server.json("DELETE", f"/v1/sessions/{id}")


def test_who_stops_reading_pictures_keeps_no_session(quick, monkeypatch):
    """The connection stays open: nothing but the time tells that nobody watches."""
    monkeypatch.setattr(guard, "SEND_SECONDS", 0.5)
    with in_this_process(quick) as client, socket.socket() as viewer:
        id = client.open(lease_seconds=1)
        ask_and_read_nothing(viewer, client, f"/v1/sessions/{id}/mjpeg")
        until = time.monotonic() + 60
        while client.json("GET", "/v1/sessions")["data"]:
            assert time.monotonic() < until
            time.sleep(0.2)
