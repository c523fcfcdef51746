"""How far a run of `lolrt generate` is, on standard error: a bar for people, or lines of JSON for programs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lolrt.errors import printable

if TYPE_CHECKING:
    from lolrt.session.stream import Chunk

KINDS = ("bar", "json")


class Bar:
    """A bar of video frames, as wide as the terminal; nothing with --quiet. total: None for an endless video. written: the frames that an
    earlier run has written."""

    def __init__(self, options: argparse.Namespace, total: int | None, written: int, fps: int) -> None:
        self._bar, self._quiet, self._fps = bar(options, total=total, initial=written), options.quiet, fps

    def __enter__(self) -> Bar:
        self._bar.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._bar.__exit__(*raised)

    def passed(self, first_frame: int, passes: int) -> None:
        """After a pass of the model that did not complete its chunk: too fine for a bar of frames."""

    def made(self, chunk: Chunk, at: int, frames: int, sinks_told: bool) -> None:
        """After a chunk is written, whose first video frame is `at`. sinks_told: whether its attention mass on the sinks says anything."""
        if chunk.switch is not None and not self._quiet:
            self._bar.write(f"{at / self._fps:.2f} s: {chunk.switch}", file=sys.stderr)
        if sinks_told:
            self._bar.set_postfix_str(f"sink mass {chunk.sink_mass:.3f}", refresh=False)
        self._bar.update(frames)


class Lines:
    """A line of JSON after each pass and each chunk. `output`: the video; `of`: its frames, null if it is endless; `frames`: those that are
    written; `passes`: the passes that the chunk in progress has had. After a chunk also `seconds`: the length of what is written;
    `frames_per_second`: the rate of this run so far; `sink_mass` and `switch`, where there are any."""

    def __init__(self, options: argparse.Namespace, total: int | None, written: int, fps: int) -> None:
        self._video = {"output": options.output, "of": total}
        self._resumed, self._written, self._fps = written, written, fps

    def __enter__(self) -> Lines:
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *raised: Any) -> None:
        pass

    def passed(self, first_frame: int, passes: int) -> None:
        self._line(passes=passes)

    def made(self, chunk: Chunk, at: int, frames: int, sinks_told: bool) -> None:
        self._written = at + frames
        rate = (self._written - self._resumed) / (time.perf_counter() - self._begin)
        told: dict[str, Any] = {"passes": 0, "seconds": self._written / self._fps, "frames_per_second": round(rate, 3)}
        if sinks_told:
            told["sink_mass"] = chunk.sink_mass
        if chunk.switch is not None:
            told["switch"] = str(chunk.switch)
        self._line(**told)

    def _line(self, **told: Any) -> None:
        print(json.dumps({**self._video, "frames": self._written, **told}), file=sys.stderr, flush=True)


def progress(options: argparse.Namespace, total: int | None, written: int, fps: int) -> Bar | Lines:
    kind = Lines if options.progress == "json" else Bar
    return kind(options, total, written, fps)


def bar(options: argparse.Namespace, iterable: Iterator[Any] | None = None, **how: Any) -> Any:
    """A progress bar on standard error; none with --quiet or --progress json."""
    from tqdm import tqdm

    silent = options.quiet or options.progress == "json"
    # Otherwise the argument is left out, so that tqdm reads TQDM_DISABLE.
    return tqdm(iterable, unit=" frames", dynamic_ncols=True, file=sys.stderr, **how, **({"disable": True} if silent else {}))


def note(options: argparse.Namespace, text: str) -> None:
    """Something that the user should know before the video is made."""
    if options.progress == "json":
        print(json.dumps({"note": text}), file=sys.stderr, flush=True)
    elif not options.quiet:
        print(f"note: {printable(text)}", file=sys.stderr)
