"""Pools of pages, and the windows that have them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lolrt import _core


class NaiveWindow:
    """The policy in one line: of the frames so far, the first `sinks` and the last `recent` of the others."""

    def __init__(self, sinks: int, recent: int) -> None:
        self.sinks, self.recent = sinks, recent
        self.history: list[int] = []

    def frames(self) -> list[int]:
        return self.history[: self.sinks] + self.history[self.sinks :][-self.recent :]


@settings(max_examples=200)
@given(st.integers(0, 4), st.integers(1, 9), st.integers(-(10**12), 10**12), st.lists(st.integers(1, 6), max_size=30), st.data())
def test_window_follows_its_policy(sinks: int, recent: int, start: int, chunks: list[int], data: st.DataObject) -> None:
    pool = _core.Pool(sinks + recent)
    window, naive = _core.Window(pool, sinks, recent), NaiveWindow(sinks, recent)
    page_of: dict[int, int] = {}
    next_frame = start
    for frames in chunks:
        before = window.read()
        if next_frame + frames - max(next_frame, start + sinks) > recent:
            with pytest.raises(ValueError, match="window_advance"):
                window.advance(next_frame, frames)
            assert window.read() == before
            continue
        window.advance(next_frame, frames)
        naive.history += range(next_frame, next_frame + frames)
        pages, held = window.read()
        assert held == naive.frames()
        assert len(set(pages)) == len(pages) == len(window) and pool.free_pages == sinks + recent - len(pages)
        # A frame keeps its page as long as it is held: nothing is ever moved.
        assert all(page_of.get(frame, page) == page for frame, page in zip(held, pages, strict=True))
        page_of = dict(zip(held, pages, strict=True))
        window.advance(next_frame, frames)
        assert window.read() == (pages, held)
        next_frame += frames
        wrong = data.draw(st.integers(start - 3, next_frame + 5).filter(lambda f, n=next_frame, c=frames: f not in (n, n - c)))
        with pytest.raises(ValueError, match="window_advance"):
            window.advance(wrong, frames)
        if data.draw(st.booleans()):
            pool = _core.Pool(sinks + recent)
            window = _core.Window(pool, sinks, recent)
            window.restore(held)
            page_of = dict(zip(held, window.read()[0], strict=True))


@pytest.mark.parametrize(
    "frames",
    [[], [3, 3], [0, 2], [0, 1, 2, 5, 7], [0, 1, 2, 2], [0, 1, 2, 7, 8], list(range(13)), [5, 6, 4], [0, 1, 3, 4, 5, 6, 7, 8, 9]],
)
def test_only_what_a_window_can_hold_is_restored(frames: list[int]) -> None:
    pool = _core.Pool(20)
    window = _core.Window(pool, 3, 4)
    with pytest.raises(ValueError, match="window_restore"):
        window.restore(frames)
    assert len(window) == 0 and pool.free_pages == 20


def test_a_pool_gives_each_page_once() -> None:
    pool = _core.Pool(3)
    assert [pool.acquire() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(MemoryError, match="all 3 pages"):
        pool.acquire()
    pool.release(1)
    assert pool.free_pages == 1 and pool.acquire() == 1
    pool.release(2)
    for page in (2, 3, -1):
        with pytest.raises(ValueError, match=f"page {page} of 3 is not taken"):
            pool.release(page)


def test_windows_share_a_pool_and_give_their_pages_back() -> None:
    pool = _core.Pool(5)
    first, second = _core.Window(pool, 1, 2), _core.Window(pool, 1, 2)
    first.advance(0, 3)
    with pytest.raises(MemoryError, match="needs 3 pages, the pool of 5 has 2 free"):
        second.advance(0, 3)
    assert len(second) == 0
    second.advance(0, 2)
    del first
    assert pool.free_pages == 3
    del pool  # the window keeps it
    second.advance(2, 1)
    assert second.read()[1] == [0, 1, 2]


def test_a_retained_page_outlasts_its_window() -> None:
    pool = _core.Pool(4)
    window = _core.Window(pool, 1, 2)
    window.advance(0, 3)
    page = window.read()[0][1]
    pool.retain(page)
    window.advance(3, 1)
    assert pool.free_pages == 0 and page not in window.read()[0]
    # The frame that would leave now gives its page back, the retained one does not come with it.
    window.advance(4, 1)
    pool.retain(window.read()[0][1])
    before = window.read()
    with pytest.raises(MemoryError, match="needs 1 pages, the pool of 4 has 0 free"):
        window.advance(5, 1)
    assert window.read() == before
    pool.release(page)
    window.advance(5, 1)
    del window
    assert pool.free_pages == 3
    for wrong in (page, 4, -1):
        with pytest.raises(ValueError, match=f"pool_retain: page {wrong} of 4 is not taken"):
            pool.retain(wrong)
