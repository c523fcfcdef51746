"""`lolrt bench serve`: measures a server from the side of its clients.

Sessions arrive at random times, whether the server keeps up or not (an open loop), are watched from their first chunk on, and are steered
once; beside that, as many servers of one session each, on the same cores. Clients measure; nothing is asked of the server but its CPU time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lolrt.bench.table import aligned
from lolrt.errors import Error

# The buffer of a viewer when it begins to play, in seconds.
BUFFER_SECONDS = 0.2
# The chunks until the window is full. Rates are measured after them.
WARM_CHUNKS = 4
# The name of a row.
DEADLINES = "chunks before their deadline, %"


@dataclass(frozen=True)
class Plan:
    model: str = "tiny"
    sessions: int = 3
    seconds: float = 20.0
    """How long each session is watched."""
    arrivals_per_second: float = 0.5
    viewers: int = 50
    """The viewers of one session, to measure the cost of viewers."""
    seed: int = 0


@dataclass
class Watched:
    """A session as seen by its viewer; times are by the client's clock."""

    asked: float
    arrivals: list[float] = field(default_factory=list)
    chunks: list[dict[str, Any]] = field(default_factory=list)
    steered: float | None = None
    followed: float | None = None
    refused: str | None = None
    held_bytes: int | None = None
    """The memory that the server holds for it at the end."""

    def underruns(self) -> tuple[int, float]:
        """The number of underruns of a viewer who began `BUFFER_SECONDS` after the first chunk, and their total time."""
        count, stalled, due = 0, 0.0, self.arrivals[0] + BUFFER_SECONDS
        for arrival, chunk in zip(self.arrivals, self.chunks, strict=True):
            if arrival > due:
                count, stalled, due = count + 1, stalled + arrival - due, arrival
            due += chunk["seconds"]
        return count, stalled


class Server:
    """A context manager: `lolrt serve` in a process of its own."""

    def __init__(self, *options: object) -> None:
        command = [sys.executable, "-m", "lolrt", "serve", "--port", "0", *map(str, options)]
        self._begun = time.monotonic()
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            raise Error(f"lolrt serve ended with status {self._process.wait()}")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def age(self) -> float:
        return time.monotonic() - self._begun

    def cpu_seconds(self) -> float:
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int:
        """The resident memory of the server."""
        with open(f"/proc/{self.pid}/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS:"))

    def kill(self) -> None:
        """Kills the server, which cannot save anything."""
        self._process.kill()
        self._process.wait()

    def ask(self, method: str, path: str, body: Any = None) -> bytes:
        """Sends a request and returns the answer. Raises `urllib.error.HTTPError` if it is refused."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return json.loads(self.ask("POST", path, body))

    def prompts(self) -> list[str]:
        return json.loads(self.ask("GET", "/v1/models"))["data"][0]["example_prompts"]

    async def messages(self, id: str, first: int) -> AsyncIterator[tuple[dict[str, Any], bytes]]:
        """The messages for a viewer and their bytes: the start, the chunks, and messages without bytes."""
        from websockets.asyncio.client import connect

        path = f"{self.address.replace('http', 'ws', 1)}/v1/sessions/{id}/watch?from={first}"
        async with connect(path, max_size=None) as socket:
            header: dict[str, Any] = {}
            async for message in socket:
                if isinstance(message, bytes):
                    yield header, message
                    continue
                header = json.loads(message)
                if "byte_length" not in header:
                    yield header, b""

    async def chunks(self, id: str, first: int) -> AsyncIterator[dict[str, Any]]:
        """The metadata of each chunk, when its fragment has arrived."""
        async for header, _ in self.messages(id, first):
            if header["type"] == "video.chunk_metadata":
                yield header


async def watch(server: Server, prompt: str, after: str, seed: int, seconds: float) -> Watched:
    """One session, steered from one prompt to another after half of its time."""
    seen = Watched(time.monotonic())
    try:
        id = (await asyncio.to_thread(server.post, "/v1/sessions", {"prompt": prompt, "seed": seed}))["id"]
    except OSError as error:
        seen.refused = str(error)
        return seen
    end = time.monotonic() + seconds
    async for chunk in server.chunks(id, 0):
        now = time.monotonic()
        seen.arrivals.append(now)
        seen.chunks.append(chunk)
        if "bench" in chunk["started_event_ids"]:
            seen.followed = now
        if seen.steered is None and now > end - seconds / 2:
            seen.steered = time.monotonic()
            steer = {"event_id": "bench", "event": {"prompt": after}}
            await asyncio.to_thread(server.post, f"/v1/sessions/{id}/interactions", steer)
        if now > end:
            break
    with contextlib.suppress(OSError):
        seen.held_bytes = json.loads(await asyncio.to_thread(server.ask, "GET", f"/v1/sessions/{id}"))["bytes"]
        await asyncio.to_thread(server.ask, "DELETE", f"/v1/sessions/{id}")
    return seen


async def arrive(servers: Sequence[Server], plan: Plan) -> list[Watched]:
    """Opens sessions at random times, on each of the servers in turn."""
    chance, prompts = random.Random(plan.seed), servers[0].prompts()
    at, tasks = 0.0, []

    async def later(number: int, seconds: float) -> Watched:
        await asyncio.sleep(seconds)
        prompt, after = prompts[number % len(prompts)], prompts[(number + 1) % len(prompts)]
        return await watch(servers[number % len(servers)], prompt, after, number, plan.seconds)

    for number in range(plan.sessions):
        tasks.append(asyncio.create_task(later(number, at)))
        at += chance.expovariate(plan.arrivals_per_second)
    return await asyncio.gather(*tasks)


async def viewers_cost(server: Server, viewers: int, seconds: float) -> float:
    """The share of a core that all viewers except the first need: the CPU time of the server with them, minus that with one viewer."""
    session = server.post("/v1/sessions", {"prompt": server.prompts()[0]})

    async def look(first: int) -> None:
        async for _ in server.chunks(session["id"], first):
            pass

    async def share(count: int) -> float:
        tasks = [asyncio.create_task(look(0)) for _ in range(count)]
        await asyncio.sleep(3)  # wait until they are at the live edge
        begun, used = time.monotonic(), server.cpu_seconds()
        await asyncio.sleep(seconds)
        taken = (server.cpu_seconds() - used) / (time.monotonic() - begun)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return taken

    await share(1)  # wait until the window is full
    alone = [await share(1)]
    many = await share(viewers)
    alone.append(await share(1))
    return many - sum(alone) / 2


def percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def figures(seen: Sequence[Watched]) -> dict[str, str]:
    """The measurements of the sessions, as rows of a table."""
    served = [one for one in seen if one.arrivals]
    rows = {"sessions served, and refused": f"{len(served)}, {len(seen) - len(served)}"}
    if not served:
        return rows
    first = [one.arrivals[0] - one.asked for one in served]
    gaps = [b - a for one in served for a, b in zip(one.arrivals, one.arrivals[1:], strict=False)]
    made = [chunk["made_seconds"] / chunk["seconds"] for one in served for chunk in one.chunks[WARM_CHUNKS:]]
    timed = [chunk["slack_seconds"] for one in served for chunk in one.chunks if chunk["slack_seconds"] is not None]
    under = [one.underruns() for one in served]
    control = [one.followed - one.steered for one in served if one.followed is not None and one.steered is not None]
    ranks = (50, 95, 99)
    rows |= {
        "time to the first chunk, mean and most, s": f"{sum(first) / len(first):.2f}, {max(first):.2f}",
        "between chunks, p50 / p95 / p99, s": " / ".join(f"{percentile(gaps, rank):.3f}" for rank in ranks) if gaps else "",
        "real-time factor, windows full, p50 / p95 / p99": " / ".join(f"{percentile(made, rank):.2f}" for rank in ranks) if made else "",
        DEADLINES: f"{100 * sum(slack >= 0 for slack in timed) / max(1, len(timed)):.1f}",
        f"underruns of a viewer with {BUFFER_SECONDS:g} s in hand, and seconds stalled": (
            f"{sum(n for n, _ in under)}, {sum(stalled for _, stalled in under):.2f}"
        ),
        "from a new prompt to its first chunk, mean and most, s": f"{sum(control) / len(control):.2f}, {max(control):.2f}"
        if control
        else "",
    }
    seconds, sent = (sum(chunk[name] for one in served for chunk in one.chunks) for name in ("seconds", "byte_length"))
    held = [one.held_bytes / 2**20 for one in served if one.held_bytes is not None]
    rows["held by a session, at most, MiB"] = f"{max(held):.1f}" if held else ""
    rows["sent to a viewer for a second of video, kB"] = f"{sent / seconds / 1000:.0f}"
    stages = sorted({stage for one in served for chunk in one.chunks for stage in chunk["stage_seconds"]})
    for stage in stages:
        spent = [chunk["stage_seconds"].get(stage, 0.0) for one in served for chunk in one.chunks[WARM_CHUNKS:]]
        rows[f"{stage}, of a chunk, mean, ms"] = f"{1e3 * sum(spent) / max(1, len(spent)):.0f}"
    return rows


@dataclass(frozen=True)
class Report:
    plan: Plan
    rows: list[list[str]]
    """A header, and measures: of one server, and of as many servers as sessions."""
    answers_seconds: float
    """The time from the start of the server until it answers."""
    viewers_cost: float
    """The cost of all viewers of a session except the first, as a share of a core."""

    def __str__(self) -> str:
        return "\n".join([self.about, "", aligned(self.rows, [0, 1, 2]), "", self.more])

    @property
    def about(self) -> str:
        plan = self.plan
        return (
            f"{plan.sessions} sessions of {plan.model}, {plan.seconds:g} s each, which arrive {plan.arrivals_per_second:g} times a second "
            f"on average, at random times (seed {plan.seed}); each is steered once."
        )

    @property
    def more(self) -> str:
        return (
            f"From the start of the server until it answers: {self.answers_seconds:.2f} s. "
            f"{self.plan.viewers} viewers of one session take {100 * self.viewers_cost:.1f} % of a core more than one."
        )

    @property
    def attainment(self) -> float:
        """The percentage of chunks of one server that met their deadline."""
        return next(float(row[1]) for row in self.rows if row[0] == DEADLINES)


def measure(plan: Plan) -> Report:
    """Runs the benchmark. Raises `lolrt.Error` if a server does not start."""
    options = ["--model", plan.model, "--lease", 60]
    with Server(*options, "--max-sessions", plan.sessions) as server:
        server.prompts()
        begun = server.age
        together = figures(asyncio.run(arrive([server], plan)))
        cost = asyncio.run(viewers_cost(server, plan.viewers, 10.0))
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(*options, "--max-sessions", 1)) for _ in range(plan.sessions)]
        apart = figures(asyncio.run(arrive(servers, plan)))
    names = list(dict.fromkeys([*together, *apart]))
    header = ["measure", "one server", f"{plan.sessions} servers of one session"]
    return Report(plan, [header, *([name, together.get(name, ""), apart.get(name, "")] for name in names)], begun, cost)
