"""While something is written or read, every system call that can fail is made to fail in turn: nothing is lost, nothing is left half
done, and the error is one line (tests/failing_calls.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from commands import output_of

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shim") / "failing_calls.so"
    output_of("cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", HERE / "failing_calls.c", "-o", made, "-ldl")
    return made


def made_to_fail(operation: str, shim: Path, folder: Path, step: int) -> dict[str, int]:
    said = output_of(sys.executable, HERE / "failing_calls.py", operation, folder, step, LD_PRELOAD=str(shim))
    return {kind: int(count) for kind, count in (line.split() for line in said.splitlines())}


@pytest.mark.whole
@pytest.mark.parametrize("operation", ["save", "embeddings", "cache", "state"])
def test_some_calls_fail(operation: str, shim: Path, tmp_path: Path) -> None:
    counts = made_to_fail(operation, shim, tmp_path, 5)
    assert counts["open"] and counts["write"] and counts["sync"] and counts["rename"], counts


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["save", "resume", "convert", "v.mp4", "v.mkv", "v.webm", "v.gif", "v.m3u8", "%03d.png", "generate"])
def test_each_call_fails(operation: str, shim: Path, tmp_path: Path) -> None:
    counts = made_to_fail(operation, shim, tmp_path, 1)
    if operation == "resume":
        assert counts["open"] and counts["read"], counts
    else:
        assert counts["open"] > 1 and counts["write"] > 1 and counts["sync"] > 1 and counts["rename"] > 1, counts
