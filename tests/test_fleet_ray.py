"""A fleet on a real Ray cluster of two nodes, one of which is killed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
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
from websockets.exceptions import ConnectionClosed

import lolrt
from lolrt.serve.encoding import ChunkEncoder
from lolrt.serve.settings import Settings

# Ray's processes, on a machine that is busy: it would take those that begin slowly for dead, and make more of them than there is to do.
os.environ |= {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}
os.environ |= {"RAY_worker_register_timeout_seconds": "600", "RAY_health_check_timeout_ms": "60000", "RAY_worker_niceness": "0"}

ray = pytest.importorskip("ray", reason="needs pip install 'lolrt[ray]'")
serve = pytest.importorskip("ray.serve")

pytestmark = pytest.mark.slow

SEEDS, CHUNKS, BEFORE = range(4), 10, 4


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


@contextlib.contextmanager
def ray_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Client, Any]]:
    """A cluster of one node, with room for one replica; the address of its gateway, and the cluster."""
    from ray.cluster_utils import Cluster

    from lolrt.fleet.ray import NAMESPACE

    monkeypatch.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", 600)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, namespace=NAMESPACE, log_to_driver=False)
        port = free_port()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        yield Client(f"http://127.0.0.1:{port}"), cluster
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def deploy(state: Path, model: Path, replicas: tuple[int, int], *, sessions: int = 4, save_every: float = 1.0) -> None:
    from lolrt.fleet.ray import Fleet, make_app

    placed = {"num_cpus": 1, "max_replicas_per_node": 1}
    settings = Settings(max_sessions=sessions, save_every_seconds=save_every)
    serve.run(make_app(Fleet(str(state), settings, {"model": str(model)}, "cpu", 1, replicas, placed)), name="lolrt", route_prefix="/")


def undisturbed(pipe: lolrt.Pipeline, seed: int, chunks: int = CHUNKS) -> list[str]:
    """The hashes of a session's fragments, made by a stream that nothing happens to."""
    stream, encoder = pipe.stream(PROMPT, seed=seed), ChunkEncoder(pipe.height, pipe.width, pipe.fps, Settings().crf)
    return [hashlib.sha256(encoder.encode(next(stream).frames)).hexdigest() for _ in range(chunks)]


def workers_of(node: Any) -> list[int]:
    """The processes that a node's raylet has started: replicas are among them."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = subprocess.run(["ps", "--ppid", str(raylet), "-o", "pid="], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


def test_sessions_go_on_when_their_node_is_killed(quick, quick_model, tmp_path, one_thread, monkeypatch):
    """Four sessions on two nodes; the raylet and all workers of one node get SIGKILL. Each viewer keeps its one connection and gets every
    chunk once, and each is the one of a stream that was not disturbed."""
    with ray_cluster(monkeypatch) as (gateway, cluster):
        deploy(tmp_path, quick_model, (1, 1))  # the gateway, too, is on the first node then
        other = cluster.add_node(num_cpus=1)
        deploy(tmp_path, quick_model, (2, 2))
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
    assert len([id for id in ids if epoch(tmp_path, id) > 1]) == 2  # the sessions of one of two replicas


def epoch(state: Path, id: str) -> int:
    """How many owners a session has had."""
    return max(int(claim.name.partition("-")[0]) for claim in (state / "fleet" / id / "claims").iterdir())


class Watching(threading.Thread):
    """A viewer who connects again, and goes on where the connection has ended."""

    def __init__(self, gateway: Client, id: str) -> None:
        super().__init__()
        self.id, self.seen, self.at, self.connections, self.ended = id, list[bytes](), list[float](), 0, threading.Event()
        self._gateway = gateway
        self.start()

    def run(self) -> None:
        while not self.ended.is_set():
            with contextlib.suppress(ConnectionClosed, OSError), Viewer(self._gateway, self.id, len(self.seen)) as viewer:
                self.connections += 1
                while not self.ended.is_set():
                    [(message, data)] = viewer.chunks(1)
                    assert message["sequence"] == len(self.seen)
                    self.seen.append(data)
                    self.at.append(time.monotonic())

    def end(self) -> None:
        self.ended.set()
        self.join(120)


def test_an_update_replaces_all_replicas_and_viewers_see_nothing_of_it(quick, quick_model, tmp_path, one_thread, monkeypatch):
    """Ray replaces one replica after the other: each gives its sessions to the others. No chunk is missing, and each is the one of a stream
    that was not disturbed."""
    with ray_cluster(monkeypatch) as (gateway, cluster):
        cluster.add_node(num_cpus=1)
        deploy(tmp_path, quick_model, (2, 2))
        ids = [gateway.open(seed=seed, lease_seconds=600) for seed in SEEDS]
        watching = [Watching(gateway, id) for id in ids]
        deploy(tmp_path, quick_model, (2, 2), save_every=2.0)
        done = [len(one.seen) for one in watching]
        while any(len(one.seen) < before + BEFORE for one, before in zip(watching, done, strict=True)):
            assert all(one.is_alive() for one in watching)
            time.sleep(0.1)
        for one in watching:
            one.end()
        assert {session["id"] for session in gateway.json("GET", "/v1/sessions")["data"]} == set(ids)
    assert all(epoch(tmp_path, id) > 1 for id in ids)
    for seed, one in zip(SEEDS, watching, strict=True):
        gaps = [after - before for before, after in itertools.pairwise(one.at)]
        print(f"{len(one.seen)} chunks over {one.connections} connections, {max(gaps):.1f} s apart at most")
        assert [hashlib.sha256(data).hexdigest() for data in one.seen] == undisturbed(quick, seed, len(one.seen))


def test_ray_adds_a_replica_when_there_is_no_room(quick_model, tmp_path, monkeypatch):
    with ray_cluster(monkeypatch) as (gateway, cluster):
        cluster.add_node(num_cpus=1)
        deploy(tmp_path, quick_model, (1, 2), sessions=2)
        for _ in range(2):
            gateway.open(lease_seconds=600)
        refused = 0
        while (status := gateway.ask("POST", "/v1/sessions", {"prompt": PROMPT})[0]) == 429:
            refused += 1
            assert refused < 300
            time.sleep(1.0)
        assert refused and status == 201
