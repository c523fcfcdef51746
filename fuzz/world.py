"""A world of hosts by one seeded clock: programs that run on them, their messages, a store, and faults in all of these.

A program is a generator. It yields waits in seconds, operations on the store (`lolrt.fleet.fencing.Operation`) and questions to other
hosts, and gets answers, or OSError.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from lolrt.fleet import fencing


class ViolationError(AssertionError):
    """Something that must not happen has happened."""


@dataclass
class Host:
    """A machine: what runs on it ends when it crashes, and waits while it is stopped."""

    name: str
    alive: bool = True
    stopped_until: float = 0.0
    clock: float = 0.0
    """What its clock shows more than the true time."""
    answer: float | None = None
    """Seconds that each answer takes it beside its computing, which is measured: it answers one question after another. None: no time."""
    busy_until: float = 0.0


Steps = Generator[Any, Any, Any]


class World:
    """The clock, and all that is to happen."""

    def __init__(self, seed: int, trace: bool) -> None:
        self.random, self.now, self.trace = random.Random(seed), 0.0, trace
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self.peaceful = False
        self.cuts: dict[tuple[str, str], float] = {}
        """Until when two are cut off from each other."""
        self.files: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        """The store: of each session, the files by the rest of their names."""
        self.lost: list[str] = []
        """The files whose last write the store has lost, though it had returned."""
        self._written: tuple[str, bytes | None] | None = None
        """What was written last, and what was there before."""

    def tell(self, *words: object) -> None:
        if self.trace:
            print(f"{self.now:8.3f}", *words)

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._count), act))

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, act = heapq.heappop(self._queue)
            act()
        self.now = until

    def cut(self, a: str, b: str) -> bool:
        return self.cuts.get((min(a, b), max(a, b)), 0.0) > self.now

    def delay(self) -> float:
        """How long a message takes."""
        slow = 0.02 if self.peaceful else self.random.choice((0.01, 0.01, 0.02, 0.05, 0.5, 3.0) if self.random.random() < 0.1 else (0.01,))
        return slow * self.random.uniform(0.5, 1.5)

    def start(self, host: Host, steps: Steps) -> None:
        self._step(host, steps, None, None)

    def _step(self, host: Host, steps: Steps, found: Any, error: Exception | None) -> None:
        if not host.alive:
            return
        if host.stopped_until > self.now:
            self.after(host.stopped_until - self.now, lambda: self._step(host, steps, found, error))
            return
        try:
            wanted = steps.throw(error) if error is not None else steps.send(found)
        except StopIteration:
            return
        if isinstance(wanted, float):
            self.after(wanted, lambda: self._step(host, steps, None, None))
        elif isinstance(wanted, Question):
            self._ask(host, wanted, lambda found, error: self._step(host, steps, found, error))
        else:
            self._operate(host, wanted, lambda found, error: self._step(host, steps, found, error))

    def _operate(self, host: Host, operation: fencing.Operation, then: Callable[[Any, Exception | None], None]) -> None:
        """One operation of the store: it happens at one instant, or not at all, and the answer comes later, or an error."""
        fails = not self.peaceful and self.random.random() < 0.01
        if self.cut(host.name, "store") or (fails and self.random.random() < 0.5):
            self.after(0.5, lambda: then(None, OSError("the store does not answer")))
            return

        def happen() -> None:
            if not host.alive and self.random.random() < 0.5:
                return  # it was lost with the host; otherwise it comes late
            found, error = None, None
            try:
                found = operation(self)
            except OSError as raised:
                error = raised
            if fails:  # it has happened, and nobody knows
                error = OSError("the answer was lost")
            self.after(self.delay(), lambda: then(found, error))

        self.after(self.delay(), happen)

    def _ask(self, host: Host, question: Question, then: Callable[[Any, Exception | None], None]) -> None:
        """A question to another host. Lost ones end by a time-out; others may arrive twice."""
        answered = False

        def answer(found: Any, error: Exception | None) -> None:
            nonlocal answered
            if not answered:
                answered = True
                then(found, error)

        def arrive() -> None:
            of = question.of()
            if of is None or not of.alive or of.stopped_until > self.now or self.cut(host.name, of.name):
                return
            found, seconds = self.work(of, question.ask)
            if not self.cut(host.name, of.name) and (self.peaceful or self.random.random() > 0.02):
                self.after(self.delay() + seconds, lambda: answer(found, None))

        for _ in range(2 if not self.peaceful and self.random.random() < 0.03 else 1):
            if self.peaceful or self.random.random() > 0.02:
                self.after(self.delay(), arrive)
        self.after(2.0, lambda: answer(None, OSError("no answer")))

    def work(self, host: Host, act: Callable[[], Any]) -> tuple[Any, float]:
        """What a host computes, and in how many seconds it will have done so, behind all that it was asked before."""
        begun = time.process_time()
        found = act()
        if host.answer is None:
            return found, 0.0
        host.busy_until = max(host.busy_until, self.now) + host.answer + time.process_time() - begun
        return found, host.busy_until - self.now

    # The store: `lolrt.fleet.fencing.Objects`.

    def write(self, name: str, content: bytes) -> None:
        session, _, rest = name.partition("/")
        self._written = name, self.files[session].get(rest)
        self.files[session][rest] = content

    def lose_last_write(self) -> None:
        """As a store does that answers before it has written, and then stops; it loses one write at a time."""
        if self._written is None:
            return
        name, before = self._written
        self._written = None
        session, _, rest = name.partition("/")
        if rest in self.files[session]:  # and was not removed since
            self.tell("the store loses", name)
            self.lost.append(name)
            del self.files[session][rest]
            if before is not None:
                self.files[session][rest] = before

    def read(self, name: str) -> bytes:
        session, _, rest = name.partition("/")
        if rest not in self.files[session]:
            raise FileNotFoundError(name)
        return self.files[session][rest]

    def names(self, folder: str) -> list[str]:
        if not folder:
            return sorted(session for session, files in self.files.items() if files)
        session, _, rest = folder.partition("/")
        start = f"{rest}/" if rest else ""
        return sorted({name[len(start) :].partition("/")[0] for name in self.files[session] if name.startswith(start)})

    def copy(self, source: str, target: str) -> None:
        self.write(target, self.read(source))

    def remove(self, name: str) -> None:
        session, _, rest = name.partition("/")
        files = self.files[session]
        for found in [one for one in files if not rest or one == rest or one.startswith(f"{rest}/")]:
            del files[found]


@dataclass
class Question:
    of: Callable[[], Host | None]
    ask: Callable[[], Any]


def removing(name: str) -> fencing.Operation:
    return lambda store: store.remove(name)


def once(operation: fencing.Operation) -> Steps:
    yield operation


def quietly(steps: Steps) -> Steps:
    """Without its errors of the store: nobody waits for it."""
    try:
        yield from steps
    except OSError:
        return
