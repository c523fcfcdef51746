"""`lolrt generate`: a video of a prompt."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lolrt.cli.interrupt import Interrupt, Stopped
from lolrt.cli.mass_log import MassLog
from lolrt.cli.options import (
    MODEL_HELP,
    Commands,
    HelpWithDefaults,
    add_fields,
    add_kv,
    add_lora,
    add_vae,
    add_weights,
    field_values,
    kv_dtype,
    positive,
)
from lolrt.cli.without_effect import without_effect
from lolrt.errors import Error
from lolrt.files import remove_partials
from lolrt.media import CRF

if TYPE_CHECKING:
    import torch

    from lolrt.engine.kv_window import Window
    from lolrt.pipeline import Pipeline
    from lolrt.session.stream import Chunk

DEFAULT_SECONDS = 20.0
OUTPUT_HELP = "an .mp4 file; an .m3u8 playlist, for HLS; - for standard output; or an address of udp, rtmp or srt, where video goes live"
RECACHE_HELP = "what of the past a new prompt of the script is applied to: the recent frames, the sinks as well, or nothing"


def add_command(commands: Commands) -> None:
    generate = commands.add_parser("generate", help="write a video of a prompt", formatter_class=HelpWithDefaults)
    generate.set_defaults(run=run, command=generate)
    prompts = generate.add_mutually_exclusive_group()
    prompts.add_argument("prompt", metavar="PROMPT", nargs="?", help="what the video shows")
    prompts.add_argument("--script", metavar="FILE", help='prompts and when they begin: lines such as "0 a car" and "1:08.5 a boat"')
    prompts.add_argument("--resume", metavar="SNAPSHOT", help="go on with the video of an earlier run with --save-every")
    generate.add_argument("-o", "--output", metavar="FILE", help=OUTPUT_HELP)
    generate.add_argument("--dvr", metavar="SECONDS", type=positive(float), help="keep so much of an .m3u8's video; by default all of it")
    generate.add_argument("--no-overwrite", action="store_true", help="refuse an output that is there already")
    generate.add_argument("--crf", type=int, choices=range(1, 52), metavar="1..51", default=CRF, help="loss of the video: 1 is the least")
    generate.add_argument("--quiet", action="store_true", help="say nothing but errors")
    generate.add_argument("--json", action="store_true", help="say what was written as a line of JSON")
    generate.add_argument(
        "--save-every", metavar="FRAMES", type=positive(int), help="save a snapshot beside the video every so many frames, for --resume"
    )
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
    add_weights(generate)
    add_lora(generate)
    add_vae(generate)
    add_kv(generate)
    generate.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu, cuda, or a GPU by its number, such as cuda:1")
    generate.add_argument("--threads", type=positive(int), help="CPU threads; by default all cores")
    add_fields(generate.add_argument_group("positions", "by default as the model says"), "Rope", defaults=False)
    add_fields(generate.add_argument_group("window"), "Window")
    generate.set_defaults(chunk_frames=None)  # the model's own
    add_fields(generate.add_argument_group("sink gate"), "SinkGate")
    add_fields(generate.add_argument_group("sampler", "by default as the model says"), "Sampler", defaults=False)


def run(arguments: argparse.Namespace) -> None:
    from dataclasses import asdict, replace
    from itertools import islice

    from tqdm import tqdm

    import lolrt
    from lolrt.checkpoint.load import check_lora
    from lolrt.checkpoint.recipes import sampling
    from lolrt.media.destination import Position
    from lolrt.media.output import check_output, open_output
    from lolrt.media.reader import check_readable, read_frames
    from lolrt.ops.device import usable
    from lolrt.pipeline import files_of
    from lolrt.session.config import to_plain
    from lolrt.session.saver import Saver
    from lolrt.session.script import Cue, follow, read_script

    resumed = resumed_run(arguments) if arguments.resume else None
    if resumed is None and (arguments.output is None or not (arguments.prompt or arguments.script)):
        raise Error("expected a prompt (or --script) and an output file (-o), or --resume SNAPSHOT")
    # A wrong name should not cost the minutes in which a large model encodes its prompts and is loaded.
    path = check_output(arguments.output, arguments.dvr)
    for option in ("probe", "save_every"):
        if getattr(arguments, option) and path is None:
            raise Error(f"--{option.replace('_', '-')} writes beside the video, so it needs a file: choose one with -o")
    if arguments.json and arguments.output == "-":
        raise Error("--json goes to standard output, where the video is to go: choose a file with -o")
    if arguments.no_overwrite and resumed is None and path is not None and path.exists():
        raise Error(f"{path} is there already: choose another name with -o, or leave --no-overwrite out")
    if arguments.start and resumed is None:
        check_readable(arguments.start)
    if arguments.threads:
        lolrt.set_threads(arguments.threads)
    device, pages = usable(arguments.device), kv_dtype(arguments)
    if not 0 <= arguments.seed < 2**64:
        raise Error("--seed must be in 0 .. 2^64 - 1")
    if resumed is not None:
        cues = [Cue(*cue) for cue in resumed.cues]
    else:
        cues = read_script(arguments.script) if arguments.script else [Cue(0, arguments.prompt)]
    needed = {"dit", "vae" if arguments.vae == "full" else "taehv", *([] if arguments.text else ["text_encoder"])}
    files = files_of(arguments.model, needed, arguments.weights)
    check_lora(files, arguments.lora)
    text = lolrt.EmbeddingFile(arguments.text) if arguments.text else lolrt.load_text(files)
    text.encode([cue.prompt for cue in cues])  # all, before the rest of the model needs the memory, and an error can end a long run
    pipe = lolrt.load(files, vae=arguments.vae, vae_tile=arguments.vae_tile, text=text, lora=arguments.lora, device=device)
    total = None if arguments.endless else arguments.frames or round((arguments.seconds or DEFAULT_SECONDS) * pipe.fps) or 1
    shown: dict[str, Any] = {"dynamic_ncols": True, "file": sys.stderr} | ({"disable": True} if arguments.quiet else {})
    notes = []
    if total is not None and (late := [cue for cue in cues if cue.seconds * pipe.fps >= total]):
        notes.append(f"{len(late)} of the script's {len(cues)} prompts come after the video's end, the first at {late[0].seconds} s")
    if resumed is None:
        start = None
        if arguments.start:
            # No more than is asked for, in whole latent frames; a start is often longer.
            factor = pipe.vae.config.temporal_factor
            wanted = None if total is None else 1 + -(-(total - 1) // factor) * factor
            given = islice(read_frames(arguments.start, pipe.height, pipe.width, pipe.fps), wanted)
            start = pipe.encode_video(tqdm(given, "reading the start", unit=" frames", leave=False, **shown))
        rope = replace(pipe.rope, **field_values(arguments, "Rope"))
        window = replace(pipe.window, **field_values(arguments, "Window"), gate=lolrt.SinkGate(**field_values(arguments, "SinkGate")))
        check_memory(pipe, window, pages)
        notes += without_effect(given_options(arguments).keys(), rope, window)
        sampler = replace(pipe.sampler, **field_values(arguments, "Sampler"))
        said = {"chunk_frames", "sampler"} & files.settings.keys()
        if not {"chunk_frames", "timesteps"} & given_options(arguments).keys() and (files.recipe or not said):
            notes.append(f"sampled with {sampling(files.settings, files.recipe)}")
        stream = pipe.stream(
            cues[0].prompt, seed=arguments.seed, rope=rope, window=window, sampler=sampler, probe=True, start=start, kv_dtype=pages
        )
    else:
        stream = pipe.resume(arguments.resume)
    if not arguments.quiet:
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    position = Position(**resumed.position) if resumed else None
    written = position.frames if position else 0  # the bar does not count where TQDM_DISABLE hides it
    if total is not None and written >= total:
        raise Error(f"{arguments.resume} is at frame {written} of {total} already: ask for more with --frames or --seconds")
    coming = [cue for cue in cues[1:] if resumed is None or cue.seconds * pipe.fps > resumed.last_chunk]
    chunks = follow(stream, coming, pipe.fps, recache=arguments.recache, over_chunks=arguments.switch_chunks, frames=written)
    if device.type == "cuda" and not arguments.save_every:  # a snapshot is of what has been written
        chunks = one_ahead(chunks)
    if arguments.dvr and arguments.save_every and arguments.save_every > arguments.dvr * pipe.fps:
        raise Error(f"--save-every {arguments.save_every} is longer than the {arguments.dvr:g} s that --dvr keeps: save more often")
    snapshot = Path(arguments.resume or snapshot_path(arguments.output))
    saved = written
    size = pipe.height, pipe.width, pipe.fps

    with (
        Interrupt() as interrupt,
        Saver() as saver,
        open_output(arguments.output, *size, crf=arguments.crf, resume=position, dvr_seconds=arguments.dvr) as writer,
        MassLog(
            Path(arguments.output).with_suffix(".mass.csv") if arguments.probe else None, resumed.mass_bytes if resumed else 0
        ) as mass_log,
        tqdm(total=total, initial=written, unit=" frames", **shown) as bar,
    ):
        if arguments.save_every:
            remove_partials(snapshot)  # of a run that was killed while it saved
        if resumed is None and path is not None:
            snapshot.unlink(missing_ok=True)  # an earlier run's, of a video that is now overwritten
        for chunk in chunks:
            frames = chunk.frames if total is None else chunk.frames[: total - written]
            if chunk.switch is not None and not arguments.quiet:
                bar.write(f"{written / pipe.fps:.2f} s: {chunk.switch}", file=sys.stderr)
            writer.write(frames)
            mass_log.write(chunk)
            if len(chunk.page_frames) >= stream.latent_stream.window.pages:  # until then sinks are most of what there is
                bar.set_postfix_str(f"sink mass {chunk.sink_mass:.3f}", refresh=False)
            bar.update(len(frames))
            last_chunk, written = written, written + len(frames)
            if written == total:
                break
            due = arguments.save_every and (written - saved >= arguments.save_every or interrupt.requested)
            if due and isinstance(writer, lolrt.VideoWriter):
                plain = {name: to_plain(value) for name, value in vars(arguments).items() if name in recorded(arguments)}
                cut, mass_bytes = asdict(writer.cut()), mass_log.size()
                run = Run(plain, [list(asdict(cue).values()) for cue in cues], cut, last_chunk, mass_bytes)
                stream.save(snapshot, run=asdict(run), saver=saver)
                saved = written
            if interrupt.requested and total is None:
                break
            if interrupt.requested:
                saver.wait()
                where = [f"{writer.partial_path} holds them"] if writer.partial_path else []
                where += [f"go on with lolrt generate --resume {snapshot}"] if arguments.save_every else []
                raise Stopped(interrupt.requested, "; ".join([f"stopped after {written} of {total} frames", *where]))
    if arguments.save_every and written == total:
        snapshot.unlink(missing_ok=True)  # there is nothing left to go on with
    unfinished = bool(arguments.save_every) and written != total
    if arguments.json:
        made = {"output": arguments.output, "frames": written, "fps": pipe.fps, "seconds": written / pipe.fps}
        made |= {"mass_log": str(mass_log.path)} if arguments.probe else {}
        print(json.dumps(made | ({"snapshot": str(snapshot)} if unfinished else {})))
    elif arguments.output != "-" and not arguments.quiet:
        print(f"{arguments.output}: {written} frames, {written / pipe.fps:.1f} s at {pipe.fps} frames/s")
        if arguments.probe:
            print(f"{mass_log.path}: attention mass per chunk, layer, head and page")
        if unfinished:
            print(f"{snapshot}: go on with lolrt generate --resume {snapshot}")


@dataclass(frozen=True)
class Run:
    """What a snapshot knows of the run that saved it."""

    arguments: dict[str, Any]
    cues: list[list[Any]]
    """Seconds and prompt of each."""
    position: dict[str, int]
    """`lolrt.media.writer.Position` of the video."""
    last_chunk: int
    """Video frame that the newest chunk began at."""
    mass_bytes: int
    """Size of the file of attention mass."""


# Options that may be given anew when a run goes on; all others are those of the run that is gone on with.
FREE = {"resume", "seconds", "frames", "endless", "save_every", "threads", "quiet", "json", "no_overwrite"}


def snapshot_path(output: str) -> Path:
    """Beside the video."""
    return Path(output).with_suffix(".snapshot.safetensors")


def recorded(arguments: argparse.Namespace) -> set[str]:
    """Names of the options that a snapshot keeps."""
    return {action.dest for action in arguments.command._actions} - {"help", "resume", "threads", "quiet", "json", "no_overwrite"}


def resumed_run(arguments: argparse.Namespace) -> Run:
    """The run that a snapshot goes on with; `arguments` get its options. Raises `lolrt.Error` where others are asked for."""
    from lolrt.session.config import to_plain
    from lolrt.session.snapshot import Snapshot

    try:
        found = Run(**Snapshot.read(arguments.resume).run)
    except TypeError:  # it has no run, or another program's
        told = f"{arguments.resume} was not saved by lolrt generate; go on with it in Python: pipe.resume({arguments.resume!r})"
        raise Error(told) from None
    given = given_options(arguments)
    differ = [
        f"{name} is {found.arguments.get(name)} in the snapshot and {to_plain(value)} here"
        for name, value in given.items()
        if name not in FREE and to_plain(value) != found.arguments.get(name)
    ]
    if differ:
        raise Error(f"{arguments.resume} is of another run: {'; '.join(differ)}; leave these options out, or begin a new video")
    length = given.keys() & {"seconds", "frames", "endless"}
    for name, value in found.arguments.items():
        if name not in given and not (length and name in ("seconds", "frames", "endless")):
            setattr(arguments, name, value)
    return found


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that stand on the command line, by name."""
    absent = object()
    names = {action.dest for action in arguments.command._actions if action.dest != "help"}
    blank = argparse.Namespace(**{**dict.fromkeys(names, absent), "lora": None})  # which is added to
    parsed = arguments.command.parse_args(arguments.argv[arguments.argv.index("generate") + 1 :], blank)
    return {name: value for name, value in vars(parsed).items() if name in names and value is not absent and value is not None}


def check_memory(pipe: Pipeline, window: Window, kv_dtype: torch.dtype | None) -> None:
    """Raises `lolrt.Error` where the pages of a stream are more than the machine's memory, or the GPU's."""
    import torch

    from lolrt import ops
    from lolrt.engine.page_pool import page_dtype

    config, device = pipe.dit.config, pipe.dit.device
    dtype = page_dtype(kv_dtype, pipe.dit.dtype, config.head_dim, device)
    tokens = pipe.dit.tokens_per_frame(*pipe.latent_size)
    page = config.num_layers * ops.page_elements(dtype, tokens, config.num_heads, config.head_dim, device) * dtype.itemsize
    on_cuda = device.type == "cuda"
    there = torch.cuda.mem_get_info(device)[1] if on_cuda else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if window.pool_pages * page > there:
        needed, has = window.pool_pages * page / 2**30, there / 2**30
        raise Error(
            f"the {window.pool_pages} frames of the window and the memory bank take {needed:.1f} GiB, and {device.type} has {has:.1f}; "
            "take fewer with --sinks, --recent or --store"
        )


def one_ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The same chunks, each given when the next is queued: a GPU works on that one while this one is decoded and written."""
    chunk = next(chunks)
    for following in chunks:
        yield chunk
        chunk = following
    yield chunk
