"""A fleet in one process, by one seeded clock: gateway, lease service, replicas, store and viewers, and what can go wrong with each.

    python -m fuzz.fleet --seeds 100000 --jobs 2        # outside CI; tests/test_fleet_simulation.py runs 200
    python -m fuzz.fleet --seed 17 --trace              # what happened in one of them
    python -m fuzz.fleet --seeds 10000 --forgets        # with a store that loses its last write now and then

The leases (`lolrt.fleet.lease`), the fencing (`lolrt.fleet.fencing`) and the viewers' relay (`lolrt.fleet.relay`) are the real ones. What
is simulated is what surrounds them: clocks, messages, the store's latency, and a model in place of the real one, whose chunks are hashes of
all that came before.

Faults, drawn by the seed: replicas and the lease service crash, or stop for a while and go on; replicas are cut off from the lease
service, the store or the viewers, or have no room any more for what they are taking over; messages are lost, late, doubled and overtaken;
the store is slow, fails, and takes the writes of a process that is dead already, or loses them. After a time of faults there is one of
peace, in which everything has to come right.

Checked: no chunk is shown twice by different owners (at most one writer); each viewer gets every chunk once, in order, and each chunk is
the one that follows from those before; at the end every session is on exactly one replica, and goes on.

A store must not lose a write that has returned (docs/fleet.md). With `forgets` it does. Still no chunk is shown twice but the one that was
lost, viewers get their chunks once and in order, and sessions that are there go on. A lost write costs one thing at most, by what it wrote:

    a snapshot    the session, or a cut in the video: what was asked of it after the snapshot before is forgotten
    a journal     a cut: an interaction that viewers have seen is forgotten
    a chunk       that chunk, for a viewer who has not had it, or a cut: it is made again, with what was asked meanwhile
    a claim       nothing
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fuzz import seeds
from fuzz.replica import LEASE_SECONDS, PAST, Live, Replica
from fuzz.world import Host, Question, Steps, ViolationError, World, quietly
from lolrt.fleet.fencing import CLAIMS
from lolrt.fleet.lease import Beat, LeaseTable, Orders
from lolrt.fleet.relay import Relay
from lolrt.serve.folder import CHUNKS, JOURNAL, SNAPSHOT

FAULTY_SECONDS, PEACE_SECONDS = 40.0, 60.0


def kind_of(name: str) -> str:
    """What a file of a session is."""
    _, folder, file, *_ = name.split("/")
    return CLAIMS if folder == CLAIMS else file


@dataclass
class Viewer:
    id: str
    relay: Relay = field(default_factory=lambda: Relay(0))
    last: str = ""
    seen: int = 0
    heard: float = 0.0


class Fleet:
    def __init__(
        self,
        seed: int,
        trace: bool = False,
        *,
        replicas: int = 3,
        sessions: int = 3,
        places: int | None = None,
        forgets: bool = False,
        answer: float | None = None,
    ) -> None:
        """places: of each replica; by default one more than are needed without one of the replicas. answer: of the lease service, as of
        `Host`."""
        self.world, self.forgets, self.answer = World(seed, trace), forgets, answer
        self.random = self.world.random
        self.costs: dict[str, int] = {}
        """What lost writes have cost each session: cuts, chunks that its viewer has missed, and its end."""
        self.first: dict[str, dict[int, tuple[int, tuple[str, str]]]] = {}
        """By which epoch each chunk was first shown, and what it was."""
        self.numbers = itertools.count()
        self.ids = [f"s{number}" for number in range(sessions)]
        self.places = -(-sessions // max(1, replicas - 1)) + 1 if places is None else places
        self.new_table()
        self.replicas: list[Replica] = []
        for _ in range(replicas):
            self.add()
        self.viewers = [Viewer(id) for id in self.ids]
        self.gateway = Host("gateway")
        self.locating, self.placing = Batched(self, self.locate), Batched(self, self.place)

    def new_table(self) -> None:
        self.service = Service(self)

    def add(self) -> None:
        self.replicas.append(Replica(self, f"r{next(self.numbers)}", self.places))

    def beat(self, beat: Beat, table: LeaseTable) -> tuple[Orders, float]:
        return table.beat(beat, self.service.time), table.pause

    def locate(self, sessions: list[str], table: LeaseTable) -> dict[str, str | None]:
        return {session: table.locate(session, self.service.time) for session in sessions}

    def place(self, sessions: list[str], table: LeaseTable) -> dict[str, str | None]:
        return table.place(sessions, self.service.time)

    def question(self, ask: Callable[[LeaseTable], Any]) -> Question:
        return Question(lambda: self.service, lambda: ask(self.service.table))

    def shown(self, live: Live, number: int, content: tuple[str, str]) -> None:
        """A chunk can be seen by viewers, and was not before."""
        shown = self.first.setdefault(live.id, {})
        lost = {name.rpartition("/")[2] for name in self.world.lost if name.startswith(f"{live.id}/") and kind_of(name) == CHUNKS}
        if number in shown and str(number) not in lost:
            raise ViolationError(
                f"{live.id}: chunk {number} is shown by epoch {live.claim.epoch} and was by {shown[number][0]}: two have written"
            )
        shown[number] = live.claim.epoch, content

    def named(self, name: str | None) -> Replica | None:
        return next((one for one in self.replicas if one.name == name), None) if name is not None else None

    def lost_of(self, id: str, *kinds: str) -> int:
        """How many writes of a session the store has lost, of these kinds."""
        return sum(name.startswith(f"{id}/") and kind_of(name) in kinds for name in self.world.lost)

    def costing(self, id: str, error: str, *kinds: str) -> None:
        """Something that must not happen, unless a write of one of these kinds was lost; and each pays for one alone."""
        self.costs[id] = self.costs.get(id, 0) + 1
        if not self.lost_of(id, *kinds) or self.costs[id] > self.lost_of(id, *PAST):
            raise ViolationError(f"{id}: {error}")
        self.world.tell(id, error)

    # What people do.

    def watch(self, viewer: Viewer) -> Steps:
        """A viewer, on a host that does not fail, as the gateway."""
        while True:
            replica = self.named((yield from self.locating.ask(viewer.id)))
            live = replica.live.get(viewer.id) if replica is not None else None
            if replica is None or live is None or not replica.alive or self.world.cut("gateway", replica.name):
                yield 0.1
                continue
            self.hear(viewer, {"type": "video.start", "sequence": viewer.relay.next}, None)
            # A connection: chunks come one after the other until it breaks.
            cursor = viewer.relay.next or 0
            while replica.alive and not live.gone and not self.world.cut("gateway", replica.name):
                if cursor in live.chunks and replica.stopped_until <= self.world.now:
                    self.hear(viewer, {"type": "video.chunk_metadata", "sequence": cursor}, live.chunks[cursor])
                    cursor += 1
                elif live.chunks and cursor < min(live.chunks):
                    self.costing(viewer.id, f"chunk {cursor} is not there any more", CHUNKS)
                    gap, cursor = cursor, min(live.chunks)
                    viewer.relay.takes({"type": "video.gap", "from": gap, "to": cursor})
                    viewer.seen, viewer.last = cursor, live.chunks[cursor][0]
                yield 0.1
            yield 0.1

    def hear(self, viewer: Viewer, message: dict[str, Any], content: tuple[str, str] | None) -> None:
        if not viewer.relay.takes(message) or content is None:
            return
        if message["sequence"] != viewer.seen:
            raise ViolationError(f"{viewer.id}: a viewer gets chunk {message['sequence']} after {viewer.seen - 1}")
        if viewer.seen and content[0] != viewer.last:
            self.costing(viewer.id, f"chunk {viewer.seen} does not follow from the one before", *PAST)
        viewer.seen, viewer.last, viewer.heard = viewer.seen + 1, content[1], self.world.now

    def open(self, id: str) -> Steps:
        """Asks for a session until it has begun."""
        while id not in self.first:
            replica = self.named((yield from self.placing.ask(id)))
            if replica is not None and replica.alive and id not in replica.live:
                self.world.start(replica, quietly(replica.open(id)))
            yield 3.0

    def steer(self, id: str) -> Steps:
        while True:
            yield self.random.uniform(1.0, 6.0)
            for replica in self.replicas:  # a request by a gateway that believes any of them
                live = replica.live.get(id)
                if replica.alive and live is not None and self.random.random() < 0.8:
                    live.waiting.append(f"p{next(self.numbers)}")

    # What goes wrong.

    def trouble(self) -> Steps:
        while self.world.now < FAULTY_SECONDS:
            yield self.random.expovariate(0.4)
            if self.forgets:
                self.world.lose_last_write()
            alive = [one for one in self.replicas if one.alive]
            seconds = self.random.choice((0.5, 3.0, LEASE_SECONDS + 1, 15.0))
            seconds = min(seconds, max(0.0, FAULTY_SECONDS - self.world.now))
            what, one = self.random.random(), self.random.choice(alive) if alive else None
            if what < 0.2 and one is not None:
                self.world.tell("crash", one.name)
                one.alive = False
                self.world.after(self.random.uniform(0.5, 10.0), self.add)
            elif what < 0.3:
                self.world.tell("crash of the lease service")
                self.service.alive = False
                self.world.after(self.random.uniform(0.1, 4.0), self.new_table)
            elif what < 0.5 and one is not None:
                self.world.tell("stop", one.name, seconds)
                one.stopped_until = self.world.now + seconds
            elif what < 0.8 and one is not None:
                other = self.random.choice(("service", "store", "gateway"))
                self.world.tell("cut", one.name, other, seconds)
                self.world.cuts[min(one.name, other), max(one.name, other)] = self.world.now + seconds
            elif what < 0.9:
                self.fill([replica for replica in alive if replica.taking])
            elif one is not None and not any(replica.draining for replica in alive):
                self.world.tell("drain", one.name)
                one.draining = True
                self.add()

    def fill(self, replicas: list[Replica]) -> None:
        """Sessions without an id, which have no leases, take the places that one of these replicas had left. There is one such at most."""
        if replicas and not any(one.alive and one.places < self.places for one in self.replicas):
            one = self.random.choice(replicas)
            one.places = len(one.live)
            self.world.tell("fill", one.name, one.places)

    def run(self) -> dict[str, int]:
        """Runs it all. Returns counts. Raises `ViolationError`."""
        away = self.gateway
        for viewer in self.viewers:
            self.world.start(away, self.open(viewer.id))
            self.world.start(away, self.watch(viewer))
            self.world.start(away, self.steer(viewer.id))
        self.world.start(away, self.trouble())
        self.world.run(FAULTY_SECONDS)
        self.world.peaceful = True
        self.world.tell("peace")
        self.world.run(FAULTY_SECONDS + PEACE_SECONDS)
        self.check()
        return {
            "chunks": sum(viewer.seen for viewer in self.viewers),
            "moves": sum(len({epoch for epoch, _ in shown.values()}) - 1 for shown in self.first.values()),
            "crashes": sum(not replica.alive for replica in self.replicas),
            **(self.losses() if self.forgets else {}),
        }

    def losses(self) -> dict[str, int]:
        """Counts of the writes that the store has lost, and of what they have cost."""
        lost = {kind: sum(kind_of(name) == kind for name in self.world.lost) for kind in (CLAIMS, SNAPSHOT, JOURNAL, CHUNKS)}
        return {**{f"lost of {kind}": count for kind, count in lost.items()}, "costs": sum(self.costs.values())}

    def check(self) -> None:
        for viewer in self.viewers:
            owners = [one.name for one in self.replicas if one.alive and viewer.id in one.live]
            if not owners and viewer.id not in self.world.names("") and self.first.get(viewer.id):
                self.costing(viewer.id, "is lost: it has ended", SNAPSHOT)
                continue
            if len(owners) != 1:
                raise ViolationError(f"{viewer.id} is lost: at the end it is on {owners}, and there is room")
            if self.world.now - viewer.heard > 5.0:
                raise ViolationError(f"{viewer.id}: its viewer has seen nothing for {self.world.now - viewer.heard:.0f} s of peace")


class Batched:
    """What a gateway asks about sessions, as `lolrt.fleet.batched` does: one question after another, each for all who wait."""

    def __init__(self, fleet: Fleet, of: Callable[[list[str], LeaseTable], dict[str, str | None]]) -> None:
        self._fleet, self._of = fleet, of
        self._asked: set[str] = set()
        self._answers: dict[str, str | None] = {}
        fleet.world.start(fleet.gateway, self._ask())

    def ask(self, session: str) -> Steps:
        self._asked.add(session)
        while session not in self._answers:
            yield 0.1
        return self._answers.pop(session)

    def _ask(self) -> Steps:
        while True:
            if not self._asked:
                yield 0.05
                continue
            asked, self._asked = sorted(self._asked), set()
            try:
                self._answers |= yield self._fleet.question(functools.partial(self._of, asked))
            except OSError:
                self._answers |= dict.fromkeys(asked)


class Service(Host):
    """The lease service."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__("service", clock=fleet.random.uniform(-1e6, 1e6), answer=fleet.answer)
        self.fleet = fleet
        self.table = LeaseTable(LEASE_SECONDS, self.time)
        fleet.world.start(self, self.look())

    @property
    def time(self) -> float:
        return self.fleet.world.now + self.clock

    def look(self) -> Steps:
        while True:
            try:
                sessions = yield lambda store: store.names("")
                self.fleet.world.work(self, functools.partial(self.table.stored, sessions, self.time))
            except OSError:
                pass
            yield LEASE_SECONDS / 8


def run(seed: int, trace: bool = False, forgets: bool = False) -> dict[str, int] | str:
    """Counts of one simulation, or what went wrong in it."""
    try:
        return Fleet(seed, trace, forgets=forgets).run()
    except ViolationError as error:
        return f"seed {seed}: {error}"


def main() -> None:
    parser = seeds.arguments(__doc__)
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--forgets", action="store_true", help="the store loses its last write now and then")
    chosen = parser.parse_args()
    if chosen.seed is not None:
        print(run(chosen.seed, chosen.trace, chosen.forgets))
        return
    seeds.run_all(functools.partial(run, forgets=chosen.forgets), chosen)


if __name__ == "__main__":
    main()
