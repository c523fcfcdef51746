"""How the work of frame_attention is split (csrc/cuda/work_split.cuh): everything is done once, and slots are full."""

from __future__ import annotations

import ctypes
import heapq
from dataclasses import dataclass

import numpy as np
import pytest
from emulated import Emulated
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.whole

ROWS, LEAST_KEYS = 128, 512


@dataclass
class Split:
    cut: int
    segments: np.ndarray
    """[blocks, 5]: head, first row, first page, pages' end, part or -1."""

    @property
    def pages(self) -> np.ndarray:
        return self.segments[:, 3] - self.segments[:, 2]

    def time(self, slots: int) -> int:
        return time(self.pages, slots)

    def pages_there(self, filled: int) -> np.ndarray:
        """Of each segment, if the table has so many pages."""
        return np.clip(filled - self.segments[:, 2], 0, self.pages)

    def blocks_of_sm90(self, slots: int, filled: int) -> np.ndarray:
        """The pages of each block: as many blocks as there are slots have the whole tiles among them, each part has a block."""
        there, is_whole = self.pages_there(filled), self.segments[:, 4] < 0
        whole = there[is_whole]
        return np.array([*(whole[block::slots].sum() for block in range(min(slots, len(whole)))), *there[~is_whole]])


def time(blocks: np.ndarray, slots: int) -> int:
    """Time in pages, if each block goes to the slot that is free first."""
    free = [0] * slots
    for pages in blocks.tolist():
        heapq.heapreplace(free, free[0] + pages)
    return max(free)


@pytest.fixture(scope="module")
def library(emulated_library: Emulated) -> ctypes.CDLL:
    return ctypes.CDLL(str(emulated_library.path.with_name("liblayouts.so")))


def split(library: ctypes.CDLL, head_tiles: int, heads: int, pages: int, page_tokens: int, slots: int) -> Split:
    segments = np.empty((head_tiles * heads * pages, 5), np.int32)
    cut = ctypes.c_int32()
    numbers = map(ctypes.c_int64, (head_tiles, heads, pages, page_tokens, slots))
    blocks = library.layouts_split(*numbers, ctypes.byref(cut), ctypes.c_void_p(segments.ctypes.data))
    return Split(cut.value, segments[:blocks])


geometry = given(
    head_tiles=st.integers(1, 9),
    heads=st.integers(1, 7),
    pages=st.integers(1, 20),
    page_tokens=st.sampled_from([1, 24, 100, 512, 1560]),
    slots=st.integers(1, 70),
)


@geometry
@settings(deadline=None)
def test_every_page_of_every_tile_is_done_once(
    library: ctypes.CDLL, head_tiles: int, heads: int, pages: int, page_tokens: int, slots: int
) -> None:
    found = split(library, head_tiles, heads, pages, page_tokens, slots)
    done = np.zeros((heads, head_tiles, pages), int)
    for head, row, page, end, part in found.segments.tolist():
        assert row % ROWS == 0 and page < end
        done[head, row // ROWS, page:end] += 1
        assert (part < 0) == (end - page == pages)
        assert part < 0 or end == pages or (end - page) * page_tokens >= LEAST_KEYS
    assert (done == 1).all()
    # Parts lie in the workspace side by side; the distance between those of one tile is the number of tiles that are cut.
    parts = found.segments[found.segments[:, 4] >= 0]
    assert (parts[:, 4] == np.arange(len(parts))).all()
    if len(parts):
        tiles = parts[:, :2].reshape(-1, found.cut, 2)
        assert (tiles == tiles[0]).all() and (np.diff(parts[:, 2].reshape(-1, found.cut), axis=0) > 0).all()


@geometry
@settings(deadline=None)
def test_nothing_takes_longer_for_being_cut(
    library: ctypes.CDLL, head_tiles: int, heads: int, pages: int, page_tokens: int, slots: int
) -> None:
    found = split(library, head_tiles, heads, pages, page_tokens, slots)
    tiles = head_tiles * heads
    assert -(-tiles * pages // slots) <= found.time(slots) <= -(-tiles // slots) * pages


@geometry
@settings(deadline=None)
def test_whole_tiles_one_after_another_take_no_longer(
    library: ctypes.CDLL, head_tiles: int, heads: int, pages: int, page_tokens: int, slots: int
) -> None:
    found = split(library, head_tiles, heads, pages, page_tokens, slots)
    assert time(found.blocks_of_sm90(slots, pages), slots) == found.time(slots)


@pytest.mark.parametrize("head_tiles", [37, 13], ids=["H100", "H100-row"])
@pytest.mark.parametrize(
    "filled", [(12,) * 8, (1, 12, 4, 9, 12, 2, 7, 3), (12, 1, 1, 1, 12, 1, 1, 1)], ids=["full", "filling", "two of eight"]
)
def test_nor_do_they_in_a_batch_at_the_published_shape(library: ctypes.CDLL, head_tiles: int, filled: tuple[int, ...]) -> None:
    """Of windows in which so many of 12 pages are there."""
    alone = split(library, head_tiles, 12, 12, 1560, 132)
    several = np.concatenate([alone.blocks_of_sm90(132, pages) for pages in filled])
    assert time(several, 132) <= time(np.concatenate([alone.pages_there(pages) for pages in filled]), 132)


@pytest.mark.parametrize(("slots", "pages"), [(216, 25), (132, 41)], ids=["A100", "H100"])
def test_slots_are_full_at_the_published_shape(library: ctypes.CDLL, slots: int, pages: int) -> None:
    """37 tiles a head of 3 x 1560 rows, 12 heads, 12 pages: 98.7 and 98.4 % of the slots' time; uncut 36 and 48."""
    found = split(library, 37, 12, 12, 1560, slots)
    assert found.time(slots) == pages == -(-37 * 12 * 12 // slots)


@pytest.mark.parametrize(
    ("head_tiles", "slots", "pages"),
    [(37, 216, 198), (37, 132, 324), (13, 216, 72), (13, 132, 114)],
    ids=["A100", "H100", "A100-row", "H100-row"],
)
def test_slots_are_full_with_a_batch_at_the_published_shape(library: ctypes.CDLL, head_tiles: int, slots: int, pages: int) -> None:
    """Eight entries, each cut as it would be alone, of 3 frames, and of one as where each frame has a row of pages: at most 4 % more than
    least."""
    alone = split(library, head_tiles, 12, 12, 1560, slots)
    together = Split(8 * alone.cut, np.tile(alone.segments, (8, 1)))
    assert together.time(slots) == pages <= 1.04 * 8 * head_tiles * 12 * 12 / slots
