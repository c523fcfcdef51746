"""The folder of a session that has ended: who writes late leaves the next session of its name alone."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, wait
from pathlib import Path

import pytest
from serving import fragment

from lolrt.serve import folder
from lolrt.serve.describe import describe
from lolrt.serve.errors import ConflictError
from lolrt.serve.hub import Fragment, State
from lolrt.serve.protocol import Stream
from lolrt.serve.sessions import Sessions
from lolrt.serve.settings import Settings
from lolrt.serve.state import Interaction, Store


def test_nothing_is_left_of_a_session_that_ends_while_it_is_written(tmp_path, monkeypatch):
    """What is written at the same time, and what comes later, makes no folder anew."""
    store = Store(tmp_path, lambda whole: None)
    kept = store.kept("id", 1.0)
    kept.keep(fragment(0))
    kept.note(1, Interaction("a", "b", 1, 0))
    assert (tmp_path / "sessions" / "id" / "journal.json").exists()
    write = folder.write_whole

    removed: list[Future[None]] = []

    def removed_meanwhile(path: Path, content: bytes) -> None:
        removed.append(kept.remove())
        assert not wait(removed, timeout=0.2).done  # but as soon as this is written
        write(path, content)

    monkeypatch.setattr(folder, "write_whole", removed_meanwhile)
    kept.note(1, Interaction("c", "d", 1, 1))
    removed[0].result()
    for number in range(1, 4):
        kept.keep(fragment(number))
    kept.note(4, Interaction("e", "f", 1, 2))
    store.close()
    assert not list((tmp_path / "sessions").iterdir()) and kept.failures == 0


def test_what_a_session_writes_late_leaves_the_next_of_its_name_alone(tmp_path):
    """A chunk may still be in the encoder when its session ends, and another is opened with its name."""
    store = Store(tmp_path, lambda whole: None)
    old = store.kept("id", 1.0)
    old.remove().result()
    new = store.kept("id", 1.0)
    new.keep(fragment(0))
    old.keep(fragment(1))
    assert [path.name for path in (tmp_path / "sessions" / "id" / "chunks").iterdir()] == ["0"]
    store.close()


def test_a_folder_that_was_deleted_is_not_written_though_another_is_in_its_place(tmp_path):
    """As by a thread that has seen that the session goes on, and comes to write only now."""
    old, new = folder.Directory(tmp_path / "id"), folder.Directory(tmp_path / "id")
    old.make()
    old.delete()
    new.make()
    for write in (lambda: old.write_chunk(0, b"late"), lambda: old.write_journal(b"late")):
        with pytest.raises(OSError, match="has ended"):
            write()
    assert new.chunks() == [] and new.read_journal() is None


def test_a_chunk_that_is_being_written_at_the_end_of_a_session_is_not_in_the_next_of_its_name(tmp_path, monkeypatch):
    """Nor is the next one's folder deleted when it is written at last."""
    store, begun, go_on = Store(tmp_path, lambda whole: None), threading.Event(), threading.Event()
    old, write = store.kept("id", 1.0), Path.write_bytes

    def slowly(path: Path, content: bytes) -> int:
        begun.set()
        assert go_on.wait(20)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", slowly)
    writing = threading.Thread(target=old.keep, args=[fragment(1)])
    writing.start()
    assert begun.wait(20)
    removed = old.remove()
    if not wait([removed], timeout=0.2).done:  # it waits for the chunk
        go_on.set()
        removed.result(timeout=20)
    new = store.kept("id", 1.0)
    go_on.set()
    writing.join()
    new.keep(fragment(0))
    old.keep(fragment(2))
    store.close()
    assert [path.name for path in (tmp_path / "sessions" / "id" / "chunks").iterdir()] == ["0"]


def test_a_session_of_the_same_name_is_opened_when_the_folder_of_the_failed_one_is_gone(quick, tmp_path, monkeypatch, capsys):
    """Though that is removed in another thread, which is slow here, and nobody has asked for it."""

    async def run() -> None:
        sessions = Sessions(quick, Settings(max_sessions=2, state=tmp_path))
        await sessions.start()
        delete, go_on = folder.Directory.delete, threading.Event()

        def slowly(directory: folder.Directory) -> None:
            assert go_on.wait(20)
            delete(directory)

        monkeypatch.setattr(folder.Directory, "delete", slowly)
        wanted = Stream(prompt="a red car by the sea", session_id="name")
        old = await sessions.open(wanted)
        sessions._thread.call(lambda: sessions._thread._break(old.live, RuntimeError()))
        while list(sessions):
            await asyncio.sleep(0.01)
        opening = asyncio.create_task(sessions.open(wanted))
        while "name" not in sessions._coming and not opening.done():
            await asyncio.sleep(0.01)
        with pytest.raises(ConflictError, match="exists already"):
            await sessions.open(wanted)
        other = await sessions.open(Stream(prompt="a red car by the sea"))  # does not wait for it
        assert "kept" not in describe(sessions, sessions.find("name"))  # of the old one nothing is
        go_on.set()
        new = await asyncio.wait_for(opening, 20)
        async for event in new.hub.follow(0):
            assert isinstance(event, Fragment)
            break
        assert not sessions._removed
        await sessions.end(other, State("ended", "closed"))
        await sessions.close()
        assert (tmp_path / "sessions" / "name" / "session.safetensors").exists() and new.live.kept.failures == 0  # type: ignore[union-attr]

    asyncio.run(run())
    assert "has failed" in capsys.readouterr().err
