"""The command line: `lolrt generate`, `inspect`, `convert`, `synth`, `info`, `bench` and `lab`."""

from __future__ import annotations

import argparse
import csv
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from lolrt import __version__
from lolrt.cli.lab import add_commands as add_lab_commands
from lolrt.cli.options import HelpWithDefaults, frame_size, positive
from lolrt.errors import Error, OutputError
from lolrt.openmp import spin_briefly

if TYPE_CHECKING:
    import torch

    from lolrt.session.stream import Chunk

DEFAULT_SECONDS = 20.0
MODEL_HELP = "the name of an embedded model, or a folder, a file, or a .toml file with the parts of one"
RECACHE_HELP = "what of the past a new prompt of the script is applied to: the recent frames, the sinks as well, or nothing"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0, 2 after one line on standard error when the user can mend what went wrong, or 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    spin_briefly()
    try:
        check_kernels()
        arguments.run(arguments)
    except Error as error:
        print(f"lolrt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lolrt: interrupted", file=sys.stderr)
        return 130
    return 0


def check_kernels() -> None:
    import torch  # noqa: F401 - before the core, which then computes on torch's threads

    from lolrt import _core

    if _core.isa() == "none":
        raise Error(f"LOLRT_ISA is {os.environ['LOLRT_ISA']!r}; this build and CPU have {', '.join(_core.isas())}")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="lolrt", description="Endless video from streaming autoregressive diffusion models.")
    top.add_argument("--version", action="version", version=f"lolrt {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="write a video of a prompt", formatter_class=HelpWithDefaults)
    generate.set_defaults(run=run_generate)
    prompts = generate.add_mutually_exclusive_group(required=True)
    prompts.add_argument("prompt", metavar="PROMPT", nargs="?", help="what the video shows")
    prompts.add_argument("--script", metavar="FILE", help='prompts and when they begin: lines such as "0 a car" and "1:08.5 a boat"')
    generate.add_argument("-o", "--output", metavar="FILE", required=True, help="an .mp4 file, or - for standard output")
    generate.add_argument("--model", default="tiny", help=MODEL_HELP)
    length = generate.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=positive(float), help=f"length of the video ({DEFAULT_SECONDS:g} when no length is given)")
    length.add_argument("--frames", type=positive(int), help="length in video frames")
    length.add_argument("--endless", action="store_true", help="go on until Ctrl-C")
    generate.add_argument("--text", metavar="FILE", help="embeddings that lolrt encode wrote, instead of the model's text encoder")
    generate.add_argument("--recache", choices=["window", "sinks", "none"], default="window", help=RECACHE_HELP)
    generate.add_argument("--switch-chunks", type=positive(int), default=1, help="chunks over which the script's next prompt takes over")
    generate.add_argument("--start", metavar="FILE", help="an image or a video that the video begins with and goes on from")
    generate.add_argument("--seed", type=int, default=0, help="of the noise")
    generate.add_argument("--sigma", type=float, default=0.8, help="strength of the per-head RoPE jitter; 0 is plain RoPE")
    generate.add_argument("--jitter-seed", type=int, default=0, help="draws the jitter")
    generate.add_argument("--spread", choices=["uniform", "stratified"], default="uniform", help="how the jitter is drawn")
    generate.add_argument(
        "--scope", choices=["model", "layer"], default="model", help="whether layers share the heads' jitter or have their own"
    )
    generate.add_argument("--positions", choices=["absolute", "window", "anchored"], default="absolute", help="what RoPE counts")
    generate.add_argument("--anchor", type=int, default=20, help="frames that anchored sinks stay behind at most")
    generate.add_argument(
        "--frequencies", choices=["plain", "pi", "ntk", "yarn", "riflex"], default="plain", help="how RoPE's frequencies are stretched"
    )
    generate.add_argument("--stretch", type=float, default=1.0, help="by how many times --length")
    generate.add_argument("--length", type=int, default=132, help="latent frames that the model covers without stretching")
    generate.add_argument(
        "--sink-bias", type=float, default=0.0, help="added to the attention scores of sinks; --sink-bias=-inf shuts them out"
    )
    generate.add_argument("--gate", choices=["always", "realigned", "synchronised"], default="always", help="when --sink-bias is added")
    generate.add_argument("--head-share", type=float, default=0.8, help="of a layer's heads that a synchronised gate waits for")
    generate.add_argument("--sinks", type=int, default=3, help="sink frames in the window")
    generate.add_argument("--recent", type=int, default=9, help="recent frames in the window, the chunk's own included")
    _add_recall(generate)
    generate.add_argument("--probe", action="store_true", help="write each chunk's attention mass per page to FILE.mass.csv")
    _add_vae(generate)
    _add_kv(generate)
    generate.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu, cuda, or a GPU by its number, such as cuda:1")
    generate.add_argument("--threads", type=positive(int), help="CPU threads; by default all cores")

    inspect = commands.add_parser("inspect", help="what a checkpoint is, and what it lacks")
    inspect.set_defaults(run=run_inspect)
    inspect.add_argument("path", metavar="PATH", help="a folder, a file of weights, or a .toml file")

    convert = commands.add_parser(
        "convert", help="write any known checkpoint as one folder that loads fast", formatter_class=HelpWithDefaults
    )
    convert.set_defaults(run=run_convert)
    convert.add_argument("source", metavar="SRC", help="a folder, a file of weights, or a .toml file")
    convert.add_argument("destination", metavar="DST", help="a folder that is not there yet")
    convert.add_argument("--dtype", choices=["bfloat16", "float32"], help="of the weights; by default as they are")

    synth = commands.add_parser(
        "synth", help="write a model of any size with random weights, to try things with", formatter_class=HelpWithDefaults
    )
    synth.set_defaults(run=run_synth)
    synth.add_argument("destination", metavar="DIR", help="a folder that is not there yet")
    synth.add_argument("--config", default="1.3b", help="1.3b, small, or a JSON file such as Wan's config.json")
    synth.add_argument("--seed", type=int, default=0, help="of the weights")
    synth.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the weights")

    encode = commands.add_parser(
        "encode", help="write embeddings of prompts, for machines without the text encoder", formatter_class=HelpWithDefaults
    )
    encode.set_defaults(run=run_encode)
    encode.add_argument("prompts", metavar="PROMPT", nargs="*", help="prompts to encode")
    encode.add_argument("--script", metavar="FILE", help="a script whose prompts to encode as well")
    encode.add_argument("-o", "--output", metavar="FILE", required=True, help="a .safetensors file, for generate --text")
    encode.add_argument("--model", default="tiny", help=MODEL_HELP)

    info = commands.add_parser(
        "info",
        help="versions, CPU features, kernels, models; with --model, the memory that a stream of it takes",
        formatter_class=HelpWithDefaults,
    )
    info.set_defaults(run=run_info)
    info.add_argument("--model", help=MODEL_HELP)
    info.add_argument("--size", metavar="HxW", type=frame_size, help="of the video, such as 480x832; by default the model's own")
    info.add_argument("--sinks", type=int, default=3, help="sink frames in the window")
    info.add_argument("--recent", type=int, default=9, help="recent frames in the window, the chunk's own included")
    _add_recall(info)
    info.add_argument("--dtype", choices=["bfloat16", "float32"], help="of weights and activations; by default what the kernels prefer")
    info.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the model would run; cuda need not be there")
    _add_vae(info)
    _add_kv(info)

    bench = commands.add_parser("bench", help="how fast the ops are on this machine, side by side with torch")
    bench.set_defaults(run=run_bench)
    bench.add_argument("--quick", action="store_true", help="fewer cases and rounds, the best kernels only: about half a minute")
    bench.add_argument("--only", metavar="TEXT", default="", help='cases with this in their names, such as "kv_write" or "tiny"')

    add_lab_commands(commands.add_parser("lab", help="predict and measure sink-collapse, and compare policies against it"))
    return top


def _add_recall(command: argparse.ArgumentParser) -> None:
    command.add_argument("--recall", type=int, default=0, help="frames that have left the window and come back for each chunk")
    command.add_argument("--store", type=int, default=24, help="frames that are kept for --recall at most")


def _add_vae(command: argparse.ArgumentParser) -> None:
    command.add_argument("--vae", choices=["full", "tiny"], default="full", help="tiny: the model's TAEHV, fast and less exact")
    command.add_argument(
        "--vae-tile", metavar="PIXELS", type=positive(int), help="decode in tiles of this size: less working memory, not quite the same"
    )


def _add_kv(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--kv", choices=["full", "fp8"], default="full", help="of the KV cache's pages; fp8: 8 bits and scales, half the memory, on CUDA"
    )


def kv_dtype(arguments: argparse.Namespace) -> torch.dtype | None:
    import torch

    if arguments.kv == "fp8" and arguments.device == "cpu":
        raise Error("--kv fp8 goes with --device cuda: the CPU's kernels have no pages of 8 bits")
    return torch.float8_e4m3fn if arguments.kv == "fp8" else None


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
    if arguments.probe and arguments.output == "-":
        raise Error("--probe writes beside the video, so it needs a file: choose one with -o")
    with Interrupt() as interrupt:
        from tqdm import tqdm

        import lolrt
        from lolrt.media.reader import check_readable, read_frames
        from lolrt.media.writer import output_path
        from lolrt.ops.device import usable
        from lolrt.session.script import Cue, follow, read_script

        # A wrong name should not cost the minutes in which a large model encodes its prompts and is loaded.
        output_path(arguments.output)
        if arguments.start:
            check_readable(arguments.start)
        if arguments.threads:
            lolrt.set_threads(arguments.threads)
        device, pages = usable(arguments.device), kv_dtype(arguments)
        if not 0 <= arguments.seed < 2**64:
            raise Error("--seed must be in 0 .. 2^64 - 1")
        rope = lolrt.Rope(
            arguments.positions,
            arguments.sigma,
            arguments.jitter_seed,
            arguments.spread,
            arguments.scope,
            frequencies=arguments.frequencies,
            length_frames=arguments.length,
            stretch=arguments.stretch,
            anchor_frames=arguments.anchor,
        )
        gate = lolrt.SinkGate(arguments.sink_bias, arguments.gate, head_share=arguments.head_share)
        window = lolrt.Window(arguments.sinks, arguments.recent, gate=gate, recall_frames=arguments.recall, store_frames=arguments.store)
        cues = read_script(arguments.script) if arguments.script else [Cue(0, arguments.prompt)]
        text = lolrt.EmbeddingFile(arguments.text) if arguments.text else lolrt.load_text(arguments.model)
        text.encode([cue.prompt for cue in cues])  # all, before the rest of the model needs the memory, and an error can end a long run
        pipe = lolrt.load(arguments.model, vae=arguments.vae, vae_tile=arguments.vae_tile, text=text, device=device)
        start = pipe.encode_video(read_frames(arguments.start, pipe.height, pipe.width, pipe.fps)) if arguments.start else None
        stream = pipe.stream(cues[0].prompt, seed=arguments.seed, rope=rope, window=window, probe=True, start=start, kv_dtype=pages)
        chunks = follow(stream, cues[1:], pipe.fps, recache=arguments.recache, over_chunks=arguments.switch_chunks)
        if device.type == "cuda":
            chunks = one_ahead(chunks)
        written = 0  # the bar does not count where TQDM_DISABLE hides it
        total = None if arguments.endless else arguments.frames or round((arguments.seconds or DEFAULT_SECONDS) * pipe.fps) or 1

        with (
            lolrt.VideoWriter(arguments.output, pipe.height, pipe.width, pipe.fps) as writer,
            MassLog(Path(arguments.output).with_suffix(".mass.csv") if arguments.probe else None) as mass_log,
            tqdm(total=total, unit=" frames", dynamic_ncols=True, file=sys.stderr) as bar,
        ):
            for chunk in chunks:
                frames = chunk.frames if total is None else chunk.frames[: total - written]
                if chunk.switch is not None:
                    bar.write(f"{written / pipe.fps:.2f} s: {chunk.switch}", file=sys.stderr)
                writer.write(frames)
                mass_log.write(chunk)
                bar.set_postfix_str(f"sink mass {chunk.sink_mass:.3f}", refresh=False)
                bar.update(len(frames))
                written += len(frames)
                if written == total or interrupt.requested:
                    break
    if arguments.output != "-":
        print(f"{arguments.output}: {written} frames, {written / pipe.fps:.1f} s at {pipe.fps} frames/s")
        if arguments.probe:
            print(f"{mass_log.path}: attention mass per chunk, layer, head and page")


def one_ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks, each given when the next is queued: a GPU works on that one while this one is decoded and written."""
    chunk = next(chunks)
    for following in chunks:
        yield chunk
        chunk = following
    yield chunk


def run_encode(arguments: argparse.Namespace) -> None:
    from lolrt.pipeline import load_text
    from lolrt.session.script import read_script
    from lolrt.text.embeddings import write_embeddings

    prompts = [*arguments.prompts, *(cue.prompt for cue in (read_script(arguments.script) if arguments.script else []))]
    prompts = list(dict.fromkeys(prompts))
    if not prompts:
        raise Error("there is nothing to encode: give prompts, or a script with --script")
    rows = dict(zip(prompts, load_text(arguments.model).encode(prompts), strict=True))
    write_embeddings(arguments.output, rows)
    tokens, dim = sum(map(len, rows.values())), next(iter(rows.values())).shape[1]
    print(f"{arguments.output}: {len(rows)} prompts, {tokens} rows of {dim}")


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


def run_inspect(arguments: argparse.Namespace) -> None:
    from lolrt.checkpoint.inspect import inspect

    for line in inspect(arguments.path):
        print(line)


def run_convert(arguments: argparse.Namespace) -> None:
    import torch

    from lolrt.checkpoint.convert import convert

    print(convert(arguments.source, arguments.destination, getattr(torch, arguments.dtype) if arguments.dtype else None))


def run_synth(arguments: argparse.Namespace) -> None:
    import torch

    from lolrt.checkpoint.synth import synth

    print(synth(arguments.destination, arguments.config, arguments.seed, getattr(torch, arguments.dtype)))


def run_info(arguments: argparse.Namespace) -> None:
    if arguments.model is not None:
        print_memory(arguments)
        return
    import platform

    import av
    import torch

    from lolrt import _core
    from lolrt.bench.machine import cpu_features
    from lolrt.pipeline import embedded_models

    print(f"lolrt      {__version__} (core {_core.version()}, ABI {_core.abi_version()})")
    print(f"python     {platform.python_version()}, torch {torch.__version__}, PyAV {av.__version__}")
    print(f"cpu        {platform.machine()}, {os.cpu_count()} cores; {' '.join(cpu_features()) or 'features unknown'}")
    print(f"kernels    {_core.isa()} (this CPU can run: {', '.join(_core.isas())}; LOLRT_ISA chooses), {_core.threads()} threads")
    print(f"cuda       {cuda_device()}")
    print(f"models     {', '.join(embedded_models()) or 'none'}")


def cuda_device() -> str:
    """The GPU that models would run on, or why there is none."""
    import torch

    from lolrt.ops.device import usable

    try:
        return f"{(found := usable('cuda'))}, {torch.cuda.get_device_name(found)}"
    except Error as error:
        return str(error)


def print_memory(arguments: argparse.Namespace) -> None:
    """What a stream of a model will allocate."""
    import torch

    import lolrt
    from lolrt.checkpoint.inspect import size
    from lolrt.memory_plan import plan_model
    from lolrt.pipeline import preferred_dtype

    dtype = getattr(torch, arguments.dtype) if arguments.dtype else preferred_dtype(arguments.device)
    if arguments.device == "cuda" and dtype != torch.bfloat16:
        raise Error("on CUDA models run in bfloat16: ask for that, or for the memory on the CPU")
    window = lolrt.Window(arguments.sinks, arguments.recent, recall_frames=arguments.recall, store_frames=arguments.store)
    plan, (height, width) = plan_model(
        arguments.model, arguments.size, dtype, window, vae=arguments.vae, vae_tile=arguments.vae_tile, device=arguments.device,
        kv_dtype=kv_dtype(arguments),
    )  # fmt: skip
    print(
        f"{arguments.model}: a stream of {height} x {width} pixels, {str(dtype).removeprefix('torch.')}, window {arguments.sinks} + ",
        end="",
    )
    print(f"{arguments.recent}")
    tables = ("weights", plan.weights), ("stream", plan.stream), ("at most, in turn", plan.passing), ("before, if at all", plan.before)
    for title, rows in tables:
        for name, count in rows.items():
            if count:
                print(f"{title:19}{name:34}{size(count):>12}")
    beside = "what CUDA and its libraries take; predicted, not measured" if arguments.device == "cuda" else "the process itself"
    print(f"{'in all, at most':53}{size(plan.total):>12}, beside {beside}")


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
