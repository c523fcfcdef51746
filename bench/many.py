"""Many streams of `tiny` in one engine beside as many processes of one stream each, on the same cores: `python -m bench.many`.

Video frames a second, decoded, from streams whose windows are full. One after the other in turns; the report gives the ratio of medians
and its spread. Also: bytes of the second and later streams beside their pages, and what a snapshot every 60 frames costs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from lolrt.openmp import spin_briefly

WARM_CHUNKS = 5  # until the window is full, and one more
SAVE_EVERY = 60


def one_stream(number: int, chunks: int, threads: int, ready: Barrier, done: Barrier) -> None:
    spin_briefly()
    import lolrt

    lolrt.set_threads(threads)
    pipe = lolrt.load("tiny")
    stream = pipe.stream(pipe.example_prompts[number % 8], seed=number)
    for _ in range(WARM_CHUNKS):
        next(stream)
    ready.wait()
    for _ in range(chunks):
        next(stream)
    done.wait()


def processes(streams: int, chunks: int, threads: int) -> float:
    """Frames a second of all processes together, from when the last is warm until the last is done."""
    context = multiprocessing.get_context("spawn")
    ready, done = context.Barrier(streams + 1), context.Barrier(streams + 1)
    workers = [context.Process(target=one_stream, args=(i, chunks, threads, ready, done)) for i in range(streams)]
    for worker in workers:
        worker.start()
    ready.wait()
    begin = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - begin
    for worker in workers:
        worker.join()
    return 12 * streams * chunks / seconds


def engine(streams: int, chunks: int, invariant: bool) -> float:
    import lolrt

    pipe = lolrt.load("tiny")
    engine = pipe.engine(streams, batch_invariant=invariant)
    for i in range(streams):
        engine.open(pipe.example_prompts[i % 8], seed=i)
    made = iter(engine)
    for _ in range(WARM_CHUNKS * streams):
        next(made)
    begin = time.perf_counter()
    for _ in range(chunks * streams):
        next(made)
    return 12 * streams * chunks / (time.perf_counter() - begin)


def saving(chunks: int) -> tuple[float, float]:
    """Seconds of so many chunks of one stream, and of its snapshots every 60 frames among them."""
    import lolrt

    pipe = lolrt.load("tiny")
    stream = pipe.stream(pipe.example_prompts[0])
    for _ in range(WARM_CHUNKS):
        next(stream)
    spent = 0.0
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        for i in range(chunks):
            next(stream)
            if 12 * (i + 1) % SAVE_EVERY == 0:
                started = time.perf_counter()
                stream.save(Path(folder, "s.safetensors"))
                spent += time.perf_counter() - started
        whole = time.perf_counter() - begin
    return whole - spent, spent


def main() -> None:
    spin_briefly()
    parser = argparse.ArgumentParser(prog="python -m bench.many", description="Measures many streams in one engine.")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--chunks", type=int, default=5, help="of each stream, in a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    streams, chunks = arguments.streams, arguments.chunks
    cores = len(os.sched_getaffinity(0))
    kinds = {
        "one engine": lambda: engine(streams, chunks, False),
        "one engine, batch_invariant": lambda: engine(streams, chunks, True),
        f"{streams} processes of 1 thread": lambda: processes(streams, chunks, 1),
        f"{streams} processes of {cores} threads": lambda: processes(streams, chunks, cores),
        "one stream alone": lambda: engine(1, chunks, False),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, run in kinds.items():
            rates[name].append(run())
            print(f"{name:32} {rates[name][-1]:7.1f} frames/s", flush=True)
    first = rates["one engine"]
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(first, found, strict=True)]
        print(f"one engine / {name}: {statistics.median(first) / statistics.median(found):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    print("saving a full snapshot every 60 frames: " + ", ".join(f"{100 * b / a:.1f} %" for a, b in (saving(25) for _ in range(3))))


if __name__ == "__main__":
    main()
