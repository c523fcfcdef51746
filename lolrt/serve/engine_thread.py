"""The one thread that runs the engine, and the one that encodes what it makes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from lolrt.serve.hub import Fragment
from lolrt.serve.live import Call, Live, Made
from lolrt.session.stream_engine import StreamEngine

Result = TypeVar("Result")

# Chunks that may wait to be encoded; when there are more, the engine waits.
MOST_UNENCODED = 16


class EngineThread(threading.Thread):
    """Makes the chunks of all sessions. What others want of it they ask by `call`, or by `between_chunks` of one session."""

    def __init__(
        self,
        engine: StreamEngine,
        ahead_seconds: float,
        published: Callable[[Live, Fragment], None],
        failed: Callable[[Live, Exception], None],
        completed: Callable[[Live], None],
    ) -> None:
        """ahead_seconds: the most that a session is made ahead of its viewers. The others are called in these threads."""
        super().__init__(name="lolrt engine", daemon=True)
        self.engine, self._ahead = engine, ahead_seconds
        self._published, self._failed, self._completed = published, failed, completed
        self.sessions: dict[str, Live] = {}
        self._calls: queue.SimpleQueue[Call[Any]] = queue.SimpleQueue()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="lolrt encoder")
        self._unencoded = threading.Semaphore(MOST_UNENCODED)
        self._stopping = self._ended = False

    # From any thread.

    def call(self, ask: Callable[[], Result]) -> Future[Result]:
        """Runs between two passes. Raises CancelledError where the thread has ended."""
        call = Call(ask)
        self._calls.put(call)
        if self._ended:
            self._cancel_calls()
        return call.answer

    def between_chunks(self, live: Live, ask: Callable[[], Result]) -> Future[Result]:
        """Runs when no chunk of a session is on its way. Raises CancelledError for one that ends before."""
        call = Call(ask)
        self.call(lambda: call.answer.cancel() if live.ended else live.between.append(call))
        return call.answer

    def stop(self) -> None:
        """Ends when the calls before are done."""

        def ask() -> None:
            self._stopping = True

        self.call(ask)

    # In this thread.

    def add(self, live: Live) -> None:
        self.sessions[live.id] = live

    def remove(self, live: Live) -> None:
        """Gives its pages back."""
        if self.sessions.pop(live.id, None) is not None:
            live.ended = True
            for call in live.between:
                call.answer.cancel()
            self.engine.close(live.stream)

    def run(self) -> None:
        while not self._stopping:
            self._run_calls()
            for live in list(self.sessions.values()):
                while live.between and live.between_chunks:
                    live.between.popleft().run()
            chosen, wait = self._choose()
            if chosen:
                self._step(chosen)
            elif not self._stopping:
                with contextlib.suppress(queue.Empty):
                    self._calls.get(timeout=wait).run()
        self._encoder.shutdown()
        self._ended = True
        self._cancel_calls()

    def _run_calls(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait().run()

    def _cancel_calls(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait().answer.cancel()

    def _choose(self) -> tuple[list[Live], float | None]:
        """Whose pass comes next, and in how many seconds anybody's does."""
        now, chosen, waits = time.monotonic(), [], []
        for live in self.sessions.values():
            wait = live.wait_seconds(now, self._ahead) if live.between_chunks else 0.0
            if wait is not None:
                waits.append(wait)
                if wait <= 0:
                    chosen.append(live)
        return chosen, min(waits, default=None)

    def _step(self, chosen: list[Live]) -> None:
        for live in chosen:
            if live.between_chunks:
                live.begin()
        failures = self._run_pass(chosen)
        for live in chosen:
            failure = failures.get(live)
            if failure is not None:
                self._failed(live, failure)
            elif live.stream.undecoded:
                try:
                    made = live.finish()
                except Exception as error:
                    self._failed(live, error)
                    continue
                self._unencoded.acquire()
                self._encoder.submit(self._encode, made)

    def _run_pass(self, chosen: list[Live]) -> dict[Live, Exception]:
        """The errors of those that failed."""
        try:
            failures = self.engine.run_pass([live.stream for live in chosen])
            return {live: failures[live.stream] for live in chosen if live.stream in failures}
        except Exception as error:
            if len(chosen) == 1:
                return {chosen[0]: error}
        # Whose pass cannot be run is found out one by one; the pass is pending still.
        return {live: error for one in chosen for live, error in self._run_pass([one]).items()}

    def _encode(self, made: Made) -> None:
        """In the encoder's thread."""
        live = made.live
        try:
            data = live.encoder.encode(made.frames())
        except Exception as error:
            self._failed(live, error)
            return
        finally:
            self._unencoded.release()
        now = time.monotonic()
        slack = None if made.deadline is None else round(made.deadline - now, 4)
        about: dict[str, Any] = {**made.about, "made_seconds": round(now - made.begun, 4), "slack_seconds": slack}
        self._published(live, Fragment(made.sequence, about, data))
        if live.frames_left == 0:
            self._completed(live)
