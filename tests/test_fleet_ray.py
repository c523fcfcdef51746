"""A fleet on a real Ray cluster of two nodes, one of which is killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import PROMPT, Client, Viewer

import lolrt
from lolrt.serve.encoding import ChunkEncoder
from lolrt.serve.settings import Settings

# Ray's processes, on a machine that is busy: it would take those that begin slowly for dead, and make more of them than there is to do.
os.environ |= {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
os.environ |= {"RAY_worker_register_timeout_seconds": "600", "RAY_health_check_timeout_ms": "60000", "RAY_worker_niceness": "0"}

ray = pytest.importorskip("ray", reason="needs pip install 'lolrt[ray]'")

pytestmark = pytest.mark.slow

SEEDS, CHUNKS, BEFORE = range(4), 10, 4


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextlib.contextmanager
def fleet(state: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Client, Any]]:
    """A fleet of two replicas on two nodes; its gateway, and the node that is not the head."""
    from ray import serve
    from ray.cluster_utils import Cluster

    from lolrt.fleet.ray import NAMESPACE, Fleet, make_app

    monkeypatch.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", 600)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        other = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
        port = free_port()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        placed = {"num_cpus": 1, "max_replicas_per_node": 1}
        settings = Settings(max_sessions=4, save_every_seconds=1.0)
        options = {"model": str(model)}
        serve.run(make_app(Fleet(str(state), settings, options, "cpu", 1, (2, 2), placed)), name="lolrt", route_prefix="/")
        yield Client(f"http://127.0.0.1:{port}"), other
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def undisturbed(pipe: lolrt.Pipeline, seed: int) -> list[str]:
    """The hashes of a session's fragments, made by a stream that nothing happens to."""
    stream, encoder = pipe.stream(PROMPT, seed=seed), ChunkEncoder(pipe.height, pipe.width, pipe.fps, Settings().crf)
    return [hashlib.sha256(encoder.encode(next(stream).frames)).hexdigest() for _ in range(CHUNKS)]


def workers_of(node: Any) -> list[int]:
    """The processes that a node's raylet has started: replicas are among them."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = subprocess.run(["ps", "--ppid", str(raylet), "-o", "pid="], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


def test_sessions_go_on_when_their_node_is_killed(quick, quick_model, tmp_path, one_thread, monkeypatch):
    """Four sessions on two nodes; the raylet and all workers of one node get SIGKILL. Each viewer keeps its one connection and gets every
    chunk once, and each is the one of a stream that was not disturbed."""
    with fleet(tmp_path, quick_model, monkeypatch) as (gateway, other):
        ids = [gateway.open(seed=seed, lease_seconds=600) for seed in SEEDS]
        seen: dict[str, list[tuple[dict[str, Any], bytes]]] = {id: [] for id in ids}
        ready, killed = threading.Barrier(len(ids) + 1), threading.Event()

        def watch(id: str) -> None:
            with Viewer(gateway, id) as viewer:
                seen[id] += viewer.chunks(BEFORE)
                ready.wait(120)
                killed.wait(120)
                while len(seen[id]) < CHUNKS:
                    seen[id] += viewer.chunks(1)

        threads = [threading.Thread(target=watch, args=[id]) for id in ids]
        for thread in threads:
            thread.start()
        ready.wait(120)
        pids = workers_of(other)
        for process in [one for kind in other.all_processes.values() for one in kind]:
            process.process.send_signal(signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        begun = time.monotonic()
        killed.set()
        for thread in threads:
            thread.join(120)
        print(f"killed {len(pids)} workers; all had {CHUNKS} chunks after {time.monotonic() - begun:.1f} s")
        assert {session["id"] for session in gateway.json("GET", "/v1/sessions")["data"]} == set(ids)
    for seed, id in zip(SEEDS, ids, strict=True):
        assert [message["sequence"] for message, _ in seen[id]] == list(range(CHUNKS))
        assert [hashlib.sha256(data).hexdigest() for _, data in seen[id]] == undisturbed(quick, seed)
    moved = [id for id in ids if max(int(claim.name) for claim in (tmp_path / "fleet" / id / "claims").iterdir()) > 1]
    assert len(moved) == 2  # the sessions of one of two replicas
