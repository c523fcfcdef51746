"""Which replica has which session: a table of leases.

Nothing here reads a clock, sends a message or touches a file: every method gets the time, in seconds by the clock of the process that has
the table. A replica reports at least once a second (`Beat`), which renews its leases, and gets `Orders`. The table never calls out.

The table may be lost: replicas report what they have, and the store says which sessions exist. A new table waits for a lease's length
before it gives away what nobody has reported. Leases keep two replicas from doing the same work; that only one of two can write is up to
the store (`lolrt.fleet.fencing`).
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# Seconds between the reports of a replica, and how many reports a second all send together before each reports less often.
BEAT_SECONDS, MOST_BEATS = 0.4, 1000.0


@dataclass(frozen=True)
class Beat:
    """What a replica reports."""

    replica: str
    address: str
    """Where it answers requests."""
    room: int
    """The number of sessions that it could open."""
    held: dict[str, int]
    """Its sessions, and with which epoch (`lolrt.fleet.fencing`) each was claimed."""
    taking: frozenset[str] = frozenset()
    """Sessions that it is taking over at the moment."""
    released: frozenset[str] = frozenset()
    """Sessions that it has saved and given up since the last beat."""
    leaving: bool = False
    """Whether it is about to end, and gives up its sessions one by one."""


@dataclass(frozen=True)
class Orders:
    """What a replica is to do. Orders are repeated until the replica's reports show that they were followed."""

    take: tuple[str, ...] = ()
    """Take these sessions over."""
    drop: tuple[str, ...] = ()
    """Forget these sessions at once: others have them."""
    give: tuple[str, ...] = ()
    """Save these sessions and give them up: there is a place for each."""


@dataclass
class Replica:
    address: str
    room: int
    leaving: bool
    heard: float


@dataclass
class Lease:
    replica: str
    until: float
    epoch: int
    """The highest epoch reported so far; one more where the replica is still to take the session over."""
    take: bool = False
    """Whether the replica is still to take the session over."""
    taking: bool = False
    """Whether the replica has reported that it does so."""


@dataclass
class LeaseTable:
    seconds: float
    """How long a lease lasts without a beat."""
    begun: float
    """When the table was made."""
    leases: dict[str, Lease] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    moves: dict[str, str] = field(default_factory=dict)
    """The session that each leaving replica is giving up."""
    there: frozenset[str] = frozenset()
    """The sessions that the store had when it was looked into last."""
    _of: dict[str, dict[str, None]] = field(default_factory=dict)
    """The sessions of each replica, in the order in which they came. A beat must not look at all leases."""
    _coming: dict[str, Lease] = field(default_factory=dict)
    """The leases of sessions that their replicas have not reported yet. The choice of a replica must not look at all leases either."""

    def beat(self, beat: Beat, now: float) -> Orders:
        """Renews the leases of a replica. Returns what it is to do."""
        self.replicas[beat.replica] = Replica(beat.address, beat.room, beat.leaving, now)
        drop = [session for session, epoch in beat.held.items() if not self._renew(session, beat.replica, epoch, now)]
        take = []
        for session in list(self._of.get(beat.replica, ())):
            lease = self.leases[session]
            if session in beat.taking:
                lease.until, lease.taking = now + self.seconds, True
            elif session in beat.released:
                lease.until = now
                if (best := next(self._places(now), None)) is not None:
                    self._assign(session, best, now)
            elif lease.take and not lease.taking and lease.until > now:
                take.append(session)
            elif (lease.epoch > 0 or lease.taking) and session not in beat.held:
                lease.until = min(lease.until, now)  # it has ended there, or could not be taken: another replica may have room
        give = self._next_move(beat, now) if beat.leaving else ()
        return Orders(tuple(take), tuple(drop), give)

    def _renew(self, session: str, replica: str, epoch: int, now: float) -> bool:
        """Renews the lease of a session that a replica reports, unless another one has it. Returns whether it did."""
        lease = self.leases.get(session)
        if lease is not None and lease.replica != replica:
            newest = epoch > lease.epoch if lease.until > now else epoch >= lease.epoch - lease.take
            if not newest:
                return False
        self._set(session, Lease(replica, now + self.seconds, epoch))
        return True

    def _next_move(self, beat: Beat, now: float) -> tuple[str, ...]:
        """The session that a leaving replica is to give up: one at a time, when the one before is elsewhere."""
        moving = self.moves.get(beat.replica, "")
        if moving in beat.held:
            return (moving,)
        lease = self.leases.get(moving)
        if lease is not None and lease.take and lease.until > now:
            return ()
        if beat.held and next(self._places(now), None) is not None:
            self.moves[beat.replica] = min(beat.held)
            return (self.moves[beat.replica],)
        return ()

    @property
    def pause(self) -> float:
        """How many seconds after a report a replica is to send the next one. Two that are lost in a row must not cost its leases."""
        return min(max(BEAT_SECONDS, len(self.replicas) / MOST_BEATS), self.seconds / 6)

    def place(self, sessions: Iterable[str], now: float, at: str | None = None) -> dict[str, str | None]:
        """Chooses a replica for each of these new sessions, or that at the address `at`. Returns their addresses; None: none has room, or
        the session is in the store and between two replicas. A lease lasts only if the replica reports the session."""
        named = [name for name, one in self.replicas.items() if one.address == at]
        names: Iterator[str] = self._places(now) if at is None else itertools.cycle(named)
        found: dict[str, str | None] = {}
        for session in sessions:
            lease = self.leases.get(session)
            replica: str | None = None
            if lease is not None and lease.until > now and lease.replica in self.replicas:
                replica = lease.replica  # which will say that the session exists
            elif session not in self.there:  # else a lease would only keep it from those who can go on with it
                replica = next(names, None)
                if replica is not None:
                    self._set(session, Lease(replica, now + self.seconds, 0))
            found[session] = None if replica is None else self.replicas[replica].address
        return found

    def locate(self, session: str, now: float) -> str | None:
        """The address of the replica that has a session; None: none has it now."""
        lease = self.leases.get(session)
        if lease is None or lease.take or lease.until <= now:
            return None
        replica = self.replicas.get(lease.replica)
        return None if replica is None else replica.address

    def stored(self, sessions: Iterable[str], now: float) -> None:
        """Is told which sessions the store has. Those without a lease are given to replicas with room; leases of sessions that neither a
        replica nor the store has any more are forgotten."""
        there = self.there = frozenset(sessions)
        self.replicas = self.alive(now)
        self._of = {name: sessions for name, sessions in self._of.items() if sessions or name in self.replicas}
        for session in [session for session, lease in self.leases.items() if lease.until <= now and session not in there]:
            del self._of[self.leases.pop(session).replica][session]
            self._coming.pop(session, None)
        if now - self.begun < self.seconds:
            return  # replicas that know an earlier table have not all reported yet
        places = self._places(now)
        for session in sorted(there):
            lease = self.leases.get(session)
            if (lease is None or lease.until <= now) and (replica := next(places, None)) is not None:
                self._assign(session, replica, now)

    def knows(self, session: str) -> bool:
        """Whether there is, or was a moment ago, such a session."""
        return session in self.leases

    def alive(self, now: float) -> dict[str, Replica]:
        """The replicas that have reported within a lease's length."""
        return {name: one for name, one in self.replicas.items() if now - one.heard < self.seconds}

    def _assign(self, session: str, replica: str, now: float) -> None:
        """Gives a session that was elsewhere to a replica."""
        before = self.leases.get(session)
        self._set(session, Lease(replica, now + self.seconds, 0 if before is None else before.epoch + 1, take=True))

    def _set(self, session: str, lease: Lease) -> None:
        before = self.leases.get(session)
        if before is not None:
            del self._of[before.replica][session]
        self.leases[session] = lease
        self._of.setdefault(lease.replica, {})[session] = None
        if lease.take or lease.epoch == 0:
            self._coming[session] = lease
        else:
            self._coming.pop(session, None)

    def _places(self, now: float) -> Iterator[str]:
        """The replicas that have room, each once for each place, those with the most room first. Sessions that a replica has not reported
        yet have their places too."""
        coming = Counter(lease.replica for lease in self._coming.values() if lease.until > now)
        rooms = [(coming[name] - one.room, name) for name, one in self.alive(now).items() if not one.leaving]
        heapq.heapify(rooms)
        while rooms and rooms[0][0] < 0:
            less, name = rooms[0]
            heapq.heapreplace(rooms, (less + 1, name))
            yield name


@dataclass
class Holding:
    """The leases of one replica, as the replica sees them. Times are by its own clock."""

    until: float = -float("inf")
    """Until when its leases certainly last. A beat renews them from when it was sent, which is before the table received it."""

    def answered(self, sent: float, seconds: float) -> None:
        """A beat that was sent at `sent` was answered, by a table whose leases last `seconds`."""
        self.until = max(self.until, sent + seconds)

    def holds(self, now: float) -> bool:
        """Whether the replica may work on its sessions. If not, others may have them."""
        return now < self.until
