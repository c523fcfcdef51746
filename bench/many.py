"""Streams of `tiny` in one engine beside as many processes of one stream each, on the same cores; snapshots; resuming.

    python -m bench.many    # some minutes; writes docs/many-streams.md

Rates are video frames a second, decoded, of streams whose windows are full.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import cast

import numpy as np

from bench.report import table
from lolrt.bench.machine import cores, describe
from lolrt.session.saver import Saver
from lolrt.session.snapshot import Snapshot

WARM_CHUNKS = 5  # until the window is full, and one more
SAVE_EVERY = 60
DOCUMENT = Path(__file__).parents[1] / "docs" / "many-streams.md"


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
    """Frames per second of all processes together, from when the last is warm until the last is done."""
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
    """How much longer a video takes whose run saves every 60 frames, as a share. Groups of 60 frames are made, encoded and written in
    pairs, in turns with a snapshot and without."""
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
        # The resumed run saves again as soon as it has made a chunk and written it.
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
    """Planned bytes of the model, and of each stream. tests/test_memory.py compares the plan with what is allocated."""
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


STREAMS, CHUNKS, ROUNDS = 8, 5, 3
TARGET = "≥ 1.6, aim at 2.5"


def main() -> None:
    kinds: dict[str, tuple[str, Callable[[], float]]] = {
        "one engine": ("", lambda: engine(STREAMS, CHUNKS, False)),
        f"{STREAMS} processes of {cores()} threads, as they are by themselves": (TARGET, lambda: processes(STREAMS, CHUNKS, cores())),
        f"{STREAMS} processes held to 1 thread": (TARGET, lambda: processes(STREAMS, CHUNKS, 1)),
        "one engine, `batch_invariant`": ("", lambda: engine(STREAMS, CHUNKS, True)),
        "one stream alone": ("", lambda: engine(1, STREAMS * CHUNKS, False)),
    }
    rates = {name: np.zeros(ROUNDS) for name in kinds}
    for i in range(ROUNDS):
        for name, (_, run) in kinds.items():
            rates[name][i] = run()
            print(f"{rates[name][i]:6.1f} frames/s  {name}", flush=True)
    rows = [[f"{STREAMS} streams in one engine, frames a second", "", spread(rates["one engine"], 0)]]
    for name, (target, _) in list(kinds.items())[1:]:
        rows.append([f"{STREAMS} streams in one engine / {name}, frames a second", target, spread(rates["one engine"] / rates[name])])
    held = memory(STREAMS)
    share = {name: f"{100 * held[name] / held['model']:.1f} %" for name in ("rest", "decoder", "pages")}
    rows += [
        ["each further stream's memory beside its pages and the frames that its VAE carries, of the model's", "< 5 %", share["rest"]],
        ["its pages and the frames that its VAE carries, of the model's", "", f"{share['pages']} and {share['decoder']}"],
        ["time that a full snapshot every 60 frames takes, video written", "< 2 %", spread([100 * x for x in saving(60)], 1) + " %"],
        ["from `lolrt generate --resume` to the next chunk in the file", "< 3 s", spread([resuming() for _ in range(5)]) + " s"],
    ]
    machine = "\n".join(f"- {name}: {text}" for name, text in describe().items())
    text = (
        f"# Many streams, snapshots\n\nMade on {date.today()} by `python -m bench.many` on\n\n{machine}\n\n"
        "Streams of `tiny` whose windows are full, with their frames decoded, each kind in turns; medians, and quartiles of the rounds in "
        "parentheses. The engine and all processes have the same cores.\n\n" + table(["measure", "target", "measured"], rows) + "\n"
    )
    DOCUMENT.write_text(text)
    print(f"\n{text}\n{DOCUMENT}")


def spread(values: Sequence[float] | np.ndarray, digits: int = 2) -> str:
    low, middle, high = np.quantile(np.asarray(values), (0.25, 0.5, 0.75))
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


if __name__ == "__main__":
    main()
