"""Worker processes, and what becomes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lolrt import workers

pytestmark = pytest.mark.whole

# Two workers that are busy for an hour.
PARENT = """
import os, sys, time
from lolrt import workers

def work(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)

if __name__ == "__main__":
    with workers.pool(2) as pool:
        list(pool.map(work, [3600, 3600]))
"""


def runs(pid: int) -> bool:
    """A process that has ended, but has not been waited for yet, does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_made_them(number, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    paths = os.pathsep.join(path for path in sys.path if path)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(map(runs, pids))
    parent.send_signal(number)
    parent.wait()
    deadline = time.monotonic() + 10
    while any(map(runs, pids)):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.05)


def test_workers_begin_as_they_are_told():
    with workers.pool(1, begin) as pool:
        assert pool.submit(os.getenv, "LOLRT_TEST_BEGUN").result() == "yes"
    with workers.pool(1) as pool:
        assert pool.submit(os.getenv, "LOLRT_TEST_BEGUN").result() is None


def begin() -> None:
    os.environ["LOLRT_TEST_BEGUN"] = "yes"
