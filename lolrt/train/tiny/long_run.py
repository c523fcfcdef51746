"""How long videos keep their subject, policy by policy, and how soon a new prompt shows in them.

The frames that are looked at are kept in a folder, with the state that each video goes on from: what was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt.engine.kv_window import Window
from lolrt.models.fingerprint import fingerprint
from lolrt.pipeline import Pipeline
from lolrt.positions.rope import Rope
from lolrt.positions.sink_gate import SinkGate
from lolrt.session.prompt_switch import Recache
from lolrt.session.stream import LatentChunk, LatentStream
from lolrt.train.codec_pca import TEMPORAL
from lolrt.train.reader import Reader, first_run
from lolrt.train.teacher_forcing import CHUNK
from lolrt.train.tiny.effort import Effort
from lolrt.train.tiny.scenes import FPS, VOCABULARY, values
from lolrt.train.tiny.subject import is_right

CHUNK_SECONDS = CHUNK * TEMPORAL / FPS
LOOK_EVERY = 8  # chunks, in a long video
LOOKS_A_MINUTE = round(60 / CHUNK_SECONDS / LOOK_EVERY)
LOOKS_A_SAVE = 20
DRAWN = "jitter 0.8, drawn"  # the paper's, and that of a model that names none
POLICIES = {
    "plain RoPE": (Rope(sigma=0), Window()),
    DRAWN: (Rope(), Window()),
    "jitter 0.8, stratified": (Rope(spread="stratified"), Window()),
    "gate where realigned": (Rope(sigma=0), Window(gate=SinkGate(-math.inf, "realigned"))),
}
PROMPTS = (  # one of each kind of object, and another balloon: it is lost most
    "red balloon hills dawn",
    "yellow boat sea day",
    "green car desert dusk",
    "blue balloon mountains night",
)
RETURNS, AROUND = (132, 201), 5  # latent frames, and the chunks before and after that are looked at
BEFORE = 14  # chunks before a switch
LOOK_AFTER_SWITCH = 2  # chunks
RECACHES: tuple[Recache, ...] = ("window", "sinks")
STAYS = 3  # looks in a row that show what is new, before it counts as there


@dataclass(frozen=True)
class Video:
    policy: str
    words: dict[str, str]
    """What each attribute is to be."""
    seed: int

    @property
    def prompt(self) -> str:
        return " ".join(self.words.values())

    @property
    def key(self) -> str:
        return hashlib.sha1(repr((self.policy, self.prompt, self.seed)).encode()).hexdigest()[:12]


def videos(policy: str) -> list[Video]:
    return [Video(policy, dict(zip(VOCABULARY, prompt.split(), strict=True)), seed) for seed, prompt in enumerate(PROMPTS)]


def look(pipe: Pipeline, before: LatentChunk, chunk: LatentChunk) -> Tensor:
    """The last video frame of a chunk's first latent frame, uint8 [height, width, 3], decoded from the latent frame before on. It is
    within 5 grey levels (RMS) of that of a video that is decoded whole."""
    frame = pipe.vae.decode(torch.cat([before.latents[-1:], chunk.latents[:1]]), {})[-1]
    return frame.add(1).mul(127.5).round().byte().permute(1, 2, 0)


def looks(pipe: Pipeline, stream: LatentStream, every: int) -> Iterator[Tensor]:
    """What each `every`-th chunk of a stream shows."""
    while True:
        *_, before, chunk = islice(stream, every)
        yield look(pipe, before, chunk)


def watched(pipe: Pipeline, video: Video, minutes: int, folder: Path) -> Tensor:
    """What a video shows, uint8 [minutes x LOOKS_A_MINUTE, height, width, 3]; kept in `folder`, and gone on with from there."""
    path = folder / f"{video.key}.pt"
    rope, window = POLICIES[video.policy]
    stream = pipe.latent_stream(video.prompt, seed=video.seed, rope=rope, window=window)
    frames: list[Tensor] = []
    if path.exists():
        kept = torch.load(path)
        frames = list(kept["frames"])
        stream.load_state_dict(kept["state"])
    coming, wanted = looks(pipe, stream, LOOK_EVERY), minutes * LOOKS_A_MINUTE
    while len(frames) < wanted:
        frames += islice(coming, min(LOOKS_A_SAVE, wanted - len(frames)))
        partial = path.with_suffix(".partial")
        torch.save({"frames": torch.stack(frames), "state": stream.state_dict()}, partial)
        partial.replace(path)
    return torch.stack(frames[:wanted])


def judged(pipe: Pipeline, reader: Reader, video: Video, minutes: int, folder: Path) -> dict[str, Any]:
    """Of the looks of each minute of a video, how many show exactly one whole subject of the right kind and colour; and of all its looks
    the share in which each attribute is read as the prompt says it."""
    read = reader.read(watched(pipe, video, minutes, folder))
    right = is_right(read, video.words).view(minutes, LOOKS_A_MINUTE).sum(1).tolist()
    said = {group: float((read[group] == values(group).index(word)).float().mean()) for group, word in video.words.items()}
    print(f"{video.policy}, {video.prompt}: {' '.join(map(str, right))}", flush=True)
    return {**asdict(video), "right": right, "read": said}


def long_run(pipe: Pipeline, reader: Reader, effort: Effort, work: Path) -> dict[str, Any]:
    """The first prompts under every policy; the longest videos are of the pipeline's own."""
    folder, found = looks_folder(pipe, work), []
    own = next((name for name, policy in POLICIES.items() if policy == (pipe.rope, pipe.window)), DRAWN)
    for number in range(effort.short_videos):
        for video in (videos(policy)[number] for policy in POLICIES):
            long = video.policy == own and number < effort.long_videos
            found.append(judged(pipe, reader, video, effort.long_minutes if long else effort.short_minutes, folder))
    lengths = {"short_minutes": effort.short_minutes, "long_minutes": effort.long_minutes}
    return {"own": own, **lengths, "looks_a_minute": LOOKS_A_MINUTE, "videos": found}


def at_returns(pipe: Pipeline, reader: Reader, number: int) -> dict[str, dict[str, list[float]]]:
    """Around the latent frames where plain RoPE's phases return: policy -> frame -> of each of the first example prompts, the share of
    chunks that show exactly one whole subject of the right kind and colour. An example's number is its seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for policy, (rope, window) in POLICIES.items():
        found[policy] = {str(frame): [] for frame in RETURNS}
        for seed, prompt in enumerate(pipe.example_prompts[:number]):
            words = {group: word for word in prompt.split() for group, known in VOCABULARY.items() if word in known}
            said = {group: VOCABULARY[group][word] for group, word in words.items()}
            chunks = list(islice(pipe.latent_stream(prompt, seed=seed, rope=rope, window=window), max(RETURNS) // CHUNK + AROUND + 1))
            for frame in RETURNS:
                at = range(frame // CHUNK - AROUND, frame // CHUNK + AROUND + 1)
                right = is_right(reader.read(torch.stack([look(pipe, chunks[i - 1], chunks[i]) for i in at])), said)
                found[policy][str(frame)].append(float(right.float().mean()))
        print(policy, {frame: sum(shares) / len(shares) for frame, shares in found[policy].items()}, flush=True)
    return found


def looks_folder(pipe: Pipeline, work: Path) -> Path:
    """What was seen of another model's videos is not looked at."""
    folder = work / "looks" / fingerprint(pipe.dit.state_dict()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def after_switch(pipe: Pipeline, old: str, new: str, seed: int, recache: Recache, number: int, folder: Path) -> Tensor:
    """What a video shows after its prompt has changed, uint8 [number, height, width, 3]; kept in `folder`."""
    path = folder / f"switch-{recache}-{seed}-{number}.pt"
    if not path.exists():
        stream = pipe.latent_stream(old, seed=seed)
        list(islice(stream, BEFORE))
        stream.set_prompt(pipe.encode_text(new), recache=recache)
        torch.save(torch.stack(list(islice(looks(pipe, stream, LOOK_AFTER_SWITCH), number))), path)
    return torch.load(path)


def switches(pipe: Pipeline, reader: Reader, effort: Effort, work: Path) -> dict[str, Any]:
    """Seconds from each switch, which changes all attributes, until `STAYS` looks in a row show the new value of an attribute, by the
    first of them; None where that never comes."""
    number = round(effort.switch_seconds / CHUNK_SECONDS / LOOK_AFTER_SWITCH)
    seconds: dict[str, dict[str, list[float | None]]] = {recache: {group: [] for group in VOCABULARY} for recache in RECACHES}
    for seed in range(effort.switches):
        random = torch.Generator().manual_seed(seed)
        picks = {group: torch.randperm(len(values(group)), generator=random)[:2].tolist() for group in VOCABULARY}
        old, new = (" ".join(values(group)[pick[i]] for group, pick in picks.items()) for i in (0, 1))
        for recache in RECACHES:
            read = reader.read(after_switch(pipe, old, new, seed, recache, number, looks_folder(pipe, work)))
            for group, (_, wanted) in picks.items():
                at = first_run(read[group] == wanted, STAYS)
                # A look is at its chunk's first latent frame.
                seconds[recache][group].append(None if at is None else CHUNK_SECONDS * (LOOK_AFTER_SWITCH * (at + 1) - 1))
        print(f"{old} -> {new}: {[{group: found[-1] for group, found in of.items()} for of in seconds.values()]}", flush=True)
    return {
        "number": effort.switches,
        "before_seconds": BEFORE * CHUNK_SECONDS,
        "after_seconds": effort.switch_seconds,
        "look_seconds": LOOK_AFTER_SWITCH * CHUNK_SECONDS,
        "looks_in_a_row": STAYS,
        "seconds": seconds,
    }


def sheet(pipe: Pipeline, reader: Reader, policy: str, minutes: int, number: int, work: Path, columns: int = 20) -> Tensor:
    """A contact sheet of kept videos, a row each: what the reader does not call right has a red bar below. uint8 [height, width, 3]."""
    rows = []
    for video in videos(policy)[:number]:
        frames = watched(pipe, video, minutes, looks_folder(pipe, work))
        frames = frames[torch.linspace(0, len(frames) - 1, columns).long()]
        frames[~is_right(reader.read(frames), video.words), -4:] = torch.tensor([255, 0, 0], dtype=torch.uint8)
        rows.append(torch.cat(list(frames), 1))
    return torch.cat(rows)
