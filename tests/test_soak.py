"""The verdicts of the soak test, on made-up logs, and a short run against a real server."""

from __future__ import annotations

import asyncio

import pytest

from bench.soak import WARM_SECONDS, Plan, checks, growth, report, soak

AFTER = {"sessions": 0, "viewers": 0, "pages": 108, "pages_free": 108, "opened": 40, "ended": 40}


def log(first: float, last: float) -> list[dict[str, float]]:
    """Memory that grows evenly, after a warm-up that must not count."""
    warming = [{"seconds": WARM_SECONDS * i / 10, "rss_bytes": 1.0} for i in range(10)]
    return [*warming, *({"seconds": WARM_SECONDS + i, "rss_bytes": first + (last - first) * i / 599} for i in range(600))]


def test_memory_is_flat_or_is_not():
    """With even growth, the medians of the first and the last sixth are a twelfth of the range away from its ends."""
    grown, medians = growth(log(100, 112))
    assert grown == pytest.approx(111 / 101 - 1, abs=1e-3) and len(medians) == 6
    assert [check.holds for check in checks(log(100, 101), AFTER, [])] == [True] * 6
    assert [check.holds for check in checks(log(100, 104), AFTER, [])] == [False] + [True] * 5
    assert not checks(log(100, 100)[:12], AFTER, [])[0].holds, "too short to say"


@pytest.mark.parametrize("wrong", [{"sessions": 1}, {"viewers": 2}, {"pages_free": 96}, {"ended": 39}])
def test_what_is_left_is_found(wrong):
    assert [check.holds for check in checks(log(100, 100), AFTER | wrong, [])].count(False) == 1
    assert [check.holds for check in checks(log(100, 100), AFTER, ["id"])].count(False) == 1


@pytest.mark.slow
def test_a_soak_of_a_minute_leaves_nothing(tmp_path):
    asyncio.run(soak(Plan(sessions=2, viewers=9, minutes=1), tmp_path))
    memory, *others = report(tmp_path)
    assert not memory.holds and others and all(check.holds for check in others)  # a minute shows nothing about memory
    assert (tmp_path / "soak.png").exists() and "![Memory" in (tmp_path / "soak.md").read_text()
