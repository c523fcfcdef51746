"""The metrics of `/metrics`, for Prometheus. Their names are part of the public interface; docs/serve.md lists them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

# Upper bounds of the buckets in seconds: from the time of one pass to a wait after which a viewer gives up.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
FACTORS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 5.0, 10.0)

Gauges = Callable[[], list[GaugeMetricFamily]]


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"lolrt_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"lolrt_{name}_seconds", text, labels, buckets=SECONDS, registry=registry)

        self.opened = counter("sessions_opened", "Sessions that were opened")
        self.ended = counter("sessions_ended", "Sessions that have ended, by why", "reason")
        self.refused = counter("requests_refused", "Requests that were refused, by code", "code")
        self.chunks = counter("chunks", "Chunks that were made")
        self.timed = counter("chunks_timed", "Chunks with a deadline: all but first ones")
        self.late = counter("chunks_late", "Chunks that missed it: underruns of a viewer who plays from the first one on")
        self.stalled = counter("viewer_stall_seconds", "How long such viewers have waited")
        self.replayed = counter("chunks_replayed", "Chunks made again after a restart, by whether they had the same bytes", "same")
        self.lost = counter("viewer_lost_fragments", "Fragments that viewers lost because they were slow")
        self.sent = counter("sent_bytes", "Bytes of video that were sent")
        self.writes = counter("state_writes", "What was to be kept on the disk, by whether it was", "result")
        self.first_chunk = seconds("first_chunk", "From when a session is asked for until its first chunk can be sent")
        self.interval = seconds("chunk_interval", "Between two chunks of a session")
        self.control = seconds("control", "From an interaction until the first chunk that follows it can be sent")
        self.stage = seconds("stage", "What a chunk spends where", "stage")
        self.factor = Histogram(
            "lolrt_real_time_factor", "Seconds that a chunk takes by seconds that it plays", buckets=FACTORS, registry=registry
        )

    def watch(self, gauges: Gauges) -> None:
        """Adds gauges, which are computed at each request of `/metrics`."""
        self.registry.register(_Gauges(gauges))

    def chunk(self, about: dict[str, Any], interval: float | None, control: float | None) -> None:
        """Counts a chunk. about: its description. interval: seconds since the chunk before. control: seconds since the interaction, if
        this is the first chunk that follows one."""
        self.chunks.inc()
        slack = about["slack_seconds"]
        if slack is not None:
            self.timed.inc()
            self.late.inc(slack < 0)
            self.stalled.inc(max(0.0, -slack))
        if interval is not None:
            self.interval.observe(interval)
        if control is not None:
            self.control.observe(control)
        for stage, spent in about["stage_seconds"].items():
            self.stage.labels(stage).observe(spent)
        self.factor.observe(about["made_seconds"] / about["seconds"])

    @contextlib.contextmanager
    def sending(self, size: int) -> Iterator[None]:
        """A context manager around the sending of a fragment to a viewer."""
        begun = time.monotonic()
        yield
        self.stage.labels("send").observe(time.monotonic() - begun)
        self.sent.inc(size)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Gauges(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield from self._gauges()

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing: otherwise registering would compute the gauges before the server is complete."""
        yield from ()
