"""The command line: `lolrt generate`, `lolrt info` and `lolrt bench`."""

from __future__ import annotations

import argparse
import csv
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lolrt.errors import Error, OutputError

if TYPE_CHECKING:
    from lolrt.stream import Chunk

DEFAULT_SECONDS = 20.0
CPU_FEATURES = ("fma", "f16c", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, or 2 after one line on standard error when the user can mend what went wrong."""
    arguments = parser().parse_args(argv)
    # Threads that wait in OpenMP sleep rather than spin: on a busy machine spinning ones keep those that have work from running.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        check_kernels()
        arguments.run(arguments)
    except Error as error:
        print(f"lolrt: {error}", file=sys.stderr)
        return 2
    return 0


def check_kernels() -> None:
    import torch  # noqa: F401 - before the core, which then computes on torch's threads

    from lolrt import _core

    if _core.isa() == "none":
        raise Error(f"LOLRT_ISA is {os.environ['LOLRT_ISA']!r}; this build and CPU have {', '.join(_core.isas())}")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="lolrt", description="Endless video from streaming autoregressive diffusion models.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="write a video of a prompt", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    generate.set_defaults(run=run_generate)
    generate.add_argument("prompt", metavar="PROMPT")
    generate.add_argument("-o", "--output", metavar="FILE", required=True, help="an .mp4 file, or - for standard output")
    generate.add_argument("--model", default="tiny", help="the name of an embedded model, or the path of a model folder")
    length = generate.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=positive(float), help=f"length of the video ({DEFAULT_SECONDS:g} when no length is given)")
    length.add_argument("--frames", type=positive(int), help="length in video frames")
    length.add_argument("--endless", action="store_true", help="go on until Ctrl-C")
    generate.add_argument("--seed", type=int, default=0, help="of the noise")
    generate.add_argument("--sigma", type=float, default=0.8, help="strength of the per-head RoPE jitter; 0 is plain RoPE")
    generate.add_argument("--jitter-seed", type=int, default=0, help="draws the jitter")
    generate.add_argument("--spread", choices=["uniform", "stratified"], default="uniform", help="how the jitter is drawn")
    generate.add_argument("--positions", choices=["absolute", "window"], default="absolute", help="what RoPE counts")
    generate.add_argument("--sinks", type=int, default=3, help="sink frames in the window")
    generate.add_argument("--recent", type=int, default=9, help="recent frames in the window, the chunk's own included")
    generate.add_argument("--probe", action="store_true", help="write each chunk's attention mass per page to FILE.mass.csv")
    generate.add_argument("--threads", type=positive(int), help="CPU threads; by default all cores")

    info = commands.add_parser("info", help="versions, CPU features, kernels, models")
    info.set_defaults(run=run_info)

    bench = commands.add_parser("bench", help="how fast the ops are on this machine, side by side with torch")
    bench.set_defaults(run=run_bench)
    bench.add_argument("--quick", action="store_true", help="fewer cases and rounds, the best kernels only: about half a minute")
    bench.add_argument("--only", metavar="TEXT", default="", help='cases with this in their names, such as "kv_write" or "tiny"')
    return top


def positive(kind: type) -> type:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not more than 0")
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse  # type: ignore[return-value]


class Interrupt:
    """Turns the first Ctrl-C (or SIGTERM) into a flag, so that a run ends between two chunks; the second one is a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interrupt:
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def run_generate(arguments: argparse.Namespace) -> None:
    # Checked before the slow imports: a wrong path should not cost seconds.
    if arguments.probe and arguments.output == "-":
        raise Error("--probe writes beside the video, so it needs a file: choose one with -o")
    with Interrupt() as interrupt:
        from tqdm import tqdm

        import lolrt

        if arguments.threads:
            lolrt.set_threads(arguments.threads)
        if not 0 <= arguments.seed < 2**64 or not 0 <= arguments.jitter_seed < 2**32:
            raise Error("--seed must be in 0 .. 2^64 - 1 and --jitter-seed in 0 .. 2^32 - 1")
        rope = lolrt.Rope(arguments.positions, arguments.sigma, arguments.jitter_seed, arguments.spread)
        window = lolrt.Window(arguments.sinks, arguments.recent)
        pipe = lolrt.load(arguments.model)
        stream = pipe.stream(arguments.prompt, seed=arguments.seed, rope=rope, window=window, probe=True)
        total = None if arguments.endless else arguments.frames or round((arguments.seconds or DEFAULT_SECONDS) * pipe.fps) or 1

        with (
            lolrt.VideoWriter(arguments.output, pipe.height, pipe.width, pipe.fps) as writer,
            MassLog(Path(arguments.output).with_suffix(".mass.csv") if arguments.probe else None) as mass_log,
            tqdm(total=total, unit=" frames", dynamic_ncols=True, file=sys.stderr) as bar,
        ):
            for chunk in stream:
                frames = chunk.frames if total is None else chunk.frames[: total - bar.n]
                writer.write(frames)
                mass_log.write(chunk)
                bar.set_postfix_str(f"sink mass {chunk.sink_mass:.3f}", refresh=False)
                bar.update(len(frames))
                if bar.n == total or interrupt.requested:
                    break
    if arguments.output != "-":
        print(f"{arguments.output}: {bar.n} frames, {bar.n / pipe.fps:.1f} s at {pipe.fps} frames/s")
        if arguments.probe:
            print(f"{mass_log.path}: attention mass per chunk, layer, head and page")


class MassLog:
    """Writes the attention mass of each chunk as it comes, a row per layer, head and page: mean over the chunk's frames."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __enter__(self) -> MassLog:
        self._file: TextIO | None = None
        if self.path is not None:
            try:
                self._file = open(self.path, "w", newline="")
            except OSError as error:
                raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
            self._rows = csv.writer(self._file)
            self._rows.writerow(["first_frame", "layer", "head", "page_frame", "mass"])
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, chunk: Chunk) -> None:
        if self._file is None or chunk.mass is None:
            return
        try:
            self._rows.writerows(self._chunk_rows(chunk))
        except OSError as error:
            raise OutputError(f"cannot go on writing {self.path}: {error.strerror}") from error

    @staticmethod
    def _chunk_rows(chunk: Chunk) -> Iterator[tuple[int, int, int, int, str]]:
        assert chunk.mass is not None
        for layer, heads in enumerate(chunk.mass.mean(2).tolist()):
            for head, pages in enumerate(heads):
                for frame, mass in zip(chunk.page_frames, pages, strict=False):
                    yield chunk.first_frame, layer, head, frame, f"{mass:.5f}"


def cpu_features() -> list[str]:
    """Those of the CPU's features that matter to the kernels here and in torch; empty where the system does not list them."""
    try:
        listed = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [feature for feature in CPU_FEATURES if feature in listed]


def run_info(_: argparse.Namespace) -> None:
    import platform

    import av
    import torch

    import lolrt
    from lolrt import _core
    from lolrt.pipeline import embedded_models

    print(f"lolrt      {lolrt.__version__} (core {_core.version()}, ABI {_core.abi_version()})")
    print(f"python     {platform.python_version()}, torch {torch.__version__}, PyAV {av.__version__}")
    print(f"cpu        {platform.machine()}, {os.cpu_count()} cores; {' '.join(cpu_features()) or 'features unknown'}")
    print(f"kernels    {_core.isa()} (this CPU can run: {', '.join(_core.isas())}; LOLRT_ISA chooses), {_core.threads()} threads")
    print("cuda       not built: this version's kernels are for CPUs")
    print(f"models     {', '.join(embedded_models()) or 'none'}")


def run_bench(arguments: argparse.Namespace) -> None:
    """A table for each kernel set, from a process of its own: torch's libraries choose their instructions when they are loaded."""
    import subprocess

    from lolrt.bench.cases import CASES
    from lolrt.bench.machine import cores, environment, isas
    from lolrt.bench.run import selected

    if not selected(CASES, quick=arguments.quick, threads=cores(), best_isa=True, only=arguments.only):
        names = dict.fromkeys(case.name for case in CASES if case.quick or not arguments.quick)
        raise Error(f"no case has {arguments.only!r} in its name; there are {', '.join(names)}")
    for isa in isas()[:1] if arguments.quick else isas():
        command = [sys.executable, "-m", "lolrt.bench", f"--only={arguments.only}", *(["--quick"] if arguments.quick else [])]
        done = subprocess.run(command, env={**os.environ, **environment(isa)})
        if done.returncode:
            raise Error(f"the benchmark of the {isa} kernels ended with status {done.returncode}")
