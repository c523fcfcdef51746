"""A fleet on Ray Serve: replicas, a gateway on each proxy's way to them, and the lease service as an actor. See docs/fleet.md.

lolrt serve --ray --state URL
serve run lolrt.fleet.ray:app state=URL model=PATH max_sessions=8
"""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, ProxyLocation
from ray.serve.handle import DeploymentHandle

import lolrt
from lolrt.errors import Error
from lolrt.fleet.gateway import make_gateway
from lolrt.fleet.lease import Beat, Orders
from lolrt.fleet.objects import open_store
from lolrt.fleet.replica import Replica
from lolrt.fleet.scaling import Load, replicas_wanted
from lolrt.fleet.service import LEASE_SECONDS, LeaseService
from lolrt.ops.device import usable
from lolrt.serve.guard import is_loopback, read_token
from lolrt.serve.server import SIGNALS
from lolrt.serve.settings import Settings

Result = TypeVar("Result")

NAMESPACE = "lolrt"
ACTOR = "leases"
# How long the lease service may take to answer.
ANSWER_SECONDS = 2.0
# How long a replica that ends waits for others to take its sessions, and how long after that Ray kills it.
LEAVE_SECONDS = 60.0
GRACE_SECONDS = LEAVE_SECONDS + 30.0
# The most connections through one gateway.
MOST_CONNECTIONS = 1000


@dataclass(frozen=True)
class Fleet:
    """What all replicas have in common."""

    state: str
    """The store: a folder that all nodes reach, or a URL for fsspec."""
    settings: Settings = field(default_factory=Settings)
    load: dict[str, Any] = field(default_factory=lambda: {"model": "tiny"})
    """Arguments of `lolrt.load`."""
    device: str = "cpu"
    """That of each replica."""
    threads: int | None = None
    """CPU threads of each replica; by default Ray's `num_cpus` of it."""
    replicas: tuple[int, int] = (1, 1)
    """The least and the most."""
    actor: dict[str, Any] = field(default_factory=lambda: {"num_cpus": 1})
    """Ray's options for a replica: what it needs, and where it may run."""
    lease_seconds: float = LEASE_SECONDS


@ray.remote(num_cpus=0, max_restarts=-1)
class LeaseActor:
    """The lease service. When its node dies, Ray starts it elsewhere with an empty table, which the replicas and the store fill again."""

    def __init__(self, url: str, seconds: float) -> None:
        self._service = LeaseService(url, seconds)
        self._watching: asyncio.Task[None] | None = None

    async def ask(self, name: str, *arguments: Any) -> Any:
        if self._watching is None:
            self._watching = asyncio.create_task(self._service.watch_store())
        return await getattr(self._service, name)(*arguments)


class RayLeases:
    """`lolrt.fleet.service.Leases` by way of the actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def _ask(self, name: str, *arguments: Any) -> Any:
        try:
            return await asyncio.wait_for(self._answer(self._actor.ask.remote(name, *arguments)), ANSWER_SECONDS)
        except (RayError, asyncio.TimeoutError) as error:
            raise OSError(f"the lease service does not answer: {type(error).__name__}") from error

    async def _answer(self, answer: Awaitable[Result]) -> Result:
        return await answer

    async def beat(self, beat: Beat) -> tuple[Orders, float, float]:
        return await self._ask("beat", beat)

    async def place(self, sessions: Sequence[str], at: str | None = None) -> dict[str, str | None]:
        return await self._ask("place", sessions, at)

    async def locate(self, sessions: Sequence[str]) -> dict[str, str | None]:
        return await self._ask("locate", sessions)

    async def addresses(self) -> list[str]:
        return await self._ask("addresses")


class ReplicaDeployment:
    """One engine, in a server of its own. Requests reach it by its own address, and only its life is Serve's."""

    def __init__(self, fleet: Fleet, leases: RayLeases) -> None:
        resources = ray.get_runtime_context().get_assigned_resources()
        lolrt.set_threads(fleet.threads or max(1, int(resources.get("CPU", 1))))
        pipe = lolrt.load(**fleet.load, device=usable(fleet.device))
        host = "127.0.0.1" if fleet.settings.token is None else ray.util.get_node_ip_address()
        name = serve.get_replica_context().replica_id.unique_id
        self._replica = Replica(name, pipe, fleet.settings, fleet.state, leases, host)
        self._replica.start()
        _ = self._replica.address_when_ready

    def check_health(self) -> None:
        if not self._replica.is_alive() or not self._replica.sessions.ready:
            raise RuntimeError("the engine has ended")

    def record_autoscaling_stats(self) -> dict[str, float]:
        load = self._replica.load
        return {"sessions": load.sessions, "room": load.room, "in_time": load.in_time}

    def __del__(self) -> None:
        replica = getattr(self, "_replica", None)
        if replica is not None and replica.is_alive():
            replica.leave(LEAVE_SECONDS)


@serve.ingress()
class GatewayDeployment:
    def __init__(self, leases: RayLeases, token: str | None, replicas: DeploymentHandle) -> None:
        """replicas: not used; it makes Serve start them."""
        self._leases, self._token = leases, token

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_gateway(self._leases, self._token)


def scale(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Ray's autoscaling policy: see `lolrt.fleet.scaling`."""
    metrics = context.aggregated_metrics or {}
    told = {name: metrics.get(name, {}) for name in ("sessions", "room", "in_time")}
    replicas = set(told["sessions"]) & set(told["room"]) & set(told["in_time"])
    loads = [Load(round(told["sessions"][one]), round(told["room"][one]), told["in_time"][one]) for one in replicas]
    wanted = replicas_wanted(loads) if loads else context.current_num_replicas
    return min(max(wanted, context.capacity_adjusted_min_replicas), context.capacity_adjusted_max_replicas), {}


def make_app(fleet: Fleet) -> Application:
    """The application for `serve.run`. Ray has to be initialised. Raises `lolrt.Error` if the store cannot be used."""
    if "://" not in fleet.state:
        fleet = replace(fleet, state=str(Path(fleet.state).absolute()))  # the processes of Ray are in other folders
    open_store(fleet.state)
    named = {"name": ACTOR, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    leases = RayLeases(LeaseActor.options(**named).remote(fleet.state, fleet.lease_seconds))  # type: ignore[attr-defined]
    least, most = fleet.replicas
    policy = AutoscalingPolicy(policy_function=scale)
    count: dict[str, Any] = (
        {"num_replicas": least}
        if least == most
        else {"autoscaling_config": AutoscalingConfig(min_replicas=least, max_replicas=most, policy=policy)}
    )
    placed = dict(fleet.actor)
    if "max_replicas_per_node" in placed:
        count["max_replicas_per_node"] = placed.pop("max_replicas_per_node")
    replicas = serve.deployment(
        name="replicas", ray_actor_options=placed, graceful_shutdown_timeout_s=GRACE_SECONDS, health_check_period_s=2, **count
    )(ReplicaDeployment)
    gateway = serve.deployment(name="gateway", max_ongoing_requests=MOST_CONNECTIONS, ray_actor_options={"num_cpus": 0})(GatewayDeployment)
    return gateway.bind(leases, fleet.settings.token, replicas.bind(fleet, leases))


def app(arguments: dict[str, str]) -> Application:
    """The builder for `serve run` and for configuration files. arguments: state, and optionally model, device, token_file, max_sessions,
    replicas as LEAST:MOST, num_cpus and num_gpus. Raises `lolrt.Error`."""
    known = {"state", "model", "device", "token_file", "max_sessions", "replicas", "num_cpus", "num_gpus"}
    if wrong := sorted(arguments.keys() - known) or "state" not in arguments:
        raise Error(f"{wrong if isinstance(wrong, list) else 'state is missing'}: expected state, and perhaps some of {sorted(known)}")
    token = arguments.get("token_file")
    settings = Settings(max_sessions=int(arguments.get("max_sessions", 4)), token=None if token is None else read_token(Path(token)))
    load, device = {"model": arguments.get("model", "tiny")}, arguments.get("device", "cpu")
    actor: dict[str, Any] = {name: float(arguments[name]) for name in ("num_cpus", "num_gpus") if name in arguments} or {"num_cpus": 1}
    return make_app(Fleet(arguments["state"], settings, load, device, replicas=bounds(arguments.get("replicas", "1")), actor=actor))


def bounds(text: str) -> tuple[int, int]:
    """Parses N or LEAST:MOST. Raises `lolrt.Error`."""
    least, _, most = text.partition(":")
    found = [int(number) if number.isdecimal() else 0 for number in (least, most or least)]
    if not 1 <= found[0] <= found[1]:
        raise Error(f"{text} is no number of replicas such as 2 or 1:8")
    return found[0], found[1]


def run_fleet(fleet: Fleet, host: str, port: int) -> None:
    """Runs a fleet until SIGINT or SIGTERM: on the cluster that RAY_ADDRESS names, or on one of this machine alone. The
    sessions stay in the store. Raises `lolrt.Error`."""
    if fleet.settings.token is None and not is_loopback(host):
        raise Error(f"whoever reaches {host} could use the server: give it a token with --token-file FILE, or listen at 127.0.0.1")
    ended = threading.Event()
    previous = {number: signal.signal(number, lambda *_: ended.set()) for number in SIGNALS}
    ray.init(namespace=NAMESPACE, log_to_driver=False, ignore_reinit_error=True)
    try:
        serve.start(proxy_location=ProxyLocation.HeadOnly, http_options={"host": host, "port": port})
        serve.run(make_app(fleet), name="lolrt", route_prefix="/")
        print(f"http://{host}:{port}", flush=True)
        ended.wait()
    finally:
        serve.shutdown()
        leases = functools.partial(ray.get_actor, ACTOR, NAMESPACE)
        ray.kill(leases())
        ray.shutdown()
        for number, handler in previous.items():
            signal.signal(number, handler)
