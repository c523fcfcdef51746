"""The table of leases, by a clock that the test sets."""

from __future__ import annotations

import asyncio

import hypothesis
import pytest

from lolrt.fleet.batched import Batched
from lolrt.fleet.lease import Beat, Holding, LeaseTable, Orders
from lolrt.fleet.relay import Relay
from lolrt.fleet.scaling import Load, replicas_wanted

TTL = 6.0


def beat(table: LeaseTable, name: str, now: float, held: dict[str, int] | None = None, room: int = 4, **more: object) -> Orders:
    held = held or {}
    return table.beat(Beat(name, f"{name}:80", room - len(held), held, **more), now)  # type: ignore[arg-type]


@pytest.fixture
def table() -> LeaseTable:
    return LeaseTable(TTL, begun=-100.0)


@pytest.mark.parametrize("at_once", [False, True])
def test_new_sessions_go_where_there_is_room(table, at_once):
    """Also those that were placed a moment ago take room, though nobody has reported them yet."""
    beat(table, "a", 0.0, room=3)
    beat(table, "b", 0.0, room=2)
    found = {}
    for ids in ["123456"] if at_once else "123456":
        found |= table.place(ids, 0.0)
    assert sorted(found.values(), key=str) == [None, "a:80", "a:80", "a:80", "b:80", "b:80"]
    assert table.place(["1"], 1.0)["1"] == found["1"]  # it exists: its replica says so


def test_a_lease_lasts_from_beat_to_beat(table):
    beat(table, "a", 0.0)
    table.place(["s"], 0.0)
    assert table.locate("s", 1.0) == "a:80"
    for now in range(1, 20):
        assert beat(table, "a", now, {"s": 1}) == Orders()
    assert table.locate("s", 19 + TTL - 0.1) == "a:80"
    assert table.locate("s", 19 + TTL) is None and table.knows("s")
    table.stored([], 19 + TTL)
    assert not table.knows("s")


def test_many_replicas_report_less_often(table):
    """A thousand reports a second, as long as two may be lost in a row, with the two seconds that a replica waits for each answer."""
    pauses = []
    for n in range(1, 1500):
        beat(table, f"r{n}", 0.0)
        pauses.append(table.pause)
        assert n / table.pause <= 1000.1 or n > 1000
    assert pauses[0] == pauses[300] == 0.4 and pauses[300] < pauses[700] < pauses[998] and 2 * 2.0 + max(pauses) < TTL


def test_a_session_goes_on_elsewhere_when_its_replica_is_silent(table):
    beat(table, "a", 0.0, {"s": 1})
    beat(table, "b", 5.0)
    table.stored(["s"], 5.0)
    assert beat(table, "b", 5.1) == Orders()  # not before the lease is over
    table.stored(["s"], 6.1)
    assert beat(table, "b", 6.2) == beat(table, "b", 6.3) == Orders(take=("s",))  # until it is done
    assert beat(table, "b", 6.4, taking=frozenset("s")) == Orders()
    assert table.locate("s", 6.5) is None
    assert beat(table, "b", 7.0, {"s": 2}) == Orders()
    assert table.locate("s", 7.1) == "b:80"
    assert beat(table, "a", 7.2, {"s": 1}) == Orders(drop=("s",))  # it was away, and comes back
    assert beat(table, "b", 7.3, {"s": 2}) == Orders() and table.locate("s", 7.4) == "b:80"


def test_a_replica_that_comes_back_in_time_goes_on(table):
    """Its lease was over, and nobody else has taken the session."""
    beat(table, "a", 0.0, {"s": 3})
    assert beat(table, "a", 20.0, {"s": 3}) == Orders()
    assert table.locate("s", 20.1) == "a:80"


def test_taking_over_may_take_longer_than_a_lease(table):
    beat(table, "a", 0.0, {"s": 1})
    beat(table, "b", 7.0)
    beat(table, "c", 7.0)
    table.stored(["s"], 7.0)
    taker, other = ("b", "c") if beat(table, "b", 7.1).take else ("c", "b")
    for now in range(8, 30):
        assert beat(table, taker, now, taking=frozenset("s")) == beat(table, other, now) == Orders()
        table.stored(["s"], now)
    beat(table, taker, 31.0)  # it has failed
    table.stored(["s"], 38.0)
    beat(table, other, 38.0)
    table.stored(["s"], 38.1)
    assert beat(table, other, 38.2).take == ("s",)  # the one that is still there


def test_a_session_that_a_replica_cannot_take_goes_to_another(table):
    """However often it tries, it does not keep the session from the one that has room."""
    beat(table, "a", 0.0, {"s": 1})
    beat(table, "b", 7.0, room=2)
    table.stored(["s"], 7.0)
    assert beat(table, "b", 7.1).take == ("s",)
    beat(table, "b", 7.5, taking=frozenset("s"))
    beat(table, "c", 7.9)
    for now in range(8, 40):  # b was full when it had read the session
        if beat(table, "c", now + 0.1).take:
            break
        if beat(table, "b", now, room=0).take:
            beat(table, "b", now + 0.5, room=0, taking=frozenset("s"))
        table.stored(["s"], now + 0.9)
    assert now < 10


def test_a_new_table_learns_what_there_is(table):
    """It gives nothing away before all have had the time to report, and of two reports believes the later claim."""
    table.begun = 0.0
    beat(table, "b", 1.0)
    table.stored(["s", "t"], 1.0)
    assert beat(table, "b", 2.0) == Orders()
    beat(table, "a", 3.0, {"s": 4})
    table.stored(["s", "t"], TTL)
    assert beat(table, "b", TTL + 0.1).take + beat(table, "a", TTL + 0.1, {"s": 4}).take == ("t",)
    assert beat(table, "c", 6.5, {"s": 5}) == Orders()
    assert beat(table, "a", 6.6, {"s": 4}) == Orders(drop=("s",))
    assert table.locate("s", 6.7) == "c:80"


def test_a_replica_that_leaves_gives_up_one_session_after_the_other(table):
    leaving, held, theirs, order = frozenset[str](), {"r": 1, "s": 1, "t": 1}, dict[str, int](), []
    beat(table, "b", 0.0, room=2)
    for step in range(40):
        now = step / 10
        orders = beat(table, "a", now, held, leaving=True, released=leaving)
        leaving = frozenset(orders.give)
        for id in orders.give:
            del held[id]
            order.append(id)
        assert len(orders.give) <= 1
        taken = beat(table, "b", now + 0.05, theirs, room=2).take
        if step % 3 == 0:  # it takes a while
            theirs |= dict.fromkeys(taken, 2)
    assert order == ["r", "s"] and held == {"t": 1}  # the third has nowhere to go
    assert table.place(["new"], 4.0) == {"new": None}
    assert [table.locate(id, 4.0) for id in "rst"] == ["b:80", "b:80", "a:80"]
    beat(table, "c", 4.1)
    assert beat(table, "a", 4.2, held, leaving=True).give == ("t",)


def test_a_session_that_has_ended_is_forgotten(table):
    beat(table, "a", 0.0, {"s": 1})
    beat(table, "a", 0.5)
    assert table.locate("s", 0.6) is None
    table.stored([], 1.0)
    assert not table.knows("s") and beat(table, "a", 1.1) == Orders()


def test_a_session_between_two_replicas_is_not_made_anew(table):
    """Who asks for one of the same name is not given a place: that would keep the session from those who can go on with it."""
    beat(table, "a", 0.0, {"s": 1})
    table.stored(["s"], 0.5)
    beat(table, "b", 7.0)
    assert table.place(["s"], 7.0) == {"s": None}
    table.stored(["s"], 7.1)
    assert beat(table, "b", 7.2).take == ("s",)


def test_a_holder_stops_before_the_table_gives_its_lease_away():
    """It counts from when it asked, the table from when it heard that: whatever the way takes, the holder is first."""
    holding = Holding()
    assert not holding.holds(0.0)
    holding.answered(10.0, TTL)
    assert holding.holds(15.9) and not holding.holds(16.0)
    holding.answered(9.0, TTL)  # an answer that was overtaken
    assert holding.holds(15.9)


def test_a_viewer_sees_one_connection():
    relay = Relay(None)

    def chunk(n: int) -> dict:
        return {"type": "video.chunk_metadata", "sequence": n}

    first = [
        {"type": "video.start", "sequence": 7},
        chunk(7),
        chunk(8),
        {"type": "session.paused"},
        {"type": "session.done", "reason": "moved"},
    ]
    assert [relay.takes(message) for message in first] == [True, True, True, True, False]
    assert relay.next == 9 and not relay.ended
    second = [{"type": "video.start", "sequence": 9}, {"type": "session.paused"}, {"type": "session.continued"}, chunk(8), chunk(9)]
    assert [relay.takes(message) for message in second] == [False, False, True, False, True]
    assert relay.takes({"type": "video.gap", "from": 10, "to": 30}) and relay.next == 30
    assert relay.takes({"type": "session.done", "reason": "closed"}) and relay.ended


@pytest.mark.parametrize(
    "loads, wanted",
    [
        ([], 1),
        ([Load(0, 4, 1.0)], 1),
        ([Load(3, 1, 1.0)], 1),
        ([Load(4, 0, 1.0)], 2),
        ([Load(1, 0, 1.0)], 2),  # no free pages, though there are free places
        ([Load(1, 3, 0.5)], 2),  # late
        ([Load(2, 2, 1.0)] * 4, 3),
        ([Load(3, 1, 0.5), Load(3, 1, 1.0)], 2),
    ],
)
def test_how_many_replicas(loads, wanted):
    assert replicas_wanted(loads) == wanted


@hypothesis.given(hypothesis.strategies.randoms(use_true_random=False))
@hypothesis.settings(max_examples=25)
def test_many_sessions_go_where_there_is_room(random):
    """However the table came to be as it is, what lost sessions are given equals what is chosen one by one by looking at all leases."""
    table, now, ids = LeaseTable(TTL, begun=-100.0), 0.0, [f"s{n}" for n in range(12)]
    for _ in range(30):
        now += random.choice((0.1, 1.0, TTL))
        name = random.choice("abcd")
        held = {id: lease.epoch + lease.take for id, lease in table.leases.items() if lease.replica == name and random.random() < 0.7}
        released = frozenset(id for id in held if random.random() < 0.1)
        beat(table, name, now, held, room=5, released=released, leaving=random.random() < 0.1)
        table.place([random.choice(ids)], now)
        leases = {id: (one.replica, one.until, one.take or one.epoch == 0) for id, one in table.leases.items()}
        there = random.sample(ids, 6)
        table.stored(there, now)
        for id in sorted(there):
            if id not in leases or leases[id][1] <= now:
                rooms = {
                    name: one.room - sum(replica == name and until > now and coming for replica, until, coming in leases.values())
                    for name, one in table.replicas.items()
                    if not one.leaving
                }
                best = min(rooms, key=lambda name: (-rooms[name], name), default=None)
                if best is not None and rooms[best] > 0:
                    leases[id] = best, now + TTL, True
        assert {id: (table.leases[id].replica, table.leases[id].until) for id in leases if id in table.leases} == {
            id: lease[:2] for id, lease in leases.items() if id in table.leases
        }


class Asked:
    """A lease service that takes its time, knows sessions by one letter, and fails when it is told to."""

    def __init__(self) -> None:
        self.questions: list[list[str]] = []
        self.failure: Exception | None = None

    async def locate(self, sessions: list[str]) -> dict[str, str | None]:
        self.questions.append(sessions)
        await asyncio.sleep(0.01)
        if self.failure is not None:
            raise self.failure
        return {session: f"{session}:80" for session in sessions if len(session) == 1}


@pytest.mark.parametrize("failure", [OSError("no answer"), ValueError("a mistake")])
def test_all_who_wait_for_sessions_ask_one_question(failure):
    """Those who come while one is asked are in the next; and all hear of a failure, after which it goes on."""

    async def ask() -> None:
        service = Asked()
        locate = Batched(service.locate)
        assert await asyncio.gather(*[locate("abc"[n % 3]) for n in range(90)]) == ["a:80", "b:80", "c:80"] * 30
        assert sum(map(len, service.questions)) == 3 and len(service.questions) == 1
        with pytest.raises(KeyError):
            await locate("unknown")
        service.failure = failure
        found = await asyncio.gather(*[locate("a") for _ in range(5)], return_exceptions=True)
        assert found == [failure] * 5
        service.failure = None
        assert await locate("a") == "a:80"

    asyncio.run(asyncio.wait_for(ask(), 30))
