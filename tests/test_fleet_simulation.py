"""The fleet by simulation (fuzz/fleet.py, fuzz/claims.py), and that it would see what could be wrong."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import output_of

from fuzz import claims, fleet
from fuzz.world import World
from lolrt.fleet import fencing
from lolrt.fleet.lease import Lease, LeaseTable
from lolrt.fleet.relay import Relay

ROOT = Path(__file__).parents[1]


@pytest.mark.whole
@pytest.mark.parametrize("first", range(0, 200, 50))
def test_no_chunk_is_lost_or_shown_twice_and_no_session_is_lost(first):
    found = [fleet.run(seed) for seed in range(first, first + 50)]
    assert not [one for one in found if isinstance(one, str)]
    assert sum(one["moves"] for one in found) > 100 and sum(one["crashes"] for one in found) > 50


@pytest.mark.whole
def test_what_a_store_costs_that_loses_its_last_write():
    """No more than fuzz/fleet.py says: one thing for each, and nothing for a claim."""
    found = [fleet.run(seed, forgets=True) for seed in range(60)]
    assert not [one for one in found if isinstance(one, str)]
    totals = {name: sum(one[name] for one in found) for name in found[0]}
    assert min(totals.values()) > 10, totals


def test_a_seed_is_always_the_same():
    """In other processes too, whose sets of strings have other orders."""
    assert fleet.run(3) == fleet.run(3) != fleet.run(4)
    script = "from fuzz import fleet; print([fleet.run(seed) for seed in range(4)])"
    told = {output_of(sys.executable, "-c", script, PYTHONHASHSEED=str(order), PYTHONPATH=str(ROOT)) for order in (1, 2)}
    assert told == {f"{[fleet.run(seed) for seed in range(4)]}\n"}


def shown_without_looking(claim: fencing.Claim) -> fencing.Steps[bool]:
    return True
    yield


def copied_the_wrong_way_round(base: str, claim: fencing.Claim) -> fencing.Steps[None]:
    yield fencing._copying(base, claim, fencing.SNAPSHOT)
    with contextlib.suppress(FileNotFoundError):
        yield fencing._copying(base, claim, fencing.JOURNAL)
    for sequence in (yield fencing._naming(f"{base}/{fencing.CHUNKS}")):
        with contextlib.suppress(FileNotFoundError):
            yield fencing._copying(base, claim, f"{fencing.CHUNKS}/{sequence}")


def begins_again(relay: Relay, message: dict) -> bool:
    """A relay that does not remember what its viewer has had."""
    return message["type"] == "video.chunk_metadata"


@pytest.mark.parametrize(
    "of, name, wrong, seen",
    [
        (fencing, "owns", shown_without_looking, "two have written"),
        (fencing, "_copy", copied_the_wrong_way_round, "two have written|made again"),
        (LeaseTable, "_assign", lambda *_: None, "is lost"),
        (Lease, "taking", property(lambda lease: False, lambda lease, told: None), "is lost"),
        (Relay, "takes", begins_again, "a viewer gets"),
    ],
    ids=["fence", "copy", "orphans", "full", "relay"],
)
def test_what_is_wrong_is_seen(monkeypatch, of: object, name: str, wrong: object, seen: str):
    monkeypatch.setattr(of, name, wrong)
    found = (fleet.run(seed) for seed in range(200))
    assert any(isinstance(one, str) and _matches(seen, one) for one in found)


def _matches(seen: str, told: str) -> bool:
    return any(one in told for one in seen.split("|"))


def test_only_one_of_those_who_claim_a_session_writes_it():
    found = [claims.run(seed) for seed in range(40)]
    assert not [one for one in found if isinstance(one, str)]
    assert all(sum(one[name] for one in found) > 100 for name in ("sessions", "chunks", "moves"))


def looks_once(claim: fencing.Claim) -> fencing.Steps[bool]:
    found = yield from fencing._claims(claim.session)
    return bool(found) and found[-1] == claim


def finds_after_looking(claim: fencing.Claim) -> fencing.Steps[list[fencing.Claim] | None]:
    if not (yield from fencing.owns(claim)):
        return None
    names = [*(yield fencing._naming(claim.session)), *(yield fencing._naming(f"{claim.session}/{fencing.CLAIMS}"))]
    return [one for one in fencing._sorted(claim.session, set(names)) if one < claim]


def removes_the_greatest_first(claims: list[fencing.Claim]) -> fencing.Steps[None]:
    for one in reversed(claims):
        for name in (f"{one.folder}/{fencing.SNAPSHOT}", one.folder, one.file):
            yield fencing._removing(name)


def ends_without_a_mark(claim: fencing.Claim) -> fencing.Steps[bool]:
    return (yield from fencing._remove(claim))


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("owns", looks_once),
        ("_former", finds_after_looking),
        ("_remove_all", removes_the_greatest_first),
        ("end", ends_without_a_mark),
    ],
    ids=["look", "find", "remove", "end"],
)
def test_what_is_wrong_with_claims_is_seen(monkeypatch, name: str, wrong: object):
    monkeypatch.setattr(fencing, name, wrong)
    assert any(isinstance(claims.run(seed), str) for seed in range(150))


class Stopping:
    """A store for one who stops before one of its operations, while others act."""

    def __init__(self, store: World, before: int, act: Callable[[], None]) -> None:
        self._store, self._left, self._act = store, before, act

    def __getattr__(self, name: str) -> Any:
        self._left -= 1
        if self._left == 0:
            self._act()
        return getattr(self._store, name)


def write(store: World, claim: fencing.Claim, name: str) -> bool:
    path = f"{claim.folder}/{name}"
    return fencing.run(fencing.write_fenced(claim, lambda store: store.write(path, claim.token.encode()), lambda: True), store)


@pytest.mark.parametrize("token", ["0", "z"])
@pytest.mark.parametrize("what, seen", [("begins", False), ("takes", False), ("takes", True), ("ends", False), ("ends", True)])
def test_who_stops_while_a_session_ends_and_begins_again_takes_nothing_from_it(what: str, seen: bool, token: str):
    """The simulation's seed 1930: a session of which nobody had seen anything was taken over, and about to be removed, when its new owner
    stopped. Another one removed it. When the owner went on, it removed the session of the same name that viewers had seen since."""
    stops = 0
    for before in range(1, 100):
        store, again = World(0, trace=False), list[fencing.Claim]()

        def others(store: World = store, again: list[fencing.Claim] = again) -> None:
            while store.names("s"):
                if (claim := fencing.run(fencing.take_over("s", "m"), store)) is not None:
                    fencing.run(fencing.end(claim), store)
            again.append(fencing.run(fencing.claim_new("s", "n"), store))
            assert write(store, again[0], fencing.SNAPSHOT) and write(store, again[0], f"{fencing.CHUNKS}/0")

        first = fencing.run(fencing.claim_new("s", "a"), store) if what != "begins" else None
        if first is not None and seen:
            write(store, first, fencing.SNAPSHOT)
        steps = {"begins": fencing.claim_new, "takes": fencing.take_over}[what]("s", token) if what != "ends" else fencing.end(first)
        found = fencing.run(steps, Stopping(store, before, others))
        if not again:
            break
        stops += 1
        [owner] = [one for one in (found, again[0]) if isinstance(one, fencing.Claim) and fencing.run(fencing.owns(one), store)]
        assert store.names(f"{owner.folder}/{fencing.CHUNKS}") == ["0"]
        assert owner == again[0] or not write(store, again[0], f"{fencing.CHUNKS}/1")
    assert stops > 1


@pytest.mark.parametrize("before", range(1, 12))
def test_a_session_that_has_been_ended_is_not_taken_over(before: int):
    """However much of it has been removed. If that was before the end, the session goes on."""
    store, taken = World(0, trace=False), list[fencing.Claim | None]()
    first = fencing.run(fencing.claim_new("s", "a"), store)
    write(store, first, fencing.SNAPSHOT)
    write(store, first, f"{fencing.CHUNKS}/0")
    ended = fencing.run(fencing.end(first), Stopping(store, before, lambda: taken.append(fencing.run(fencing.take_over("s", "b"), store))))
    goes_on = [claim for claim in taken if claim is not None]
    assert goes_on or store.names("s") == []
    for claim in goes_on:
        assert not ended and fencing.run(fencing.owns(claim), store) and store.names(f"{claim.folder}/{fencing.CHUNKS}") == ["0"]
