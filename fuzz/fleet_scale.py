"""What breaks first in a large fleet? Three things that happen to one, with a lease service that takes its time.

    python -m fuzz.fleet_scale --replicas 1000 --sessions 10000 --answer 0.0003

The simulation is that of `fuzz.fleet`, but the lease service answers one question after another: each takes `--answer` seconds and what
the real table computes, which is measured here. So two runs differ a little. What happens: all sessions are opened within a few seconds;
the lease service crashes and comes back with an empty table; a quarter of the replicas crash at once. The others have places for all.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Any

from fuzz.fleet import FAULTY_SECONDS, PEACE_SECONDS, Fleet, Viewer
from fuzz.world import Host, Steps, ViolationError

TABLE_GONE, REPLICAS_GONE, SHARE_GONE = 14.0, 24.0, 0.25
STALL_SECONDS = 2.0
"""A viewer who sees nothing for longer has an interruption."""


PHASES = {"opening": 0.0, "lease service gone": TABLE_GONE, "replicas gone": REPLICAS_GONE, "after": FAULTY_SECONDS}


class LargeFleet(Fleet):
    def __init__(self, replicas: int, sessions: int, answer: float) -> None:
        places = -(-sessions // int(replicas * (1 - SHARE_GONE))) + 1
        super().__init__(0, replicas=replicas, sessions=sessions, places=places, answer=answer)
        self.stalls: list[tuple[float, float]] = []
        """When each interruption ended, and how long it was."""
        self.seen: list[float] = []
        """When viewers saw the first chunk of each session."""
        self.waits: list[tuple[float, float]] = []
        """When each question reached the lease service, and how long it took until it was answered."""
        self.busy = 0.0
        """Seconds that the lease service has worked."""
        self.operations: Counter[str] = Counter()
        """Of the store."""
        self.world.work = self.timed(self.world.work)  # type: ignore[method-assign]
        for name in ("create", "write", "read", "names", "copy", "remove"):
            setattr(self.world, name, self.counted(name, getattr(self.world, name)))

    def timed(self, work: Callable[..., tuple[Any, float]]) -> Callable[..., tuple[Any, float]]:
        def timed(host: Host, act: Callable[[], Any]) -> tuple[Any, float]:
            before = max(host.busy_until, self.world.now)
            found, seconds = work(host, act)
            self.busy += host.busy_until - before
            self.waits.append((self.world.now, seconds))
            return found, seconds

        return timed

    def counted(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.operations[name] += 1
            return operation(*arguments)

        return counted

    def trouble(self) -> Steps:
        self.world.peaceful = True  # nothing else goes wrong
        yield TABLE_GONE
        self.service.alive = False
        self.world.after(1.0, self.new_table)
        yield REPLICAS_GONE - TABLE_GONE
        for one in self.replicas[:: round(1 / SHARE_GONE)]:
            one.alive = False

    def hear(self, viewer: Viewer, message: dict[str, Any], content: tuple[str, str] | None) -> None:
        if content is not None and viewer.seen == 0:
            self.seen.append(self.world.now)
        elif content is not None and self.world.now - viewer.heard > STALL_SECONDS:
            self.stalls.append((self.world.now, self.world.now - viewer.heard))
        super().hear(viewer, message, content)

    def report(self) -> None:
        seconds = FAULTY_SECONDS + PEACE_SECONDS
        print(f"lease service: {len(self.waits) / seconds:.0f} questions a second, busy for {self.busy / seconds:.0%} of the time")
        print("store: " + ", ".join(f"{count / seconds:.0f} {name}" for name, count in sorted(self.operations.items())) + " a second")
        print(f"{len(self.seen)} sessions were seen, the last one after {max(self.seen, default=0.0):.1f} s")
        ends = [*list(PHASES.values())[1:], seconds]
        for (phase, begin), end in zip(PHASES.items(), ends, strict=True):
            stalls = [length for at, length in self.stalls if begin <= at < end]
            waits = [length for at, length in self.waits if begin <= at < end]
            longest = f"the longest {max(stalls):.1f} s, " if stalls else ""
            print(f"{phase}: {len(stalls)} interruptions, {longest}an answer of the lease service took {max(waits):.2f} s at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--answer", type=float, default=0.0003, help="seconds of the lease service for an answer, beside its own computing")
    arguments = parser.parse_args()
    fleet = LargeFleet(arguments.replicas, arguments.sessions, arguments.answer)
    try:
        print(fleet.run())
    except ViolationError as error:
        print(error)
    fleet.report()


if __name__ == "__main__":
    main()
