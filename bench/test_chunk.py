"""Where a chunk's time goes, and how its cost grows with the frames generated, the window and the threads."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

import lolrt
from bench import stages
from bench.conftest import BEST_ISA, QUICK_RUN
from bench.models import ONE_LAYER, embedded
from lolrt import _core
from lolrt.bench.machine import cores
from lolrt.engine.kv_window import Window
from lolrt.ops.threads import set_threads
from lolrt.session.stream import Stream

pytestmark = pytest.mark.skipif(not BEST_ISA, reason="of the best kernels only")
BF16 = torch.bfloat16
FULL_WINDOW = Window().pages // Window().chunk_frames  # chunks
FRAMES = 300  # chunks of the stream that should stay as fast as it began
THREADS = sorted({1, cores()})


@pytest.fixture
def record(benchmark):
    """Times a callable for at most a few seconds, and stores the result in a figure."""

    def run(call, rounds: int, **extra: object) -> None:
        benchmark.pedantic(call, rounds=rounds)
        benchmark.extra_info.update(isa=_core.isa(), **extra)

    return run


def tiny_stream(**options: Any) -> Stream:
    pipe = embedded(BF16)
    return pipe.stream(pipe.example_prompts[0], **options)


def record_stages(benchmark, model: str, chunk: Callable[[], object], rounds: int) -> None:
    set_threads(cores())
    measured: list[dict[str, float]] = []
    benchmark.pedantic(lambda: measured.append(stages.of(chunk)), rounds=rounds)
    names = dict.fromkeys(stage for seconds in measured for stage in seconds)
    medians = {name: float(np.median([seconds.get(name, 0.0) for seconds in measured])) for name in names}
    benchmark.extra_info.update(stages=medians, model=model, isa=_core.isa(), threads=cores())


def test_stages_from_noise_to_file(benchmark, tmp_path):
    pipe, stream = embedded(BF16), tiny_stream()
    list(islice(stream, FULL_WINDOW))
    with lolrt.VideoWriter(tmp_path / "video.mp4", pipe.height, pipe.width, pipe.fps) as writer:
        record_stages(benchmark, "tiny", lambda: writer.write(next(stream).frames), 10)


@pytest.mark.skipif(QUICK_RUN, reason="takes a minute")
def test_stages_of_one_layer(benchmark):
    dit, _ = ONE_LAYER.pair(BF16)
    stream = lolrt.LatentStream(dit, ONE_LAYER.prompt(), *ONE_LAYER.latent)
    list(islice(stream, FULL_WINDOW))
    record_stages(benchmark, f"{ONE_LAYER.name}, latents only", lambda: next(stream), 3)


@pytest.mark.skipif(QUICK_RUN, reason="takes a minute")
def test_growth_with_frames(benchmark):
    set_threads(cores())
    stream = tiny_stream()
    list(islice(stream, FULL_WINDOW))
    benchmark.pedantic(lambda: next(stream), rounds=FRAMES)
    seconds = benchmark.stats.stats.data
    group = FRAMES // 10
    first = (FULL_WINDOW + np.arange(10) * group) * Window().chunk_frames
    medians = np.median(np.reshape(seconds, (10, group)), axis=1)
    benchmark.extra_info.update(growth="frames", x=first.tolist(), seconds=medians.tolist(), isa=_core.isa(), threads=cores())


@pytest.mark.skipif(QUICK_RUN, reason="takes a minute")
@pytest.mark.parametrize("pages", [6, 12, 24, 48])
def test_growth_with_window(pages, record):
    set_threads(cores())
    window = Window(3, pages - 3)
    stream = embedded(BF16).latent_stream(embedded(BF16).example_prompts[0], window=window)
    list(islice(stream, pages // window.chunk_frames))
    record(lambda: next(stream), 15, growth="window", x=pages, threads=cores())


@pytest.mark.skipif(QUICK_RUN, reason="takes a minute")
@pytest.mark.parametrize("threads", THREADS)
def test_growth_with_threads(threads, record):
    set_threads(threads)
    stream = tiny_stream()
    list(islice(stream, FULL_WINDOW))
    record(lambda: next(stream), 15, growth="threads", x=threads, threads=threads)
