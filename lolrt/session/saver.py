"""Writing snapshots beside the work that follows: the disk takes longer over one than the session does to copy itself."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from lolrt.session.snapshot import Snapshot


class Saver:
    """A context manager that writes one snapshot at a time on a thread of its own. Its end waits for the last one.

    A write that failed raises its `lolrt.OutputError` from the next call, or from the end.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lolrt-saver")
        self._writing: Future[None] | None = None

    def write(self, snapshot: Snapshot, path: str | Path) -> None:
        """Begins to write a snapshot, whose tensors nobody else changes, once the one before it is on the disk."""
        self.wait()
        on_cpu = replace(snapshot, tensors={name: tensor.cpu() for name, tensor in snapshot.tensors.items()})
        self._writing = self._thread.submit(on_cpu.write, path)

    def wait(self) -> None:
        """Until nothing is being written any more."""
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
