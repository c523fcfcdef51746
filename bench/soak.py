"""A server for hours: sessions come and go, viewers vanish or hardly read, and no trace of them may be left.

    python -m bench.soak                                     # two hours, 8 sessions, 50 viewers; writes docs/soak.md, its log and its plot
    python -m bench.soak --minutes 10 -o out/soak

The log, soak.csv, is written during the run; `--report FOLDER` makes the document and the plot of a run that was broken off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from bench.report import table
from lolrt.bench.machine import describe
from lolrt.bench.serve import Server

DOCS = Path(__file__).parents[1] / "docs"
SAMPLE_SECONDS = 10.0
LEASE_SECONDS = 30.0
# By then the server holds all that it keeps for its viewers; samples before do not count.
WARM_SECONDS = 300.0
PARTS = 6
MOST_GROWTH = 0.02
# Errors that a client may get when its session ends.
BROKEN = (OSError, WebSocketException, asyncio.TimeoutError, EOFError)
# /metrics, by the names in the log.
METRICS = {
    "sessions": "lolrt_sessions", "viewers": "lolrt_viewers", "pages": "lolrt_pages", "pages_free": "lolrt_pages_free",
    "session_bytes": "lolrt_session_bytes", "opened": "lolrt_sessions_opened_total", "ended": "lolrt_sessions_ended_total",
    "chunks": "lolrt_chunks_total", "timed": "lolrt_chunks_timed_total", "late": "lolrt_chunks_late_total",
    "lost_fragments": "lolrt_viewer_lost_fragments_total", "sent_bytes": "lolrt_sent_bytes_total",
}  # fmt: skip
PROCESS = ("seconds", "rss_bytes", "cpu_seconds", "files", "threads")


Kind = Callable[[str, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Plan:
    sessions: int
    viewers: int
    minutes: float
    seed: int = 0


@dataclass
class Crowd:
    """All clients of the server. Each goes on until it is cancelled, and chooses its actions at random."""

    server: Server
    plan: Plan
    open: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        prompts = await asyncio.to_thread(self.server.prompts)
        kinds = (stay, vanish, read_slowly)
        people = [self.keeps_a_session(random.Random(f"{self.plan.seed} session {n}"), prompts) for n in range(self.plan.sessions)]
        people += [self.watches(random.Random(f"{self.plan.seed} viewer {n}"), kinds[n % len(kinds)]) for n in range(self.plan.viewers)]
        await asyncio.gather(*people)

    async def keeps_a_session(self, chance: random.Random, prompts: list[str]) -> None:
        """Opens a session, steers it, pauses it, branches from it, and then closes it, or forgets it, so that its lease ends it."""
        while True:
            wanted = {"prompt": chance.choice(prompts), "seed": chance.randrange(1000), "probe": chance.random() < 0.5}
            id = await self.asked("POST", "/v1/sessions", wanted | {"lease_seconds": LEASE_SECONDS}, "opened")
            if id is None:
                await asyncio.sleep(2)
                continue
            self.open.append(id)
            end = time.monotonic() + chance.uniform(60, 600)
            while time.monotonic() < end:
                await asyncio.sleep(chance.uniform(2, 20))
                await self.uses(id, chance, prompts)
            self.open.remove(id)
            if chance.random() < 0.6:
                await self.asked("DELETE", f"/v1/sessions/{id}", None, "closed")
            else:
                self.done["forgotten"] += 1

    async def uses(self, id: str, chance: random.Random, prompts: list[str]) -> None:
        path, what = f"/v1/sessions/{id}", chance.random()
        if what < 0.7:
            asked = {"event": {"prompt": chance.choice(prompts)}, "transition_chunks": chance.randrange(1, 5)}
            await self.asked("POST", f"{path}/interactions", asked, "steered")
        elif what < 0.8:
            await self.asked("POST", f"{path}/pause", {}, "paused")
            await asyncio.sleep(chance.uniform(0, 5))
            await self.asked("POST", f"{path}/continue", {}, "went on")
        elif what < 0.9:
            await self.asked("GET", f"{path}/snapshot", None, "snapshots")
        else:  # with all places taken the server refuses it, and that must leave nothing behind either
            other = await self.asked("POST", f"{path}/branch", {"lease_seconds": LEASE_SECONDS}, "branched")
            if other is not None:
                await self.asked("DELETE", f"/v1/sessions/{other}", None, "closed")

    async def asked(self, method: str, path: str, body: Any, name: str) -> str | None:
        """The id in the answer, if there is one; None if the request is refused, which is counted."""
        try:
            content = await asyncio.to_thread(self.server.ask, method, path, body)
        except urllib.error.HTTPError as error:
            self.done[f"refused with {error.code}"] += 1
            return None
        except OSError as error:  # on a machine that is busy with other work
            self.done[type(error).__name__] += 1
            return None
        self.done[name] += 1
        return json.loads(content).get("id") if content[:1] == b"{" else None

    async def watches(self, chance: random.Random, how: Kind) -> None:
        """One viewer after another, each of some session."""
        while True:
            await asyncio.sleep(chance.uniform(0, 5))
            if self.open:
                self.done[f"viewers that {how.__name__.replace('_', ' ')}"] += 1
                address = f"{self.server.address.replace('http', 'ws', 1)}/v1/sessions/{chance.choice(self.open)}/watch"
                with contextlib.suppress(*BROKEN):
                    await asyncio.wait_for(how(address, chance), chance.uniform(0, 300))


async def stay(address: str, chance: random.Random) -> None:
    async with connect(address, max_size=None) as socket:
        async for _ in socket:
            pass


async def vanish(address: str, chance: random.Random) -> None:
    """Ends without closing the connection."""
    async with connect(address, max_size=None) as socket:
        try:
            async for _ in socket:
                pass
        finally:
            socket.transport.abort()


async def read_slowly(address: str, chance: random.Random) -> None:
    """Or reads nothing for a while."""
    async with connect(address, max_size=None, max_queue=1) as socket:
        async for _ in socket:
            await asyncio.sleep(chance.choice((0.5, 2, 10, 60)))


def sample(server: Server, begun: float) -> dict[str, float]:
    """A line of the log."""
    text = server.ask("GET", "/metrics").decode()
    row = {"seconds": round(time.monotonic() - begun, 1), "cpu_seconds": server.cpu_seconds()}
    row |= {"rss_bytes": server.rss_bytes(), "threads": len(os.listdir(f"/proc/{server.pid}/task"))}
    row["files"] = len(os.listdir(f"/proc/{server.pid}/fd"))
    for name, metric in METRICS.items():
        values = re.findall(rf"^{metric}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        row[name] = sum(map(float, values))
    return row


async def soak(plan: Plan, folder: Path) -> None:
    """Runs, and writes soak.csv and soak.json into a folder."""
    with tempfile.TemporaryDirectory(prefix="lolrt-soak-") as state, (folder / "soak.csv").open("w", newline="") as file:
        options = ["--max-sessions", plan.sessions + 1, "--state", state, "--save-every", 60]
        with Server(*options) as server:
            log = csv.DictWriter(file, [*PROCESS, *METRICS])
            log.writeheader()
            crowd, begun = Crowd(server, plan), time.monotonic()
            using = asyncio.create_task(crowd.run())
            while time.monotonic() < begun + 60 * plan.minutes and not using.done():
                await asyncio.sleep(SAMPLE_SECONDS)
                with contextlib.suppress(OSError):
                    log.writerow(await asyncio.to_thread(sample, server, begun))
                    file.flush()
            using.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await using
            for id in [session["id"] for session in json.loads(server.ask("GET", "/v1/sessions"))["data"]]:
                with contextlib.suppress(OSError):  # its lease may have ended it meanwhile
                    server.ask("DELETE", f"/v1/sessions/{id}")
            await asyncio.sleep(30)  # the server notices by pings that viewers have vanished
            after = sample(server, begun)
        left = [path.name for path in Path(state, "sessions").iterdir()]
    machine = {"date": str(date.today()), **describe()}
    about = {"plan": vars(plan), "machine": machine, "did": crowd.done, "after": after, "left_on_disk": left}
    (folder / "soak.json").write_text(json.dumps(about, indent=1) + "\n")


@dataclass(frozen=True)
class Check:
    what: str
    wanted: str
    found: str
    holds: bool


def growth(rows: Sequence[dict[str, float]]) -> tuple[float, list[float]]:
    """How far the median of the last part of a run is above that of the first, and the medians of all parts, in bytes. The time until
    the server is warm is left out."""
    warm = [row["rss_bytes"] for row in rows if row["seconds"] >= WARM_SECONDS]
    if len(warm) < PARTS:
        return float("nan"), []
    medians = [statistics.median(warm[len(warm) * i // PARTS : len(warm) * (i + 1) // PARTS]) for i in range(PARTS)]
    return medians[-1] / medians[0] - 1, medians


def checks(rows: Sequence[dict[str, float]], after: dict[str, float] | None, left: Sequence[str]) -> list[Check]:
    """after: the last sample, when all sessions are closed; None if the run was broken off before."""
    grown, medians = growth(rows)
    parts = ", ".join(f"{each / 2**20:.0f}" for each in medians)
    found = [Check(f"memory (RSS), of the last sixth of the time against the first; medians of the sixths in MiB: {parts}",
                   f"within {MOST_GROWTH:.0%}", f"{grown:+.1%}", abs(grown) <= MOST_GROWTH)]  # fmt: skip
    if after is not None:
        free, pages, opened, ended = (after[name] for name in ("pages_free", "pages", "opened", "ended"))
        found += [
            Check("sessions that are left, when all are closed", "0", f"{after['sessions']:.0f}", after["sessions"] == 0),
            Check("viewers that are left", "0", f"{after['viewers']:.0f}", after["viewers"] == 0),
            Check("pages that are free again", f"{pages:.0f}", f"{free:.0f}", free == pages),
            Check("sessions opened, and ended", "as many", f"{opened:.0f}, {ended:.0f}", opened == ended),
            Check("sessions left in the folder of the state", "0", str(len(left)), not left),
        ]
    return found


def report(folder: Path) -> list[Check]:
    """Writes soak.md and soak.png from the files in a folder."""
    with (folder / "soak.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    path = folder / "soak.json"
    about = json.loads(path.read_text()) if path.exists() else {"plan": {}, "machine": {}, "did": {}, "after": None, "left_on_disk": []}
    found, last = checks(rows, about["after"], about["left_on_disk"]), rows[-1]
    plot(rows, folder / "soak.png")
    plan = about["plan"] or {"sessions": "?", "viewers": "?"}
    machine = "\n".join(f"- {name}: {value}" for name, value in about["machine"].items())
    did = ", ".join(f"{name} {count}" for name, count in sorted(about["did"].items()))
    (folder / "soak.md").write_text(
        f"# A server for hours\n\nMade by `python -m bench.soak`: {last['seconds'] / 60:.0f} minutes, {plan['sessions']} sessions, "
        f"{plan['viewers']} viewers: a third of them stay for some minutes, a third vanish without a word, a third read slowly or not at "
        "all. Sessions are opened, steered, paused, branched, closed or forgotten as chance has it.\n\n"
        f"{machine}\n\n{table(['', 'wanted', 'found', ''], [[c.what, c.wanted, c.found, 'holds' if c.holds else 'fails'] for c in found])}"
        f"\n\n![Memory, pages and viewers over time](soak.png)\n\nThe log is [soak.csv](soak.csv). Chunks made: {last['chunks']:.0f}, of "
        f"which {last['late']:.0f} after their deadline; fragments that slow viewers lost: {last['lost_fragments']:.0f}; video sent: "
        f"{last['sent_bytes'] / 2**30:.2f} GiB.\n\nWhat clients did, and how often: {did}.\n"
    )  # fmt: skip
    return found


def plot(rows: Sequence[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    minutes = [row["seconds"] / 60 for row in rows]
    figure, axes = pyplot.subplots(3, 1, figsize=(8, 6), sharex=True, constrained_layout=True)
    axes[0].plot(minutes, [row["rss_bytes"] / 2**20 for row in rows])
    axes[0].set(ylabel="RSS, MiB", ylim=(0, None))
    for name in ("viewers", "sessions", "files", "threads"):
        axes[1].plot(minutes, [row[name] for row in rows], label=name)
    axes[1].legend(fontsize=7)
    axes[2].plot(minutes, [row["pages"] - row["pages_free"] for row in rows])
    axes[2].set(ylabel="pages in use", xlabel="minutes")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description="Runs a server for hours, and looks what is left.")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--viewers", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0, help="of what clients do")
    parser.add_argument("-o", "--output", type=Path, default=DOCS, metavar="FOLDER")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="run nothing: make document and plot of the log there")
    arguments = parser.parse_args()
    folder = arguments.report or arguments.output
    if arguments.report is None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "soak.json").unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        asyncio.run(soak(Plan(arguments.sessions, arguments.viewers, arguments.minutes, arguments.seed), folder))
    found = report(folder)
    for check in found:
        print(f"{'holds' if check.holds else 'FAILS'}  {check.what}: {check.found}; wanted {check.wanted}")
    print(folder / "soak.md")
    return int(not all(check.holds for check in found))


if __name__ == "__main__":
    sys.exit(main())
