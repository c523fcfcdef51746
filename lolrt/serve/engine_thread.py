"""Two threads: one runs the engine, the other encodes the chunks that it makes."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from lolrt.serve.encoding import jpegs
from lolrt.serve.errors import MovedError
from lolrt.serve.hub import Fragment
from lolrt.serve.live import Call, Live, Made
from lolrt.session.snapshot import Snapshot
from lolrt.session.stream_engine import StreamEngine

Result = TypeVar("Result")

# At most this many chunks wait to be encoded; when there are more, the engine waits.
MOST_UNENCODED = 16


class Listener(Protocol):
    """Receives the results. The two threads call these methods."""

    def published(self, made: Made, fragment: Fragment, pictures: tuple[bytes, ...]) -> None:
        """A chunk is ready for viewers. pictures: its JPEGs, if some viewer wants them."""

    def replayed(self, made: Made, same: bool) -> None:
        """A chunk was made again that viewers had seen before the server restarted. same: whether its bytes are the same as then."""

    def failed(self, live: Live, error: Exception) -> None:
        """A session cannot go on."""

    def completed(self, live: Live) -> None:
        """A session has made all its frames."""


class EngineThread(threading.Thread):
    """Makes the chunks of all sessions. Other threads run functions in this one with `call`, or with `between_chunks` for one session."""

    def __init__(self, engine: StreamEngine, ahead_seconds: float, listener: Listener) -> None:
        """ahead_seconds: how far ahead of its viewers a session is made, at most."""
        super().__init__(name="lolrt engine", daemon=True)
        self.engine, self._ahead, self._listener = engine, ahead_seconds, listener
        self.sessions: dict[str, Live] = {}
        self._calls: queue.SimpleQueue[Call[Any]] = queue.SimpleQueue()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="lolrt encoder")
        self._unencoded = threading.Semaphore(MOST_UNENCODED)
        self._stopping = self._ended = False

    # From any thread.

    def call(self, ask: Callable[[], Result]) -> Future[Result]:
        """Runs a function in this thread, between two passes. The future raises CancelledError if the thread has ended."""
        call = Call(ask)
        self._calls.put(call)
        if self._ended:
            self._cancel_calls()
        return call.answer

    def between_chunks(self, live: Live, ask: Callable[[], Result]) -> Future[Result]:
        """Runs a function in this thread, when no chunk of the session is being made. The future raises CancelledError if the session ends
        first."""
        call = Call(ask)
        waits = self.call(lambda: call.answer.cancel() if live.ended else live.between.append(call))
        # Refers to nothing that refers to it: a collector of cycles comes too rarely for what answers hold.
        waits.add_done_callback(lambda done: done.cancelled() and call.answer.cancel())
        return call.answer

    def stop(self) -> None:
        """Ends the thread, after the calls that were made before."""

        def ask() -> None:
            self._stopping = True

        self.call(ask)

    # In this thread.

    def add(self, live: Live) -> None:
        self.sessions[live.id] = live

    def remove(self, live: Live) -> None:
        """Takes a session out of the engine and gives its pages back."""
        if self.sessions.get(live.id) is live:
            del self.sessions[live.id]
            live.ended = True
            for call in live.between:
                call.answer.cancel()
            self.engine.close(live.stream)

    def encoded(self, live: Live) -> Future[int]:
        """The number of fragments of a session's chunks so far. The future waits until these chunks are encoded."""
        return self._encoder.submit(lambda: live.encoder.fragments)

    def save(self, live: Live) -> Future[Future[None]]:
        """Begins to write a session to the disk; to be called between two chunks. The outer future is done when all chunks so far are
        encoded, the inner one when the session is on the disk."""
        kept, record = live.kept, live.record()
        assert kept is not None
        kept.begin(time.monotonic(), live.sequence)
        taken = live.stream.snapshot()
        on_cpu: Snapshot = replace(taken, tensors={name: tensor.cpu() for name, tensor in taken.tensors.items()})
        # By then all chunks before the snapshot are on the disk as well.
        return self._encoder.submit(lambda: kept.save(on_cpu, replace(record, fragments=live.encoder.fragments)))

    def run(self) -> None:
        while not self._stopping:
            wait = self._turn()
            if not self._stopping:
                with contextlib.suppress(queue.Empty):
                    self._calls.get(timeout=wait).run()
        self._encoder.shutdown()
        self._ended = True
        self._cancel_calls()

    def _turn(self) -> float | None:
        """Runs what is to be run, a pass at most, and gives in how many seconds there is more; None: nobody knows. What it has looked at
        is not held while the thread waits."""
        self._run_calls()
        looked_at: set[Live] = set()
        # Some are added meanwhile, as branches; each is saved for the first time before its first chunk.
        while new := [live for live in self.sessions.values() if live not in looked_at]:
            looked_at.update(new)
            for live in new:
                if live.between_chunks:
                    self._between(live)
        chosen, wait = self._choose()
        if chosen:
            self._step(chosen)
            return 0.0
        return wait

    def _run_calls(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait().run()

    def _cancel_calls(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait().answer.cancel()

    def _between(self, live: Live) -> None:
        while live.between:
            live.between.popleft().run()
        if live.kept is not None and not live.ended and live.kept.due(time.monotonic(), live.sequence):
            try:
                self.save(live)
            except Exception as error:
                self._listener.failed(live, error)
                self.remove(live)

    def _choose(self) -> tuple[list[Live], float | None]:
        """The sessions that take part in the next pass, and how many seconds to wait if there are none."""
        now, waits = time.monotonic(), []
        chosen: list[Live] = []
        background: list[Live] = []
        for live in self.sessions.values():
            wait = live.wait_seconds(now, self._ahead) if live.between_chunks else 0.0
            if wait is not None:
                waits.append(wait)
                if wait <= 0:
                    (background if live.background else chosen).append(live)
        return chosen or background, min(waits, default=None)

    def _step(self, chosen: list[Live]) -> None:
        chosen = [live for live in chosen if not live.between_chunks or self._begin(live)]
        begun = time.monotonic()
        failures = self._run_pass(chosen)
        seconds = time.monotonic() - begun
        for live in chosen:
            live.spend("cache" if live.stream.undecoded else "denoise", seconds)
            try:
                if live in failures:
                    raise failures[live]
                if live.stream.undecoded:
                    self._give(live.finish())
            except Exception as error:
                self._listener.failed(live, error)
                self.remove(live)

    def _begin(self, live: Live) -> bool:
        """Begins a chunk. Returns whether it could."""
        try:
            live.begin()
        except Exception as error:
            self._listener.failed(live, error)
            self.remove(live)
        return not live.ended

    def _run_pass(self, chosen: list[Live]) -> dict[Live, Exception]:
        """Runs one pass of these sessions. Returns the errors of the sessions that failed."""
        if not chosen:
            return {}
        try:
            failures = self.engine.run_pass([live.stream for live in chosen])
            return {live: failures[live.stream] for live in chosen if live.stream in failures}
        except Exception as error:
            if len(chosen) == 1:
                return {chosen[0]: error}
        # The pass as a whole failed, and is still pending. Run it for each session alone, to find the ones that fail.
        return {live: error for one in chosen for live, error in self._run_pass([one]).items()}

    def _give(self, made: Made) -> None:
        """Hands a chunk to the encoder's thread."""
        self._unencoded.acquire()
        self._encoder.submit(self._encode, made)

    # In the encoder's thread.

    def _encode(self, made: Made) -> None:
        live = made.live
        if live.broken:
            self._unencoded.release()
            return
        try:
            frames = made.frames()
            begun = time.monotonic()
            data = live.encoder.encode(frames)
        except Exception as error:
            self._break(live, error)
            return
        finally:
            self._unencoded.release()
        now = time.monotonic()
        about = {
            **made.about,
            "stage_seconds": {name: round(value, 4) for name, value in {**made.about["stage_seconds"], "encode": now - begun}.items()},
            "made_seconds": round(now - made.begun, 4),
            "slack_seconds": None if made.deadline is None else round(made.deadline - now, 4),
        }
        if made.sequence in live.replay:
            self._listener.replayed(made, live.replay[made.sequence] == zlib.crc32(data))
        else:
            fragment = Fragment(made.sequence, about, data)
            if live.kept is not None:
                try:
                    live.kept.keep(fragment)
                except MovedError as error:
                    self._break(live, error)
                    return
            pictures = jpegs(frames) if live.hub.picture_viewers else ()
            self._listener.published(made, fragment, pictures)
        if live.frames_left == 0 and made.sequence + 1 == live.sequence:
            self._listener.completed(live)
            self.call(lambda: self.remove(live))

    def _break(self, live: Live, error: Exception) -> None:
        live.broken = True
        self._listener.failed(live, error)
        self.call(lambda: self.remove(live))
