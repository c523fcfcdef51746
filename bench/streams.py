"""The figures of docs/streams.md: `python -m bench.streams [switches] [memory] [decoders]`; without arguments all of them, which takes
minutes.

switches: how long a new prompt takes to show in a stream of the embedded model, for each choice of what is re-cached. memory: what VAE
and TAEHV allocate at 480 x 832, computed, and how far the process of a decoding stream really grows. decoders: TAEHV side by side with
Wan's VAE.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import lolrt
from lolrt.bench.machine import describe
from lolrt.engine.kv_window import Window
from lolrt.memory_plan import codec_memory
from lolrt.models.vae.codec import Codec, State
from lolrt.models.vae.taehv import TAEHV, TAEHVConfig
from lolrt.session.prompt_switch import RECACHES

ROUNDS = 5
MIB = 1 << 20
SIZE = 480, 832
LATENT = 15, 26  # of the comparison of decoders: 120 x 208 pixels
PROMPTS = "a red balloon over the hills at noon", "a red balloon over the hills at night"


def main() -> None:
    figures: dict[str, Callable[[], Iterator[str]]] = {"switches": switches, "memory": memory, "decoders": decoders}
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description="Measures the figures of docs/streams.md.")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"some of {', '.join(figures)} (default: all)")
    chosen = parser.parse_args().figures or list(figures)
    if unknown := set(chosen) - set(figures):
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(figures)}")
    machine = describe()
    print(f"{machine['cpu']}; kernels {machine['kernels']}; {machine['versions']}; {torch.get_num_threads()} threads.", flush=True)
    for name in chosen:
        print()
        for line in figures[name]():
            print(line, flush=True)


def spread(values: list[float], digits: int = 0) -> str:
    """The median, with the least and the most in brackets."""
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def switches() -> Iterator[str]:
    """A chunk without a switch, and one with each kind of switch, in turns; frames are decoded."""
    stream = lolrt.load("tiny").stream(PROMPTS[0])
    window, prompts = Window(), itertools.cycle(reversed(PROMPTS))
    for chunk in itertools.islice(stream, window.pages // window.chunk_frames + 1):
        chunk.frames  # noqa: B018 - waits until they are there
    plain: list[float] = []
    total: defaultdict[str, list[float]] = defaultdict(list)
    recaching: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        next(stream).frames  # noqa: B018
        plain.append(1e3 * (time.perf_counter() - begin))
        for recache in RECACHES:
            stream.set_prompt(next(prompts), recache=recache)
            switch = next(stream).switch
            assert switch is not None
            total[recache].append(switch.total_ms)
            recaching[recache].append(switch.recache_ms)
    yield f"`tiny`, {ROUNDS} switches of each kind in turns in one process, ms: median (range)."
    yield ""
    yield "| chunk | in all | of it to re-cache |"
    yield "|---|---|---|"
    yield f"| without a switch | {spread(plain)} | |"
    for recache in RECACHES:
        yield f"| after `{recache}` | {spread(total[recache])} | {spread(recaching[recache])} |"


def memory() -> Iterator[str]:
    """Bytes of tensors, one latent frame at a time; and the growth of a process."""
    height, width = SIZE
    rows = {
        "Wan VAE, decoding": codec_memory(lolrt.VAEConfig(), height, width),
        "Wan VAE, encoding": codec_memory(lolrt.VAEConfig(), height, width, encoding=True),
        "the same, decoding in tiles of 256 pixels": codec_memory(lolrt.VAEConfig(), height, width, tile=256),
        "TAEHV, decoding": codec_memory(TAEHVConfig(), height, width),
        "TAEHV, encoding": codec_memory(TAEHVConfig(), height, width, encoding=True),
    }
    yield f"| at {height} x {width} in bfloat16, MiB | carried by the stream | beside it, at most | together |"
    yield "|---|---|---|---|"
    for name, bytes_ in rows.items():
        yield f"| {name} | {bytes_.carried / MIB:.0f} | {bytes_.transient / MIB:.0f} | {(bytes_.carried + bytes_.transient) / MIB:.0f} |"
    yield ""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        growth, seconds = alone.submit(decode_alone).result()
    yield (
        f"The process of a decoding stream peaked at {growth / MIB:.0f} MiB above what it held with the weights loaded; "
        f"a latent frame took {seconds:.1f} s."
    )


def decode_alone() -> tuple[int, float]:
    """Decodes three latent frames by Wan's VAE in a separate process: the most bytes by which it grew, and the seconds of the last
    frame."""
    vae = lolrt.CausalVAE(lolrt.VAEConfig()).requires_grad_(False).bfloat16()
    vae.decode(torch.randn(1, 16, 2, 2), {})  # loads libraries and lays out the weights
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, state = resident("VmRSS"), State()
    for _ in range(3):
        begin = time.perf_counter()
        vae.decode(torch.randn(1, 16, SIZE[0] // 8, SIZE[1] // 8), state)
    return resident("VmHWM") - before, time.perf_counter() - begin


def resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most (VmHWM)."""
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))


def decoders() -> Iterator[str]:
    """Random weights: the time does not depend on their values."""
    vae, taehv = lolrt.CausalVAE(lolrt.VAEConfig()), TAEHV(TAEHVConfig())
    codecs: list[Codec] = [vae.requires_grad_(False).bfloat16(), taehv.requires_grad_(False).bfloat16()]
    states: list[State] = [{}, {}]
    latent = torch.randn(1, 16, *LATENT)

    def seconds(i: int) -> float:
        begin = time.perf_counter()
        codecs[i].decode(latent, states[i])
        return time.perf_counter() - begin

    for i in (0, 1, 0, 1):  # the first frame is special, and the second is the first ordinary one
        seconds(i)
    full, tiny = np.array([[seconds(0), seconds(1)] for _ in range(ROUNDS)]).T
    yield (
        f"At a latent size of {LATENT[0]} x {LATENT[1]} in bfloat16 TAEHV decoded {spread(list(full / tiny), 1)} times as fast as the "
        f"Wan VAE ({spread(list(1e3 * tiny))} and {spread(list(1e3 * full))} ms a latent frame), {ROUNDS} times in turns."
    )


if __name__ == "__main__":
    main()
