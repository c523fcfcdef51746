"""docs/reliability.md: each promise names what keeps it, and that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| (?!promise \|)(?P<promise>.+?) \| (?P<kept>.+) \|$", re.MULTILINE)


def test_every_promise_is_kept_by_what_is_there() -> None:
    rows = list(ROW.finditer((ROOT / "docs" / "reliability.md").read_text()))
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`((?:tests|fuzz)/[^`:]+)(?:::(\w+))?`", row["kept"])
        assert named, row["promise"]
        for path, test in named:
            assert (ROOT / path).is_file(), path
            assert not test or re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{test}"
