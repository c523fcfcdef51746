"""Sessions in a store that replicas share: who may write, and what the next owner finds."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from lolrt.errors import Error
from lolrt.fleet.fencing import claim_new, end, owns, run, take_over
from lolrt.fleet.objects import FolderStore, FsspecStore, Store, open_store
from lolrt.fleet.store import SharedStore
from lolrt.serve.errors import ConflictError, MovedError, NotFoundError, UnavailableError
from lolrt.serve.hub import Fragment, State
from lolrt.serve.protocol import Interact, InteractionEvent, Stream
from lolrt.serve.sessions import Sessions
from lolrt.serve.settings import Settings
from lolrt.serve.state import Interaction, Record
from lolrt.session.snapshot import Snapshot

SNAPSHOT = Snapshot({}, {}, {"next_frame": torch.tensor(3)})


def record(sequence: int) -> Record:
    return Record("s", 0.0, 1.0, "", sequence, 9, None, False, 0, [], [], [])


def fragment(sequence: int, data: bytes = b"video") -> Fragment:
    return Fragment(sequence, {"seconds": 0.75}, data)


@contextlib.contextmanager
def s3() -> Iterator[None]:
    """A server of S3's protocol with a bucket named `bucket`, at the address that S3's clients ask meanwhile."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_MAX_ATTEMPTS": "1"}).items():
            environment.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        S3FileSystem().makedirs("bucket", exist_ok=True)  # moto has one memory for all of its servers
        try:
            yield
        finally:
            server.stop()
            S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3():
        yield "s3://bucket"


@pytest.fixture(params=["folder", "memory", pytest.param("s3", marks=pytest.mark.whole)])
def store(request, tmp_path) -> Store:
    match request.param:
        case "folder":
            return open_store(str(tmp_path / "store"))
        case "memory":
            return open_store(f"memory://{tmp_path.name}")
        case _:
            return open_store(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def test_files_are_what_was_written(store, tmp_path):
    assert store.names("") == store.names("a") == []
    store.write("a/b/1", b"one")
    store.write("a/b/2", b"two")
    store.write("a/b/2", b"three")
    (tmp_path / "file").write_bytes(b"four")
    store.put(tmp_path / "file", "a/c")
    store.copy("a/b/1", "d/e")
    store.get("d/e", tmp_path / "copy")
    assert (store.names(""), store.names("a"), store.names("a/b")) == (["a", "d"], ["b", "c"], ["1", "2"])
    assert [store.read(name) for name in ("a/b/1", "a/b/2", "a/c", "d/e")] == [b"one", b"three", b"four", b"one"]
    assert (tmp_path / "copy").read_bytes() == b"one"
    store.remove("a/b")
    store.remove("a/b")
    store.remove("a/c")
    assert store.names("a/b") == []
    for ask in (lambda: store.read("a/b/1"), lambda: store.copy("a/b/1", "x"), lambda: store.get("a/b/1", tmp_path / "x")):
        with pytest.raises(FileNotFoundError):
            ask()


def test_many_write_at_once(store, tmp_path):
    """And nothing is left of how they did it."""
    threads = [threading.Thread(target=lambda n=n: store.write(f"a/{n % 2}", f"{n}".encode())) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.names("a") == ["0", "1"] and store.names("") == ["a"]
    assert [int(store.read(f"a/{n}")) % 2 for n in range(2)] == [0, 1]
    assert list(tmp_path.glob("store/fleet/.scratch/*")) == []


def test_the_next_owner_has_all_that_was_shown_and_the_former_one_stops(store):
    holding = {"a": True, "b": True}
    a, b = (SharedStore(store, lambda name=name: holding[name], lambda whole: None) for name in "ab")
    kept = a.kept("s", 1.0)
    kept.save(SNAPSHOT, record(0)).result()
    for sequence in range(3):
        kept.keep(fragment(sequence))
    kept.note(2, Interaction("event", "a prompt", 1, 0))
    saved = b.read("s")
    assert [one.sequence for one in saved.fragments] == [0, 1, 2] and saved.journal == [(2, Interaction("event", "a prompt", 1, 0))]
    assert (a.epochs, b.folder("s")._claim.epoch) == ({"s": 1}, 2)
    with pytest.raises(MovedError):
        kept.keep(fragment(3))
    with pytest.raises(MovedError):
        kept.note(3, Interaction("late", "another", 1, 1))
    with pytest.raises(MovedError):
        kept.save(SNAPSHOT, record(3)).result()
    kept.remove()
    a.close()
    c = SharedStore(store, lambda: True, lambda whole: None)
    assert [one.sequence for one in c.read("s").fragments] == [0, 1, 2]  # nothing of what came late, and it is there still
    assert store.names("s") == [*store.names("s/claims"), "claims"] and store.names("s")[0].startswith("3-")
    with pytest.raises(ConflictError):
        c.kept("s", 1.0) and b.kept("s", 1.0)
    c.folder("t")
    for other in (b, c):
        other.close()


def test_an_interaction_with_a_session_that_has_moved_is_refused_and_not_written(quick, tmp_path):
    """It finds that out by itself: the session is paused, so that nothing else is written. Who has the session now gets nothing of it, and
    an interaction that was answered before is there."""

    def asked(event_id: str) -> Interact:
        return Interact(event=InteractionEvent(prompt="a red car by the sea"), event_id=event_id)

    async def use() -> None:
        store = open_store(str(tmp_path))
        sessions = Sessions(quick, Settings(max_sessions=1), lambda told: SharedStore(store, lambda: True, told))
        await sessions.start()
        session = await sessions.open(Stream(prompt="a blue boat on the sea at night", session_id="s"))
        first = await anext(session.hub.follow(0))
        assert isinstance(first, Fragment)
        await sessions.pause(session, True)
        answered = await sessions.interact(session, asked("answered"))
        other = SharedStore(store, lambda: True, lambda whole: None)
        await asyncio.to_thread(other.read, "s")
        with pytest.raises(UnavailableError, match="ask again") as refused:
            await sessions.interact(session, asked("late"))
        assert (refused.value.status, refused.value.code) == (503, "moving")
        while list(sessions):
            await asyncio.sleep(0.01)
        assert session.hub.state == State("ended", "moved")
        pool = sessions.factory.engine.engine.pool
        assert pool.unreserved_pages == pool.free_pages == pool.pages.shape[1]
        with pytest.raises(NotFoundError):  # also for those who only look: the other server has all of it
            sessions.find("s")
        await sessions.close()
        other.close()
        third = SharedStore(store, lambda: True, lambda whole: None)
        saved = third.read("s")
        assert [interaction for _, interaction in saved.journal] == [answered]
        third.close()

    asyncio.run(asyncio.wait_for(use(), 60))


def test_a_former_owner_does_not_come_back_when_the_session_has_ended(store):
    """And not either when another one has the same name since."""
    first = run(claim_new("s", "first"), store)
    store.write(f"{first.folder}/session.safetensors", b"snapshot")
    second = run(take_over("s", "second"), store)
    run(end(first), store)
    assert run(owns(second), store) and not run(owns(first), store)
    run(end(second), store)
    assert store.names("") == [] and not run(owns(first), store) and not run(owns(second), store)
    store.write(f"{first.folder}/chunks/7", b"late")
    assert store.names("") == ["s"] and run(take_over("s", "third"), store) is None and store.names("") == []
    again = run(claim_new("s", "again"), store)
    assert run(owns(again), store) and not run(owns(first), store)


def test_a_session_of_which_nobody_has_seen_anything_is_removed(store):
    claim = run(claim_new("s", "first"), store)
    assert run(take_over("s", "second"), store) is None
    assert store.names("") == [] and not run(owns(claim), store)
    with pytest.raises(NotFoundError):
        SharedStore(store, lambda: True, lambda whole: None).read("s")


def test_nothing_is_shown_before_the_first_snapshot_or_after_the_lease(store):
    holds = True
    shared = SharedStore(store, lambda: holds, lambda whole: None)
    kept, shown = shared.kept("s", 1.0), threading.Event()
    thread = threading.Thread(target=lambda: (kept.keep(fragment(0)), shown.set()))
    thread.start()
    assert not shown.wait(0.5)
    kept.save(SNAPSHOT, record(0)).result()
    assert shown.wait(60)
    thread.join()
    holds = False
    with pytest.raises(MovedError):
        kept.keep(fragment(1))
    shared.close()


def test_a_session_that_is_taken_over_before_its_first_snapshot_ends(store):
    """And does not wait for a snapshot that will not come."""
    shared = SharedStore(store, lambda: True, lambda whole: None)
    kept = shared.kept("s", 1.0)
    assert run(take_over("s", "other"), store) is None
    with pytest.raises(MovedError):
        kept.save(SNAPSHOT, record(0)).result()
    with pytest.raises(MovedError):
        kept.keep(fragment(0))
    shared.close()


def test_a_session_that_ends_before_its_first_snapshot_holds_nobody_up(store):
    """The encoder's thread, which writes the chunks of all sessions, may be waiting for that snapshot."""
    shared, told = SharedStore(store, lambda: True, lambda whole: None), []

    def keep() -> None:
        try:
            kept.keep(fragment(0))
        except MovedError as error:
            told.append(error)

    kept = shared.kept("s", 1.0)
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    kept.remove().result()
    thread.join(timeout=20)
    assert told and not thread.is_alive() and store.names("") == []
    shared.close()


def test_writes_are_tried_again_while_the_lease_lasts(tmp_path, monkeypatch):
    store, asked = FolderStore(tmp_path), 0
    write = store.write

    def fails_twice(name: str, content: bytes) -> None:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise OSError("the disk is not there")
        write(name, content)

    shared = SharedStore(store, lambda: True, lambda whole: None)
    kept = shared.kept("s", 1.0)
    monkeypatch.setattr(store, "write", fails_twice)
    kept.save(SNAPSHOT, record(0)).result()
    kept.keep(fragment(0))
    assert asked == 3 and kept.failures == 0
    shared.close()


def test_where_sessions_may_be_kept(tmp_path):
    assert isinstance(open_store(f"file://{tmp_path}"), FolderStore)
    (tmp_path / "file").touch()
    with pytest.raises(Error, match="--state"):
        open_store(str(tmp_path / "file" / "folder"))
    assert isinstance(open_store("memory://x"), FsspecStore)
    with pytest.raises(Error, match="nosuch"):
        open_store("nosuch://x")
    assert Path(tmp_path / "fleet" / ".scratch").is_dir()


@pytest.mark.whole
def test_a_store_that_does_not_answer_raises_oserror(tmp_path):
    """So that what waits for it tries again. botocore's own errors are others."""
    with s3():
        store = open_store("s3://bucket/place")
        with pytest.raises(Error, match=r"bucket does not exist.*--state"):
            open_store("s3://another/place")
    asked = [
        lambda: store.write("a/1", b""),
        lambda: store.put(Path(__file__), "a/1"),
        lambda: store.get("a/1", tmp_path / "a"),
        lambda: store.read("a/1"),
        lambda: store.names(""),
        lambda: store.copy("a/1", "a/2"),
        lambda: store.remove("a"),
    ]
    for ask in asked:
        with pytest.raises(OSError, match="EndpointConnectionError"):
            ask()


def test_what_is_not_a_sessions_is_not_looked_at_and_not_removed(tmp_path):
    """In the folder that users name, and where sessions are; among them those of a server without a fleet."""
    store = open_store(str(tmp_path))
    kept = [tmp_path / name for name in ("photos/2024/a.jpg", "sessions/s/session.safetensors", "fleet/photos/holidays/a.jpg")]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.touch()
    assert store.names("") == ["photos"] and run(take_over("photos", "t"), store) is None
    assert all(path.exists() for path in kept)
