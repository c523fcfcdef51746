"""Streams of `tiny` in one engine beside as many processes of one stream each, on the same cores; snapshots; resuming.

Figures of `python -m bench` (bench/test_many.py). Rates are video frames a second, decoded, of streams whose windows are full.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import cast

from lolrt.session.saver import Saver
from lolrt.session.snapshot import Snapshot

WARM_CHUNKS = 5  # until the window is full, and one more
SAVE_EVERY = 60


def one_stream(number: int, chunks: int, threads: int, ready: Barrier, done: Barrier) -> None:
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


def saving(groups: int) -> list[float]:
    """What a video whose run saves every 60 frames takes more than one that does not, as a share: a pair of groups of 60 frames at a time,
    made, encoded and written, in turns with a snapshot and without."""
    import lolrt

    pipe = lolrt.load("tiny")
    stream = pipe.stream(pipe.example_prompts[0])
    for _ in range(WARM_CHUNKS):
        next(stream)
    shares = []
    with (
        tempfile.TemporaryDirectory(dir=".") as folder,
        lolrt.VideoWriter(Path(folder, "v.mp4"), pipe.height, pipe.width, pipe.fps) as writer,
        Saver() as saver,
    ):

        def group(save: bool) -> float:
            begin = time.perf_counter()
            if save:
                writer.cut()
                stream.save(Path(folder, "s.safetensors"), saver=saver)
            for _ in range(SAVE_EVERY // 12):
                writer.write(next(stream).frames)
            return time.perf_counter() - begin

        for i in range(groups):
            first, second = (group(save) for save in ((True, False) if i % 2 else (False, True)))
            shares.append(first / second - 1 if i % 2 else second / first - 1)
    return shares


def resuming() -> float:
    """Seconds from the start of `lolrt generate --resume` until the next chunk is in the file."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        video, snapshot = Path(folder, "v.partial.mp4"), Path(folder, "v.snapshot.safetensors")
        command = [sys.executable, "-m", "lolrt", "generate"]
        first = [*command, "a red car by the sea", "-o", str(Path(folder, "v.mp4")), "--endless", "--save-every", "12"]
        with subprocess.Popen(first, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while not snapshot.exists():
                time.sleep(0.05)
            process.kill()
        position = Snapshot.read(snapshot).run["position"]
        begin = time.perf_counter()
        # It saves again as soon as it has made a chunk and written it.
        saved = snapshot.stat().st_mtime_ns
        again = [*command, "--resume", str(snapshot), "--save-every", "1"]
        with subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while snapshot.stat().st_mtime_ns == saved:
                time.sleep(0.005)
            seconds = time.perf_counter() - begin
            process.kill()
        assert video.stat().st_size > position["bytes"]
        return seconds


def memory(streams: int) -> dict[str, int]:
    """Bytes of the plan, which is held against what is allocated by tests/test_memory.py: the model's, and what a stream takes more."""
    import lolrt
    from lolrt.memory_plan import plan

    pipe = lolrt.load("tiny")
    size = (pipe.height, pipe.width)
    one, many = (plan(pipe.dit.config, pipe.vae.config, *size, dtype=pipe.dit.dtype, sessions=n).stream for n in (1, streams))  # type: ignore[arg-type]
    pages, decoder = (sum(b for name, b in many.items() if word in name) for word in ("pages", "VAE"))
    first = sum(one.values()) - sum(b for name, b in one.items() if "pages" in name or "VAE" in name)
    rest = sum(many.values()) - pages - decoder
    model = sum(p.nbytes for part in (pipe.dit, cast(lolrt.CausalVAE, pipe.vae)) for p in part.parameters())
    return {
        "model": model,
        "pages": pages // streams,
        "decoder": decoder // streams,
        "rest": (rest - first) // (streams - 1),
    }
