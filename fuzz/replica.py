"""A replica of the simulated fleet, and the sessions on it: what the simulation has in place of a server with its engine."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fuzz.world import Host, Steps, ViolationError, once, quietly, removing
from lolrt.fleet import fencing
from lolrt.fleet.fencing import Claim
from lolrt.fleet.lease import BEAT_SECONDS, Beat, Holding, Orders
from lolrt.serve.folder import CHUNKS, JOURNAL, SNAPSHOT

if TYPE_CHECKING:
    from fuzz.fleet import Fleet

LEASE_SECONDS, CHUNK_SECONDS = 6.0, 0.75
SAVE_EVERY, KEPT_CHUNKS = 5, 40
# What a session goes on from.
PAST = (SNAPSHOT, JOURNAL, CHUNKS)


def step(state: str, prompt: str) -> str:
    """What a chunk makes of the state before it."""
    return hashlib.blake2b(f"{state} {prompt}".encode(), digest_size=6).hexdigest()


@dataclass
class Live:
    """A session on a replica: what `lolrt.serve.live` and `factory.revive` are to the real one."""

    id: str
    claim: Claim
    state: str
    prompt: str
    sequence: int
    end: int
    """Chunks before this one have been shown, and are made again in silence."""
    chunks: dict[int, tuple[str, str]] = field(default_factory=dict)
    """What viewers may ask for: the state before and after each."""
    journal: list[tuple[int, str]] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    whole: bool = False
    saving: bool = False
    lost: bool = False
    gone: bool = False
    leaving: bool = False

    def snapshot(self) -> bytes:
        return json.dumps([self.state, self.prompt, self.sequence, self.waiting]).encode()

    def path(self, name: str) -> str:
        return f"{self.claim.folder}/{name}"


class Replica(Host):
    def __init__(self, fleet: Fleet, name: str, places: int) -> None:
        super().__init__(name, clock=fleet.world.random.uniform(-1e6, 1e6))
        self.fleet, self.world, self.places = fleet, fleet.world, places
        self.live: dict[str, Live] = {}
        self.taking: set[str] = set()
        self.released: set[str] = set()
        self.draining = False
        self.holding = Holding()
        self.world.start(self, self.report())

    @property
    def time(self) -> float:
        return self.world.now + self.clock

    def holds(self) -> bool:
        return self.holding.holds(self.time)

    def report(self) -> Steps:
        pause = BEAT_SECONDS
        while True:
            held = {id: live.claim.epoch for id, live in self.live.items()}
            released = frozenset(self.released)
            room = self.places - len(held)
            beat = Beat(self.name, self.name, room, held, frozenset(self.taking), released, self.draining)
            ask = functools.partial(self.fleet.beat, beat)
            sent = self.time
            try:
                orders, pause = yield self.fleet.question(ask)
            except OSError:
                orders = Orders()
            else:
                self.holding.answered(sent, LEASE_SECONDS)
                self.released -= released
            for id in orders.drop if self.holds() else tuple(self.live):
                if id in self.live:
                    self.drop(self.live[id])
            for id in orders.give:
                if id in self.live:
                    self.live[id].leaving = True
            for id in sorted(set(orders.take) - self.taking - self.live.keys()):  # a set has its order of each process
                self.taking.add(id)
                self.world.start(self, self.take(id))
            yield max(0.0, sent + pause - self.time)

    def drop(self, live: Live) -> None:
        self.world.tell(self.name, "drops", live.id)
        live.gone = True
        if self.live.get(live.id) is live:
            del self.live[live.id]

    def open(self, id: str) -> Steps:
        """A new session, as POST /v1/sessions makes it."""
        claim = yield from fencing.claim_new(id, self.token())
        if claim is not None and len(self.live) < self.places:
            live = self.live[id] = Live(id, claim, step(id, "begin"), "first", 0, 0)
            self.world.tell(self.name, "opens", id)
            self.world.start(self, self.work(live))

    def token(self) -> str:
        return f"{self.world.random.getrandbits(40):x}"

    def take(self, id: str) -> Steps:
        try:
            claim = yield from fencing.take_over(id, self.token())
            if claim is None:
                return
            state, prompt, sequence, waiting = json.loads((yield lambda store: store.read(f"{claim.folder}/{SNAPSHOT}")))
            try:
                journal = json.loads((yield lambda store: store.read(f"{claim.folder}/{JOURNAL}")))
            except FileNotFoundError:
                journal = []
            chunks: dict[int, tuple[str, str]] = {}
            for number in sorted(map(int, (yield lambda store: store.names(f"{claim.folder}/{CHUNKS}"))), reverse=True):
                if chunks and number != min(chunks) - 1:
                    break
                found = yield lambda store, number=number: store.read(f"{claim.folder}/{CHUNKS}/{number}")
                chunks[number] = tuple(json.loads(found))
            end = max(max(chunks, default=-1) + 1, sequence)
            noted = {prompt for _, prompt in journal}
            live = Live(id, claim, state, prompt, sequence, end, chunks, [tuple(one) for one in journal if one[0] >= sequence])
            live.waiting = [one for one in waiting if one not in noted]
            live.whole = True
            if len(self.live) >= self.places or not self.holds():
                self.world.tell(self.name, "cannot take", id)
                return
            self.world.tell(self.name, "has taken", id, "epoch", claim.epoch, "at", sequence, "shown to", end)
            self.live[id] = live
            self.world.start(self, self.work(live))
        except OSError:
            pass  # the lease of what it could not take will be over
        finally:
            self.taking.discard(id)

    def work(self, live: Live) -> Steps:
        """Makes chunks until the session is not here any more."""
        self.world.start(self, self.save(live, live.snapshot(), live.sequence))
        while not live.gone:
            yield CHUNK_SECONDS * (0.2 if live.sequence < live.end else self.world.random.uniform(0.3, 1.0))
            if live.gone:
                return
            if live.leaving:
                yield from self.leave(live)
                return
            for at, prompt in live.journal:
                if at == live.sequence:
                    live.prompt = prompt
            if live.waiting and live.sequence >= live.end:
                prompt = live.waiting.pop(0)
                live.journal.append((live.sequence, prompt))
                journal = json.dumps(live.journal).encode()
                if not (yield from self.fenced(live, JOURNAL, journal)):
                    self.drop(live)
                    return
                live.prompt = prompt
            before, live.state = live.state, step(live.state, live.prompt)
            number, content = live.sequence, (before, live.state)
            if number < live.end:
                if number in live.chunks and live.chunks[number] != content and not self.fleet.lost_of(live.id, *PAST):
                    raise ViolationError(f"{live.id}: chunk {number} was made again, and is another one")
            else:
                while not live.whole:
                    if not self.holds() or live.lost or live.gone:
                        self.drop(live)
                        return
                    yield 0.1
                if not (yield from self.fenced(live, f"{CHUNKS}/{number}", json.dumps(content).encode())):
                    self.drop(live)
                    return
                if not live.gone:
                    self.fleet.shown(live, number, content)
                    live.chunks[number] = content
            live.sequence += 1
            for old in [one for one in live.chunks if one < live.sequence - KEPT_CHUNKS]:
                del live.chunks[old]
                self.world.start(self, quietly(once(removing(live.path(f"{CHUNKS}/{old}")))))
            if live.sequence % SAVE_EVERY == 0 and not live.saving:
                self.world.start(self, self.save(live, live.snapshot(), live.sequence))

    def fenced(self, live: Live, name: str, content: bytes) -> Steps:
        return (yield from fencing.write_fenced(live.claim, lambda _: self.world.write(live.path(name), content), self.holds))

    def save(self, live: Live, content: bytes, sequence: int) -> Steps:
        """One at a time, so that a later one is not written over by one that had to be tried again."""
        live.saving = True
        if (yield from self.fenced(live, SNAPSHOT, content)):
            live.whole = True
            live.journal = [one for one in live.journal if one[0] >= sequence]
        else:
            live.lost = True
        live.saving = False

    def leave(self, live: Live) -> Steps:
        while live.saving:
            yield 0.1
        if (yield from self.fenced(live, SNAPSHOT, live.snapshot())):
            self.released.add(live.id)
        self.drop(live)
