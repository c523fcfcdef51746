"""Each promise in docs/reliability.md names a test or a fuzzer that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| (?!promise \|)(?P<promise>.+?) \| (?P<tests>.+) \|$", re.MULTILINE)


def test_every_promise_names_a_test_that_exists() -> None:
    rows = list(ROW.finditer((ROOT / "docs" / "reliability.md").read_text()))
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`((?:tests|fuzz)/[^`:]+)(?:::(\w+))?`", row["tests"])
        assert named, row["promise"]
        for path, test in named:
            assert (ROOT / path).is_file(), path
            assert not test or re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{test}"
