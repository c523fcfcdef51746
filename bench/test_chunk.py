"""Where a chunk's time goes, and how its cost grows with the frames generated, the window and the threads."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

import lolrt
from bench import stages
from bench.conftest import BEST_ISA, QUICK_RUN
from bench.models import ONE_LAYER, embedded
from lolrt import _core
from lolrt.bench.machine import cores
from lolrt.cache import Window
from lolrt.stream import Stream
from lolrt.threads import set_threads
from lolrt.vae import CausalVAE, VAEConfig

pytestmark = pytest.mark.skipif(not BEST_ISA, reason="of the best kernels only")
BF16 = torch.bfloat16
FULL_WINDOW = Window().pages // Window().chunk_frames  # chunks
FRAMES = 300  # chunks of the stream that should stay as fast as it began
THREADS = sorted({1, cores()})


@pytest.fixture
def record(benchmark):
    """Times a callable, some seconds at most, and stores where it stands in a figure."""

    def run(call, rounds: int, **extra: object) -> None:
        benchmark.pedantic(call, rounds=rounds)
        benchmark.extra_info.update(isa=_core.isa(), **extra)

    return run


def tiny_stream(**options: object) -> Stream:
    pipe = embedded(BF16)
    return pipe.stream(pipe.example_prompts[0], **options)


@pytest.mark.parametrize("name", ["tiny"] if QUICK_RUN else ["tiny", "1.3B, one layer"])
def test_stages(name, benchmark, tmp_path):
    set_threads(cores())
    if name == "tiny":
        stream = tiny_stream()
        writer = lolrt.VideoWriter(tmp_path / "video.mp4", 64, 96, 16)
    else:
        dit, _ = ONE_LAYER.pair(BF16)
        stream = Stream(lolrt.LatentStream(dit, ONE_LAYER.prompt(), *ONE_LAYER.latent), CausalVAE(VAEConfig()).to(BF16))
        writer = lolrt.VideoWriter(tmp_path / "video.mp4", 480, 832, 16)
    rounds = 10 if name == "tiny" else 2
    list(islice(stream, FULL_WINDOW if name == "tiny" else 1))
    seconds: list[dict[str, float]] = []
    with writer:
        benchmark.pedantic(lambda: seconds.append(stages.of_chunk(stream, writer)), rounds=rounds)
    names = dict.fromkeys(stage for measured in seconds for stage in measured)
    benchmark.extra_info["stages"] = {stage: float(np.median([measured.get(stage, 0.0) for measured in seconds])) for stage in names}
    benchmark.extra_info.update(model=name, isa=_core.isa(), threads=cores())


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
