"""Scripts: which prompt a video follows, and from what time on.

# time, then prompt; times are seconds, m:ss or h:mm:ss
0      a red balloon over the hills at dusk
0:08.5 a white sailboat on the sea at night
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lolrt.errors import Error
from lolrt.session.prompt_switch import Recache
from lolrt.session.stream import Chunk, Stream

LINE = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?)\s+(\S.*)")


@dataclass(frozen=True)
class Cue:
    """From `seconds` on, the video follows `prompt`."""

    seconds: float
    prompt: str


def read_script(path: str | Path) -> list[Cue]:
    """The cues of a script, in their order; the first is at 0. Raises `lolrt.Error`, which names the wrong line."""
    try:
        text = Path(path).read_text("utf-8-sig")  # editors on Windows write a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"cannot read the script {path}: {error}") from error
    return parse_script(text, str(path))


def parse_script(text: str, name: str) -> list[Cue]:
    """The cues in the text of a script; `name` is what errors call it."""
    cues = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise Error(f'{name}, line {number}: expected a time and a prompt, such as "8.5 a boat at sea" or "1:08 a boat at sea"')
        hours, minutes, seconds, prompt = match.groups()
        cues.append(Cue(3600 * int(hours or 0) + 60 * int(minutes or 0) + float(seconds), prompt))
        if len(cues) > 1 and cues[-1].seconds <= cues[-2].seconds:
            raise Error(f"{name}, line {number}: its time is not later than that of the prompt before")
    if not cues or cues[0].seconds:
        raise Error(f"{name}: expected its first prompt at time 0")
    return cues


class ScriptedStream(Iterator[Chunk]):
    """The chunks of a stream. Each cue's prompt takes effect at the first chunk that begins at the cue's time or later. After an error the
    next call goes on where the last one was.

    frames: the number of video frames that the stream has made before.
    """

    def __init__(
        self, stream: Stream, cues: Iterable[Cue], fps: float, *, recache: Recache = "window", over_chunks: int = 1, frames: int = 0
    ) -> None:
        self.stream, self.fps, self.frames = stream, fps, frames
        self._coming = deque(cues)
        self._recache: Recache = recache
        self._over_chunks = over_chunks

    def __next__(self) -> Chunk:
        while self._coming and self._coming[0].seconds * self.fps <= self.frames:
            self.stream.set_prompt(self._coming[0].prompt, recache=self._recache, over_chunks=self._over_chunks)
            self._coming.popleft()
        chunk = next(self.stream)
        self.frames += chunk.n_frames
        return chunk
