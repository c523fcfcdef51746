"""Parts of `lolrt serve` without a server: viewers as cursors, deadlines, interactions, and who is refused."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import fragment

import lolrt
from lolrt import cli
from lolrt.bench.serve import BUFFER_SECONDS, Watched, figures
from lolrt.serve import ended as ended_module
from lolrt.serve import live as live_module
from lolrt.serve.errors import ConflictError, NoRoomError, NotFoundError
from lolrt.serve.factory import Factory
from lolrt.serve.guard import is_loopback, read_token
from lolrt.serve.hub import Fragment, Gap, Hub, State
from lolrt.serve.live import MOST_REMEMBERED, MOST_WAITING, START_BUFFER_SECONDS, Live
from lolrt.serve.protocol import Stream, WindowOptions, with_options
from lolrt.serve.sessions import Sessions
from lolrt.serve.settings import Settings
from lolrt.serve.state import Interaction, Store
from lolrt.serve.statistics import Statistics, percentile


async def taken(hub: Hub, cursor: int, told: list[Any], hold: asyncio.Event | None = None) -> None:
    async for event in hub.follow(cursor):
        told.append(event)
        if hold is not None:
            await hold.wait()


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 40), st.data())
def test_every_viewer_gets_every_chunk_once_or_is_told_what_it_lost(bursts, first, data):
    """Viewers begin anywhere, and take nothing for as long as they like, while chunks are published in bursts."""

    async def run() -> None:
        hub, sequence = Hub(first, 0.75, 6), first
        viewers = []
        for burst in bursts:
            if data.draw(st.booleans()):
                hold = asyncio.Event()
                told: list[Any] = []
                cursor = data.draw(st.integers(max(0, first - 5), sequence + 2))
                viewers.append((told, hold, cursor, asyncio.create_task(taken(hub, cursor, told, hold))))
            for _ in range(burst):
                hub.publish(fragment(sequence))
                sequence += 1
            for _, hold, _, _ in viewers:
                if data.draw(st.booleans()):
                    hold.set()
            await asyncio.sleep(0)
        hub.tell(State("ended", "closed"))
        for _, hold, _, _ in viewers:
            hold.set()
        for told, _, cursor, task in viewers:
            await asyncio.wait_for(task, 10)
            assert told[-1] == State("ended", "closed") and sum(isinstance(event, State) for event in told) == 1
            for event in told[:-1]:
                if isinstance(event, Gap):
                    assert event.first == cursor < event.end
                    cursor = event.end
                else:
                    assert event.sequence == cursor and len(event.data) == cursor
                    cursor += 1
            assert cursor >= sequence

    asyncio.run(run())


def test_a_session_holds_no_more_than_its_window_whoever_reads():
    async def run() -> None:
        hub, hold = Hub(0, 0.75, 6), asyncio.Event()
        told: list[Any] = []
        tasks = [asyncio.create_task(taken(hub, 0, told, hold)) for _ in range(20)]
        held = []
        for sequence in range(200):
            hub.publish(fragment(sequence))
            await asyncio.sleep(0)
            held.append(sum(hub.fragment(number) is not None for number in range(sequence + 1)))
        assert max(held) == held[100] == held[-1] <= 2 * (6 / 0.75 + 1) + 1
        for task in tasks:
            task.cancel()

    asyncio.run(run())


def test_pausing_is_told_between_the_chunks_where_it_happened():
    async def run() -> None:
        hub, told = Hub(0, 0.75, 6), []
        task = asyncio.create_task(taken(hub, 0, told))
        hub.publish(fragment(0))
        await asyncio.sleep(0.01)
        hub.tell(State("paused"))
        await asyncio.sleep(0.01)
        hub.tell(State("live"))
        hub.publish(fragment(1))
        await asyncio.sleep(0.01)
        hub.tell(State("ended", "closed"))
        hub.tell(State("live"))  # it stays ended
        await task
        assert [event.name if isinstance(event, State) else event.sequence for event in told] == [0, "paused", 1, "live", "ended"]

    asyncio.run(run())


def test_the_last_of_pause_and_go_on_decides(quick):
    """Also if it comes before the other is done, which takes a chunk."""

    async def run() -> None:
        sessions = Sessions(quick, Settings(max_sessions=1))
        await sessions.start()
        session = await sessions.open(Stream(prompt="a red car by the sea"))
        for paused in (False, True):
            await asyncio.gather(sessions.pause(session, not paused), sessions.pause(session, paused))
            assert session.live.paused is paused and session.hub.state.name == ("paused" if paused else "live")
        await sessions.close()

    asyncio.run(run())


def test_who_ends_late_ends_no_other_session_of_the_same_name(quick):
    async def run() -> None:
        sessions = Sessions(quick, Settings(max_sessions=1))
        await sessions.start()
        old = await sessions.open(Stream(prompt="a red car by the sea", session_id="name"))
        await sessions.end(old, State("ended", "closed"))
        new = await sessions.open(Stream(prompt="a red car by the sea", session_id="name"))
        await sessions.end(old, State("ended", "expired"))
        assert list(sessions) == [new]
        async for event in new.hub.follow(0):
            assert isinstance(event, Fragment)
            break
        await sessions.close()

    asyncio.run(run())


def test_little_is_kept_of_sessions_that_have_ended_and_not_for_long(quick, monkeypatch):
    """The last ones, as many as may be open, for a minute in which the server runs; none that goes on elsewhere, and no clip."""
    now = [0.0]
    monkeypatch.setattr(ended_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    async def run() -> None:
        sessions = Sessions(quick, Settings(max_sessions=2))
        await sessions.start()
        pool = sessions.factory.engine.engine.pool

        async def over(id: str, reason: str, background: bool = False) -> None:
            session = await sessions.open(Stream(prompt="a red car by the sea", session_id=id), background=background)
            await anext(session.hub.follow(0))
            await sessions.end(session, State("ended", reason))
            assert pool.unreserved_pages == pool.pages.shape[1]
            live = weakref.ref(session.live)
            del session
            while live() is not None:
                await asyncio.sleep(0.01)

        def there() -> str:
            found = ""
            for id in "abcdef":
                with contextlib.suppress(NotFoundError):
                    found += id if sessions.find(id).hub.fragment(0) is not None else "?"
            return found

        await over("a", "closed")
        await over("b", "expired")
        now[0] += 30
        await over("c", "complete")
        for id, reason, background in (("d", "moved", False), ("e", "shutdown", False), ("f", "complete", True)):
            await over(id, reason, background)
        assert there() == "bc"
        now[0] += 29
        await sessions._reap_once(0.0)
        assert there() == "bc"
        now[0] += 100
        await sessions._reap_once(98.0)  # the process was stopped
        assert there() == "c"
        now[0] += 30
        await sessions._reap_once(0.0)
        assert there() == ""
        await sessions.close()

    asyncio.run(run())


def test_nothing_is_shown_after_the_end():
    """A chunk may still be in the encoder when its session ends: players of HLS have been told that there are no more."""
    hub = Hub(0, 0.75, 6)
    hub.publish(fragment(0))
    hub.tell(State("ended", "closed"))
    playlist = str(hub.playlist)
    assert hub.publish(fragment(1)) == [] and hub.next_sequence == 1 and hub.fragment(1) is None
    assert str(hub.playlist) == playlist and playlist.endswith("#EXT-X-ENDLIST\n")


class Stepped:
    """A stream whose chunks take as long as they are told."""

    prompt = "a"

    def __init__(self, clock: list[float]) -> None:
        self.clock, self.undecoded = clock, []
        self.switches: list[tuple[str, int]] = []
        self.latent_stream = SimpleNamespace(session=SimpleNamespace(between_chunks=True), set_prompt=self.set_prompt)

    def set_prompt(self, embeds: torch.Tensor, over_chunks: int) -> None:
        self.switches.append((str(embeds), over_chunks))

    def decode_next(self) -> Any:
        return SimpleNamespace(n_frames=12, frames=torch.zeros(12, 2, 2, 3), mass=None, switch=None, first_frame=0)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(live_module, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0]))
    return now


def stepped(clock: list[float]) -> Live:
    return Live("id", Stepped(clock), None, None, fps=16, lease_seconds=10)  # type: ignore[arg-type]


def make(live: Live, clock: list[float], seconds: float) -> Any:
    live.begin()
    clock[0] += seconds
    return live.finish()


def test_chunks_are_due_when_who_watches_from_the_start_needs_them(clock):
    """By hand: the first is shown a buffer after it is made, each other follows when the one before it has been shown; who is late moves
    all that follow, and nothing is made up for."""
    live = stepped(clock)
    first = make(live, clock, 0.3)
    assert first.deadline is None
    shown = clock[0] + START_BUFFER_SECONDS
    for k in range(1, 5):
        assert make(live, clock, 0.2).deadline == pytest.approx(shown + 0.75 * k)
    clock[0] += 60  # the process was stopped, say
    late = make(live, clock, 0.2)
    assert late.deadline < clock[0]
    after = make(live, clock, 0.2)
    assert after.deadline == pytest.approx(clock[0] - 0.2 + 0.75)
    live.pause(True)
    assert live.wait_seconds(clock[0], 2.0) is None
    live.pause(False)
    assert live.wait_seconds(clock[0], 2.0) == 0 and make(live, clock, 0.2).deadline is None


def test_no_chunk_is_begun_earlier_than_it_takes(clock):
    live = stepped(clock)
    make(live, clock, 0.3)
    for _ in range(12):
        clock[0] += live.wait_seconds(clock[0], 2.0)
        ahead = make(live, clock, 0.2).deadline - clock[0]
        assert 0 < ahead < 0.35
    for _ in range(12):  # chunks that take longer than they play
        clock[0] += max(0.0, live.wait_seconds(clock[0], 0.5))
        make(live, clock, 2.0)
    assert live.wait_seconds(clock[0], 0.5) == pytest.approx(0.25)  # 0.75 until it is due, and 0.5 is the most


def test_interactions_happen_once_in_their_order(clock):
    live = stepped(clock)
    for number in range(MOST_WAITING):
        asked = Interaction(f"e{number}", "a", number + 1)
        assert live.accept(asked, "text").sequence == live.accept(asked, "text").sequence == number  # type: ignore[arg-type]
    with pytest.raises(NoRoomError):
        live.accept(Interaction("more", "a", 1), "text")  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="another interaction"):
        live.accept(Interaction("e0", "b", 1), "text")  # type: ignore[arg-type]
    made = make(live, clock, 0.2)
    assert made.about["started_event_ids"] == [f"e{number}" for number in range(MOST_WAITING)]
    assert live.stream.switches == [("text", number + 1) for number in range(MOST_WAITING)]
    with pytest.raises(ConflictError, match="expected 16, the next one"):
        live.accept(Interaction("next", "a", 1, sequence=17), "text")  # type: ignore[arg-type]
    assert live.accept(Interaction("next", "a", 1, sequence=16), "text").sequence == 16  # type: ignore[arg-type]
    for number in range(2 * MOST_REMEMBERED):
        make(live, clock, 0.2)
        live.accept(Interaction(f"f{number}", "a", 1), "text")  # type: ignore[arg-type]
    assert len(live.known) == MOST_REMEMBERED


def test_frames_of_sessions_that_are_kept_do_not_depend_on_who_shares_the_engine(tiny, tmp_path):
    """After a crash a session may come back beside others, and makes the frames that were not saved again."""
    store = Store(tmp_path, lambda whole: None)
    assert Factory(tiny, Settings(), store).engine.engine.batch_invariant
    assert not Factory(tiny, Settings(), None).engine.engine.batch_invariant
    store.close()


def test_options_of_the_command_line_reach_the_model_and_the_engine(tiny, monkeypatch):
    """Arithmetic in 8 bits is the server's choice, for all sessions."""
    seen = []
    monkeypatch.setattr("lolrt.load", lambda *_, **options: seen.append(options["linear"]) or tiny)
    monkeypatch.setattr("lolrt.serve.server.serve", lambda pipe, settings, *_: seen.append(Factory(pipe, settings, None).engine))
    cli.main(["serve", "--linear", "int8", "--kv", "int8"])
    assert seen[0] == "int8" and seen[1].engine.pool.pages.dtype == torch.int8


def test_percentiles_and_stalls():
    """By nearest rank, and by hand."""
    assert [percentile([float(n) for n in range(1, 101)], percent) for percent in (50, 95, 99)] == [50, 95, 99]
    assert percentile([3.0], 50) == 3.0
    statistics = Statistics(opened=10.0)
    for now, slack in ((11.0, None), (12.0, 0.5), (13.0, -0.25), (14.0, 0.1), (20.0, None), (21.0, 0.3)):
        statistics.add(now, {"slack_seconds": slack, "made_seconds": 0.3, "seconds": 0.75}, None)
    told = statistics.plain()
    assert told["first_chunk_seconds"] == 1.0 and told["chunks"] == 6 and told["late_chunks"] == 1
    assert told["deadline_attainment"] == 0.75 and told["stall_seconds"] == 0.25
    assert told["interval_p50"] == told["interval_p99"] == 1.0  # not the pause before the fifth
    assert told["real_time_factor"] == pytest.approx(0.4)


def test_options_change_what_they_name_and_are_checked():
    window = lolrt.Window()
    asked = WindowOptions(sink_frames=2, gate={"bias": -1.0})
    assert with_options(window, asked) == lolrt.Window(sink_frames=2, gate=lolrt.SinkGate(bias=-1.0))
    assert with_options(window, None) is window
    with pytest.raises(lolrt.Error, match="recent frames"):
        with_options(window, WindowOptions(recent_frames=0))


@pytest.mark.parametrize(
    "host,loopback",
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_what_is_loopback(host, loopback):
    assert is_loopback(host) is loopback


def test_tokens(tmp_path):
    path = tmp_path / "token"
    for text in ("", "short", "with spaces in it, and long enough", "ümlaut-and-long-enough-to-be-one", "x" * 300):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(lolrt.Error, match="token"):
            read_token(path)
    path.write_text("long-enough-to-be-one\n")
    assert read_token(path) == "long-enough-to-be-one"
    path.chmod(0o644)
    with pytest.raises(lolrt.Error, match="chmod 600"):
        read_token(path)
    with pytest.raises(lolrt.Error, match="cannot read"):
        read_token(tmp_path / "none")


def test_an_address_of_others_needs_a_token():
    from lolrt.serve.server import serve
    from lolrt.serve.settings import Settings

    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(lolrt.Error, match="--token-file"):
            serve(None, Settings(), host, 0)  # type: ignore[arg-type]


def test_the_benchmark_of_a_server_counts_as_its_viewers_do():
    """By hand: a viewer plays from 0.2 s after the first chunk on, waits twice, and then has all that follows later."""
    seen = Watched(asked=10.0, steered=13.0, followed=13.5, held_bytes=3 << 20)
    for arrival, made, slack in ((11.0, 0.5, None), (12.0, 0.3, 0.1), (13.0, 0.3, -0.5), (13.5, 0.3, 0.2)):
        seen.arrivals.append(arrival)
        seen.chunks.append(
            {"seconds": 0.5, "made_seconds": made, "slack_seconds": slack, "byte_length": 4000, "stage_seconds": {"decode": 0.1}}
        )
    assert BUFFER_SECONDS == 0.2
    # Due at 11.2, 11.7 (comes at 12), 12.5 (comes at 13) and 13.5.
    assert seen.underruns() == (2, pytest.approx(0.8))
    rows = figures([seen, Watched(asked=10.0, refused="429")])
    assert rows["sessions served, and refused"] == "1, 1"
    assert rows["time to the first chunk, mean and most, s"] == "1.00, 1.00"
    assert rows["between chunks, p50 / p95 / p99, s"] == "1.000 / 1.000 / 1.000"
    assert rows["chunks before their deadline, %"] == "66.7"
    assert rows["underruns of a viewer with 0.2 s in hand, and seconds stalled"] == "2, 0.80"
    assert rows["held by a session, at most, MiB"] == "3.0" and rows["sent to a viewer for a second of video, kB"] == "8"
    assert rows["from a new prompt to its first chunk, mean and most, s"] == "0.50, 0.50"
