"""Writes snapshots in the background: the disk takes longer to write a snapshot than the session takes to copy its state."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from lolrt.session.snapshot import Snapshot


class Saver:
    """A context manager that writes snapshots on a thread of its own, one at a time. Its exit waits for the last one.

    If a write fails, the next call, or the exit, raises its `lolrt.OutputError`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lolrt-saver")
        self._writing: Future[None] | None = None

    def write(self, snapshot: Snapshot, path: str | Path) -> None:
        """Waits until the snapshot before is on the disk, then begins to write this one. Nobody else may change its tensors."""
        self.wait()
        on_cpu = replace(snapshot, tensors={name: tensor.cpu() for name, tensor in snapshot.tensors.items()})
        self._writing = self._thread.submit(on_cpu.write, path)

    def wait(self) -> None:
        """Waits until nothing is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self.wait()
        finally:
            self._thread.shutdown()
