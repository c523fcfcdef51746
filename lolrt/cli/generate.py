"""`lolrt generate`: a video of a prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lolrt.cli.interrupt import Interrupt
from lolrt.cli.mass_log import MassLog
from lolrt.cli.options import MODEL_HELP, Commands, HelpWithDefaults, add_fields, add_kv, add_vae, field_values, kv_dtype, positive
from lolrt.errors import Error

if TYPE_CHECKING:
    from lolrt.session.stream import Chunk

DEFAULT_SECONDS = 20.0
RECACHE_HELP = "what of the past a new prompt of the script is applied to: the recent frames, the sinks as well, or nothing"


def add_command(commands: Commands) -> None:
    generate = commands.add_parser("generate", help="write a video of a prompt", formatter_class=HelpWithDefaults)
    generate.set_defaults(run=run)
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
    generate.add_argument("--probe", action="store_true", help="write each chunk's attention mass per page to FILE.mass.csv")
    add_vae(generate)
    add_kv(generate)
    generate.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu, cuda, or a GPU by its number, such as cuda:1")
    generate.add_argument("--threads", type=positive(int), help="CPU threads; by default all cores")
    add_fields(generate.add_argument_group("positions"), "Rope")
    add_fields(generate.add_argument_group("window"), "Window")
    add_fields(generate.add_argument_group("sink gate"), "SinkGate")
    add_fields(generate.add_argument_group("sampler", "by default as the model says"), "Sampler", defaults=False)


def run(arguments: argparse.Namespace) -> None:
    if arguments.probe and arguments.output == "-":
        raise Error("--probe writes beside the video, so it needs a file: choose one with -o")
    with Interrupt() as interrupt:
        from dataclasses import replace

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
        rope = lolrt.Rope(**field_values(arguments, "Rope"))
        window = lolrt.Window(**field_values(arguments, "Window"), gate=lolrt.SinkGate(**field_values(arguments, "SinkGate")))
        cues = read_script(arguments.script) if arguments.script else [Cue(0, arguments.prompt)]
        text = lolrt.EmbeddingFile(arguments.text) if arguments.text else lolrt.load_text(arguments.model)
        text.encode([cue.prompt for cue in cues])  # all, before the rest of the model needs the memory, and an error can end a long run
        pipe = lolrt.load(arguments.model, vae=arguments.vae, vae_tile=arguments.vae_tile, text=text, device=device)
        start = pipe.encode_video(read_frames(arguments.start, pipe.height, pipe.width, pipe.fps)) if arguments.start else None
        sampler = replace(pipe.sampler, **field_values(arguments, "Sampler"))
        stream = pipe.stream(
            cues[0].prompt, seed=arguments.seed, rope=rope, window=window, sampler=sampler, probe=True, start=start, kv_dtype=pages
        )
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
