"""`lolrt generate`: makes videos from prompts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lolrt.cli.options import (
    MODEL_HELP,
    Commands,
    HelpWithDefaults,
    add_fields,
    add_kv,
    add_linear,
    add_lora,
    add_vae,
    add_weights,
    field_values,
    kv_dtype,
    positive,
)
from lolrt.cli.progress import KINDS, bar, note
from lolrt.cli.resumed import beside, given_options, resumed_run
from lolrt.cli.video import Video, report, write
from lolrt.cli.without_effect import without_effect
from lolrt.errors import Error
from lolrt.fields import integers
from lolrt.files import LeftOverError
from lolrt.media import CRF

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lolrt.checkpoint import ModelFiles
    from lolrt.engine.kv_window import Window
    from lolrt.pipeline import Pipeline
    from lolrt.session.stream import Stream
    from lolrt.text.encoder import TextEncoder

DEFAULT_SECONDS = 20.0
OUTPUT_HELP = (
    "an .mp4, .mkv, .webm or .gif file; an .m3u8 playlist, for HLS; PNG files, such as frames/%%05d.png; - for standard output; or an "
    "address of udp, rtmp or srt, where video goes live"
)
START_HELP = "an image, a video, or latents of --latents, that the video begins with and goes on from"
RECACHE_HELP = "what of the past a new prompt of the script is applied to: the recent frames, the sinks as well, or nothing"


def add_command(commands: Commands) -> None:
    generate = commands.add_parser("generate", help="write a video of a prompt, or of several", formatter_class=HelpWithDefaults)
    generate.set_defaults(run=run, command=generate)
    prompts = generate.add_mutually_exclusive_group()
    prompts.add_argument(
        "prompts", metavar="PROMPT", nargs="*", default=[], help="what the video shows; of several, each has its own video"
    )
    prompts.add_argument("--script", metavar="FILE", help='prompts and when they begin: lines such as "0 a car" and "1:08.5 a boat"')
    prompts.add_argument("--resume", metavar="SNAPSHOT", help="go on with the video of an earlier run with --save-every")
    generate.add_argument("-o", "--output", metavar="FILE", help=OUTPUT_HELP)
    generate.add_argument("--dvr", metavar="SECONDS", type=positive(float), help="keep so much of an .m3u8's video; by default all of it")
    generate.add_argument("--no-overwrite", action="store_true", help="refuse an output that is there already")
    generate.add_argument("--crf", type=int, choices=range(1, 52), metavar="1..51", default=CRF, help="loss of the video: 1 is the least")
    said = generate.add_mutually_exclusive_group()
    said.add_argument("--quiet", action="store_true", help="say nothing but errors")
    said.add_argument("--progress", choices=KINDS, default="bar", help="on standard error; json: a line of JSON after each pass and chunk")
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
    generate.add_argument("--start", metavar="FILE", help=START_HELP)
    generate.add_argument("--seed", type=integers, default="0", help="of the noise; several, such as 0:1:2, make a video each")
    generate.add_argument("--probe", action="store_true", help="write each chunk's attention mass per page to FILE.mass.csv")
    generate.add_argument("--latents", action="store_true", help="write the latents to FILE.latents.safetensors, for --start")
    add_weights(generate)
    add_lora(generate)
    add_vae(generate)
    add_kv(generate)
    add_linear(generate)
    generate.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu, cuda, or a GPU by its number, such as cuda:1")
    generate.add_argument("--threads", type=positive(int), help="CPU threads; by default all cores")
    add_fields(generate.add_argument_group("positions", "by default as the model says"), "Rope", defaults=False)
    add_fields(generate.add_argument_group("window"), "Window")
    generate.set_defaults(chunk_frames=None)  # the model's own
    add_fields(generate.add_argument_group("sink gate"), "SinkGate")
    add_fields(generate.add_argument_group("sampler", "by default as the model says"), "Sampler", defaults=False)


def run(arguments: argparse.Namespace) -> None:
    import lolrt

    # Check the name first: a large model takes minutes to encode its prompts and to load.
    videos = videos_of(arguments)
    if arguments.threads:
        lolrt.set_threads(arguments.threads)
    files, pipe = load(arguments, [cue.prompt for video in videos for cue in video.cues])
    total = None if arguments.endless else arguments.frames or round((arguments.seconds or DEFAULT_SECONDS) * pipe.fps) or 1
    start = read_start(arguments, pipe, total) if arguments.start and not arguments.resume else None
    for video in videos:
        stream, notes = (pipe.resume(arguments.resume), []) if video.resumed else begin(video, pipe, files, start)
        for text in [*late_prompts(video, pipe, total), *notes] if video is videos[0] else []:
            note(arguments, text)
        written = write(video, pipe, stream, total)
        del stream  # frees its pages before the next stream takes its own
        report(video, written, written != total, pipe.fps)


def videos_of(arguments: argparse.Namespace) -> list[Video]:
    """The requested videos, with their names. Raises `lolrt.Error` for errors that can be found without a model."""
    from lolrt.media.writer import goes_on
    from lolrt.session.script import Cue, read_script

    resumed = resumed_run(arguments) if arguments.resume else None
    if resumed is None and (arguments.output is None or not (arguments.prompts or arguments.script)):
        raise Error("expected a prompt (or --script) and an output file (-o), or --resume SNAPSHOT")
    if not all(0 <= seed < 2**64 for seed in arguments.seed):
        raise Error("--seed must be in 0 .. 2^64 - 1")
    several = len(arguments.prompts) > 1 or len(arguments.seed) > 1
    if several and arguments.endless:
        raise Error("--endless makes one video, which never ends: give one prompt and one seed, or a length")
    videos = []
    for number, prompt in enumerate(arguments.prompts or [None], 1):
        for seed in arguments.seed:
            own = [f"-{number}"] * (len(arguments.prompts) > 1) + [f"-seed{seed}"] * (len(arguments.seed) > 1)
            options = argparse.Namespace(**vars(arguments) | {"prompts": [prompt] if prompt else [], "seed": (seed,)})
            options.output = numbered(arguments.output, "".join(own))
            if resumed:
                cues = [Cue(*cue) for cue in resumed.cues]
            else:
                cues = read_script(arguments.script) if arguments.script else [Cue(0, prompt)]
            videos.append(Video(options, cues, resumed, path_of(options, resumed is not None)))
    for video in videos:
        check_files(video, several)
    if arguments.save_every and not goes_on(videos[0].path):
        raise Error("--save-every is for an .mp4 or .m3u8, the videos that a run can go on with: choose such a name with -o")
    if arguments.start and resumed is None:
        check_start(arguments.start)
    return videos


def path_of(options: argparse.Namespace, resume: bool) -> Path | None:
    """See `check_output`. If the video of a run that saved snapshots is in the way, the error also says how to go on with it: a new run
    would remove its snapshot."""
    from lolrt.media.output import check_output

    try:
        return check_output(options.output, options.dvr, resume)
    except LeftOverError as error:
        snapshot = beside(options.output, "snapshot.safetensors")
        if not snapshot.exists():
            raise
        raise Error(f"{error}; or go on with it: lolrt generate --resume {snapshot}, which is to be moved with it") from error


def numbered(output: str, own: str) -> str:
    """The name of one of several videos: v.mp4 becomes v-1-seed7.mp4, and frames/%05d.png becomes frames/1-seed7/%05d.png."""
    if not own or output == "-" or "://" in output:
        return output
    path = Path(output)
    if path.suffix.lower() == ".png":
        return str(path.parent / own[1:] / path.name)
    return str(path.with_name(f"{path.stem}{own}{path.suffix}"))


def check_files(video: Video, several: bool) -> None:
    """Raises `lolrt.Error` if options do not fit the output of a video."""
    options = video.options
    if video.path is None:
        if several:
            raise Error("several prompts or seeds make a file each: choose a name with -o")
        for option in ("probe", "latents", "save_every"):
            if getattr(options, option):
                raise Error(f"--{option.replace('_', '-')} writes beside the video, so it needs a file: choose one with -o")
    if options.json and options.output == "-":
        raise Error("--json goes to standard output, where the video is to go: choose a file with -o")
    if options.no_overwrite and video.resumed is None and video.path is not None and video.path.exists():
        raise Error(f"{video.path} is there already: choose another name with -o, or leave --no-overwrite out")


def check_start(start: str) -> None:
    from lolrt.media.latents import is_latents
    from lolrt.media.reader import check_readable

    if not is_latents(start):
        check_readable(start)
    elif not Path(start).exists():
        raise Error(f"cannot read {start}: it does not exist")


def load(arguments: argparse.Namespace, prompts: Sequence[str]) -> tuple[ModelFiles, Pipeline]:
    """The files of a model, and the loaded model. All prompts have been encoded."""
    import lolrt
    from lolrt.checkpoint.load import check_lora
    from lolrt.ops.device import usable
    from lolrt.ops.int8 import check_int8
    from lolrt.pipeline import files_of

    device = usable(arguments.device)
    if arguments.linear == "int8":
        check_int8(device)
    kv_dtype(arguments)
    needed = {"dit", "vae" if arguments.vae == "full" else "taehv", *([] if arguments.text else ["text_encoder"])}
    files = files_of(arguments.model, needed, arguments.weights)
    for warning in files.warnings:
        note(arguments, warning)
    check_lora(files, arguments.lora)
    text: TextEncoder = lolrt.EmbeddingFile(arguments.text) if arguments.text else lolrt.load_text(files)
    text.encode(list(prompts))  # before the rest of the model needs the memory, and an error can end a long run
    pipe = lolrt.load(
        files, vae=arguments.vae, vae_tile=arguments.vae_tile, text=text, lora=arguments.lora, device=device, linear=arguments.linear
    )
    return files, pipe


def read_start(arguments: argparse.Namespace, pipe: Pipeline, total: int | None) -> Tensor:
    """The latents to start from, cut to the requested length in whole latent frames."""
    from lolrt.media.latents import is_latents, read_latents
    from lolrt.media.reader import read_frames

    factor = pipe.vae.config.temporal_factor
    latent_frames = None if total is None else 1 + -(-(total - 1) // factor)
    if is_latents(arguments.start):
        return read_latents(arguments.start, (pipe.dit.config.out_dim, *pipe.latent_size))[:latent_frames]
    wanted = None if latent_frames is None else 1 + (latent_frames - 1) * factor
    frames = islice(read_frames(arguments.start, pipe.height, pipe.width, pipe.fps), wanted)
    return pipe.encode_video(bar(arguments, frames, desc="reading the start", leave=False))


def begin(video: Video, pipe: Pipeline, files: ModelFiles, start: Tensor | None) -> tuple[Stream, list[str]]:
    """A new stream, and notes about its options."""
    import lolrt
    from lolrt.checkpoint.recipes import sampling

    options, given = video.options, given_options(video.options).keys()
    pages = kv_dtype(options)
    rope = replace(pipe.rope, **field_values(options, "Rope"))
    window = replace(pipe.window, **field_values(options, "Window"), gate=lolrt.SinkGate(**field_values(options, "SinkGate")))
    check_memory(pipe, window, pages)
    notes = list(without_effect(given, rope, window))
    if "crf" in given and Path(options.output).suffix.lower() in (".gif", ".png"):
        notes.append("--crf changes nothing: it takes video of H.264 or VP9")
    sampler = replace(pipe.sampler, **field_values(options, "Sampler"))
    said = {"chunk_frames", "sampler"} & files.settings.keys()
    if not {"chunk_frames", "timesteps"} & given and (files.recipe or not said):
        notes.append(f"sampled with {sampling(files.settings, files.recipe)}")
    stream = pipe.stream(
        video.cues[0].prompt, seed=options.seed[0], rope=rope, window=window, sampler=sampler, probe=True, start=start, kv_dtype=pages
    )
    return stream, notes


def late_prompts(video: Video, pipe: Pipeline, total: int | None) -> list[str]:
    late = [cue for cue in video.cues if total is not None and cue.seconds * pipe.fps >= total]
    told = "{} of the script's {} prompts come after the video's end, the first at {} s"
    return [told.format(len(late), len(video.cues), late[0].seconds)] if late else []


def check_memory(pipe: Pipeline, window: Window, kv_dtype: torch.dtype | None) -> None:
    """Raises `lolrt.Error` if the pages of a stream need more memory than the machine, or the GPU, has."""
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
