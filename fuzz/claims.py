"""One session and all who may claim it, with their operations on the store in any order.

    python -m fuzz.claims --seeds 100000

The fleet's simulation (fuzz/fleet.py) has clocks and leases, so that two replicas seldom do the same, and nobody ends a session that has
been seen. Here there are no leases: processes begin the session, take it over, show chunks, end it and crash, and each may stop between any
two operations while the others do all of that. Listings and removals of folders take a while, too.

Checked: each chunk is shown once, after those before it; another session of the same name is seen only if somebody has ended the one
before; and of one that has been ended nothing is seen any more.
"""

from __future__ import annotations

import contextlib

from fuzz import seeds
from fuzz.world import Steps, ViolationError, World
from lolrt.fleet import fencing
from lolrt.serve.folder import CHUNKS, SNAPSHOT

PROCESSES, TURNS = 4, 300


class Store(World):
    """A removal that is not `done` has removed some of the files, and is to be asked for again."""

    done = True

    def remove(self, name: str) -> None:
        session, _, rest = name.partition("/")
        files = [one for one in self.files[session] if one == rest or one.startswith(f"{rest}/")]
        self.done = len(files) < 2 or self.random.random() < 0.5
        for one in files if self.done else self.random.sample(files, len(files) // 2):
            del self.files[session][one]


class Process:
    """Runs steps, an operation at a time."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._listed: list[str] | None = None
        self.wanted = next(steps)

    def go_on(self, store: Store) -> None:
        """One operation. Raises StopIteration at the end."""
        try:
            found = self.wanted(store)
        except FileNotFoundError as error:
            self.wanted = self._steps.throw(error)
            return
        if not store.done:
            store.done = True
            return
        if isinstance(found, list):  # a listing: what was there all the time, and some of the rest
            if self._listed is None:
                self._listed = found
                return
            found = [
                name
                for name in sorted({*found, *self._listed})  # a set has its order of each process
                if (name in found and name in self._listed) or store.random.random() < 0.5
            ]
            self._listed = None
        self.wanted = self._steps.send(found)


class Claims:
    def __init__(self, seed: int) -> None:
        self.store = Store(seed, trace=False)
        self.random = self.store.random
        self.life, self.shown = "", list[str]()
        """Which session was seen last, and its chunks."""
        self.ended, self.gone = {""}, set[str]()
        """Those that somebody has begun to end, and those that have been ended or after which another one was seen."""
        self.counts = {"sessions": 0, "chunks": 0, "moves": 0}

    def token(self) -> str:
        return f"{self.random.getrandbits(40):x}"

    def show(self, life: str, chunks: list[str]) -> None:
        """The last one of these chunks can be seen."""
        if life in self.gone:
            raise ViolationError(f"session {life} is seen, and is gone")
        if life != self.life:
            if self.life not in self.ended:
                raise ViolationError(f"session {life} is seen, and nobody has ended {self.life}")
            self.gone.add(self.life)
            self.life, self.shown = life, []
            self.counts["sessions"] += 1
        if chunks[: len(self.shown)] != self.shown or len(chunks) == len(self.shown):
            raise ViolationError(f"session {life}: chunk {len(chunks) - 1} is shown after {len(self.shown) - 1}: two have written")
        self.shown = list(chunks)
        self.counts["chunks"] += 1

    def use(self) -> Steps:
        """What a process does with the session."""
        begins = self.random.random() < 0.5
        claim = yield from (fencing.claim_new if begins else fencing.take_over)("s", self.token())
        if claim is None:
            return
        chunks: list[str] = []
        if begins:
            life = claim.token
            if not (yield from self.write(claim, SNAPSHOT, life)):
                return
        else:
            try:
                life = (yield lambda store: store.read(f"{claim.folder}/{SNAPSHOT}")).decode()
                for number in range(len((yield lambda store: store.names(f"{claim.folder}/{CHUNKS}")))):
                    chunks.append((yield lambda store, number=number: store.read(f"{claim.folder}/{CHUNKS}/{number}")).decode())
            except FileNotFoundError:  # somebody has ended it
                return
            self.counts["moves"] += 1
        while self.random.random() < 0.8:
            chunks.append(self.token())
            if not (yield from self.write(claim, f"{CHUNKS}/{len(chunks) - 1}", chunks[-1])):
                return
            self.show(life, chunks)
        if self.random.random() < 0.5:
            self.ended.add(life)
            if (yield from fencing.end(claim)):
                self.gone.add(life)

    def write(self, claim: fencing.Claim, name: str, content: str) -> Steps:
        return fencing.write_fenced(claim, lambda store: store.write(f"{claim.folder}/{name}", content.encode()), lambda: True)

    def run(self) -> dict[str, int]:
        """Returns counts. Raises `ViolationError`."""
        running, late = [Process(self.use()) for _ in range(PROCESSES)], []
        for _ in range(TURNS):
            number = self.random.randrange(PROCESSES)
            try:
                for _ in range(self.random.choice((1, 2, 5, 20, 80))):
                    running[number].go_on(self.store)
                if self.random.random() > 0.05:
                    continue
                late.append(running[number].wanted)  # it crashes, and what it has asked for last comes when it may
            except StopIteration:
                pass
            running[number] = Process(self.use())
            if late and self.random.random() < 0.2:
                with contextlib.suppress(FileNotFoundError):
                    late.pop(0)(self.store)
        return self.counts


def run(seed: int) -> dict[str, int] | str:
    """Counts of one simulation, or what went wrong in it."""
    try:
        return Claims(seed).run()
    except ViolationError as error:
        return f"seed {seed}: {error}"


def main() -> None:
    seeds.run_all(run, seeds.arguments(__doc__).parse_args())


if __name__ == "__main__":
    main()
