"""One video of a run of `lolrt generate`: its files, how they are written, and the report about them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lolrt.cli.interrupt import Interrupt, Stopped
from lolrt.cli.mass_log import MassLog
from lolrt.cli.progress import progress
from lolrt.cli.resumed import Run, beside, recorded
from lolrt.errors import Error
from lolrt.files import remove_partials

if TYPE_CHECKING:
    from lolrt.pipeline import Pipeline
    from lolrt.session.script import Cue
    from lolrt.session.stream import Chunk, Stream


@dataclass(frozen=True)
class Video:
    """One video of a run."""

    options: argparse.Namespace
    """The options of the command line, with the prompt, seed and output of this video."""
    cues: list[Cue]
    """The prompts and their start times."""
    resumed: Run | None
    path: Path | None
    """The file; None for standard output and addresses."""

    @property
    def snapshot(self) -> Path:
        return Path(self.options.resume or beside(self.options.output, "snapshot.safetensors"))

    def log(self, wanted: bool, kind: str) -> Path | None:
        return beside(self.options.output, kind) if wanted else None


def write(video: Video, pipe: Pipeline, stream: Stream, total: int | None) -> int:
    """Writes a video of `total` frames, or until it is stopped. Returns the number of frames. Raises `Stopped` if there are fewer than
    `total`."""
    from lolrt.media.destination import Position
    from lolrt.media.latents import LatentsFile
    from lolrt.media.output import open_output
    from lolrt.session.saver import Saver
    from lolrt.session.script import ScriptedStream

    options, resumed = video.options, video.resumed
    position = Position(**resumed.position) if resumed else None
    saved = written = position.frames if position else 0  # the bar does not count if TQDM_DISABLE hides it
    if total is not None and written >= total:
        raise Error(f"{options.resume} is at frame {written} of {total} already: ask for more with --frames or --seconds")
    if options.dvr and options.save_every and options.save_every > options.dvr * pipe.fps:
        raise Error(f"--save-every {options.save_every} is longer than the {options.dvr:g} s that --dvr keeps: save more often")
    coming = [cue for cue in video.cues[1:] if resumed is None or cue.seconds * pipe.fps > resumed.last_chunk]
    chunks: Iterator[Chunk] = ScriptedStream(
        stream, coming, pipe.fps, recache=options.recache, over_chunks=options.switch_chunks, frames=written
    )
    if pipe.dit.device.type == "cuda" and not options.save_every:  # a snapshot must match what has been written
        chunks = one_ahead(chunks)
    size = pipe.height, pipe.width, pipe.fps
    with (
        Interrupt() as interrupt,
        Saver() as saver,
        open_output(options.output, *size, crf=options.crf, resume=position, dvr_seconds=options.dvr) as writer,
        MassLog(video.log(options.probe, "mass.csv"), resumed.mass_bytes if resumed else 0) as mass_log,
        LatentsFile(video.log(options.latents, "latents.safetensors"), resumed.latents_bytes if resumed else 0) as latents,
        progress(options, total, written, pipe.fps) as shown,
    ):
        stream.latent_stream.on_pass = shown.passed
        if options.save_every:
            remove_partials(video.snapshot)  # left by a run that was killed while it saved
        for chunk in chunks:
            frames = chunk.frames if total is None else chunk.frames[: total - written]
            writer.write(frames)
            if resumed is None and written == 0 and video.path is not None:
                video.snapshot.unlink(missing_ok=True)  # an earlier run's, of a video that is now overwritten
            mass_log.write(chunk)
            latents.write(chunk.latents)
            # Before the window is full, sinks are most of it.
            shown.made(chunk, written, len(frames), len(chunk.page_frames) >= stream.latent_stream.window.pages)
            last_chunk, written = written, written + len(frames)
            if written == total:
                break
            if options.save_every and (written - saved >= options.save_every or interrupt.requested):
                position = writer.cut()  # type: ignore[union-attr]  # no address: it has nothing beside it
                run = Run(
                    recorded(options), [[cue.seconds, cue.prompt] for cue in video.cues], asdict(position), last_chunk,
                    mass_log.size(), latents.size(),
                )  # fmt: skip
                stream.save(video.snapshot, run=asdict(run), saver=saver)
                saved = written
            if interrupt.requested and total is None:
                break
            if interrupt.requested:
                saver.wait()
                raise stopped(video, interrupt.requested, written, total, writer.partial_path)
    if options.save_every and written == total:
        video.snapshot.unlink(missing_ok=True)  # complete: there is nothing to resume
    return written


def stopped(video: Video, number: int, written: int, total: int | None, partial: Path | None) -> Stopped:
    where = [f"{partial} holds them"] if partial else []
    where += [f"go on with lolrt generate --resume {video.snapshot}"] if video.options.save_every else []
    return Stopped(number, "; ".join([f"stopped after {written} of {total} frames", *where]))


def report(video: Video, written: int, unfinished: bool, fps: int) -> None:
    """Prints on standard output which files exist now."""
    options = video.options
    mass, latents = video.log(options.probe, "mass.csv"), video.log(options.latents, "latents.safetensors")
    snapshot = video.snapshot if options.save_every and unfinished else None
    if options.json:
        made = {"output": options.output, "frames": written, "fps": fps, "seconds": written / fps}
        files = {"mass_log": mass, "latents": latents, "snapshot": snapshot}
        print(json.dumps(made | {name: str(path) for name, path in files.items() if path}))
    elif options.output != "-" and not options.quiet:
        print(f"{options.output}: {written} frames, {written / fps:.1f} s at {fps} frames/s")
        if mass:
            print(f"{mass}: attention mass per chunk, layer, head and page")
        if latents:
            print(f"{latents}: the latents, for --start")
        if snapshot:
            print(f"{snapshot}: go on with lolrt generate --resume {snapshot}")


def one_ahead(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Yields the same chunks, each when the next one is queued: a GPU works on the next one while this one is decoded and written."""
    chunk = next(chunks)
    for following in chunks:
        yield chunk
        chunk = following
    yield chunk
