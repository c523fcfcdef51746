"""How often a test runs, by the time that it takes. pyproject.toml defines each mark; a test without one is fast."""

from __future__ import annotations

import pytest

TIERS = ("whole", "slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marks = [mark.name for mark in item.iter_markers() if mark.name in TIERS]
        if len(marks) > 1:
            raise pytest.UsageError(f"{item.nodeid} is marked {' and '.join(marks)}; expected one mark, of the test or of its whole file")
