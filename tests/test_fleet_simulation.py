"""The fleet by simulation (fuzz/fleet.py), and that it would see what could be wrong."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
from commands import output_of

from fuzz import fleet
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


def claimed_by_all(world: World, name: str, content: bytes) -> bool:
    world.write(name, content)
    return True


def begins_again(relay: Relay, message: dict) -> bool:
    """A relay that does not remember what its viewer has had."""
    return message["type"] == "video.chunk_metadata"


@pytest.mark.parametrize(
    "of, name, wrong, seen",
    [
        (fencing, "owns", shown_without_looking, "two have written"),
        (fencing, "_copy", copied_the_wrong_way_round, "two have written|made again"),
        (World, "create", claimed_by_all, "two have written|does not follow|made again|is lost"),
        (LeaseTable, "_assign", lambda *_: None, "is lost"),
        (Lease, "taking", property(lambda lease: False, lambda lease, told: None), "is lost"),
        (Relay, "takes", begins_again, "a viewer gets"),
    ],
    ids=["fence", "copy", "claim", "orphans", "full", "relay"],
)
def test_what_is_wrong_is_seen(monkeypatch, of: object, name: str, wrong: object, seen: str):
    monkeypatch.setattr(of, name, wrong)
    found = (fleet.run(seed) for seed in range(200))
    assert any(isinstance(one, str) and _matches(seen, one) for one in found)


def _matches(seen: str, told: str) -> bool:
    return any(one in told for one in seen.split("|"))
