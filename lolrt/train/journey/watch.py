"""Videos of a trained model, watched: what each chunk shows, how fast its scenery passes, and how much changes from frame to frame.

What was seen, and the latents of streams, are kept in a folder, a file for each video: what was interrupted goes on with the next video.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from lolrt.engine.kv_window import Window
from lolrt.lab.pictures import luminance, saturation, sharpness
from lolrt.models.fingerprint import fingerprint
from lolrt.models.vae.codec import State
from lolrt.pipeline import Pipeline
from lolrt.positions.rope import Rope
from lolrt.session.stream import pixels
from lolrt.train.codec_pca import TEMPORAL
from lolrt.train.journey.data import video_frame
from lolrt.train.journey.flow import APART, camera_speed
from lolrt.train.journey.landscape import render
from lolrt.train.journey.world import FPS, Prompt, World, named
from lolrt.train.teacher_forcing import CHUNK

CHUNK_SECONDS = CHUNK * TEMPORAL / FPS
OWN, PLAIN = "the model's own", "plain RoPE"
SCRIPTED = "none: scripted video, through the VAE"
LOOKS = (luminance, saturation, sharpness)


@dataclass(frozen=True)
class Video:
    """A video of so many chunks. script: (chunk, prompt), the prompts and the chunks from which they count; the first from 0 on. With the
    policy SCRIPTED the DiT has no part in it."""

    policy: str
    script: tuple[tuple[int, Prompt], ...]
    seed: int
    chunks: int

    @property
    def key(self) -> str:
        return hashlib.sha1(repr(self).encode()).hexdigest()[:12]


class Watched(NamedTuple):
    """What was seen of a video."""

    pictures: Tensor
    """uint8 [chunks, height, width, 3]: the last frame of each chunk."""
    speed: Tensor
    """float32 [chunks]: the camera's speed in pixels a frame of what is nearest."""
    change: Tensor
    """float32 [frames - 1]: the mean absolute difference of each frame from the one before, in grey levels."""
    first_frames: Tensor
    """int64 [chunks]: the number of each chunk's first frame."""

    def looks(self) -> dict[str, np.ndarray]:
        """Luminance, saturation and sharpness of each chunk, [chunks]."""
        return {look.__name__: look(self.pictures.numpy()) for look in LOOKS}

    def border_change(self) -> float:
        """The mean change where chunks begin, over that of all other frames."""
        borders = torch.zeros(len(self.change), dtype=torch.bool)
        borders[self.first_frames[1:] - 1] = True
        return float(self.change[borders].mean() / self.change[~borders].mean())


def policies(pipe: Pipeline) -> dict[str, tuple[Rope, Window]]:
    return {OWN: (pipe.rope, pipe.window), PLAIN: (Rope(sigma=0), Window())}


def watched(pipe: Pipeline, video: Video, work: Path) -> Watched:
    """What was seen of a video, kept in `work` by the weights of both models. Its latents are kept by those of the DiT alone, so that
    another VAE can decode them."""
    return Watched(*kept(work / "videos", video, (pipe.dit, pipe.vae), lambda: tuple(see(decoded(pipe, latents(pipe, video, work))))))


def kept(folder: Path, video: Video, models: Iterable[object], make: Callable[[], Any]) -> Any:
    """What `make` returns, kept in `folder` for a video and the weights of these models."""
    weights = hashlib.sha256(b"".join(fingerprint(cast(nn.Module, model).state_dict()).digest() for model in models)).hexdigest()[:12]
    path = folder / weights / f"{video.key}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save(make(), partial)
        partial.replace(path)
    return torch.load(path)


def latents(pipe: Pipeline, video: Video, work: Path) -> Tensor:
    """float32 [frames, z, h, w]."""
    if video.policy == SCRIPTED:
        return scripted(pipe, video)
    return cast(Tensor, kept(work / "latents", video, (pipe.dit,), lambda: streamed(pipe, video)))


def streamed(pipe: Pipeline, video: Video) -> Tensor:
    """The latents of a stream."""
    rope, window = policies(pipe)[video.policy]
    prompts = {chunk: " ".join(named(prompt)) for chunk, prompt in video.script}
    stream = pipe.latent_stream(prompts.pop(0), seed=video.seed, rope=rope, window=window)
    made = []
    for number in range(video.chunks):
        if number in prompts:
            stream.set_prompt(pipe.encode_text(prompts[number]))
        made.append(next(stream).latents)
    return torch.cat(made)


def scripted(pipe: Pipeline, video: Video) -> Tensor:
    """Those of a scripted world with these prompts."""
    world = World(video.seed, tuple((video_frame(CHUNK * chunk), prompt) for chunk, prompt in video.script))
    drawn, _ = render(world, torch.arange(video_frame(CHUNK * video.chunks)))
    return pipe.encode_video(list(drawn.permute(0, 2, 3, 1)))


def decoded(pipe: Pipeline, latents: Tensor) -> Iterator[Tensor]:
    """The frames of each chunk, uint8 [n, height, width, 3]."""
    state: State = {}
    for part in latents.split(CHUNK):
        yield pixels(pipe.vae.decode(part, state))


def see(chunks: Iterable[Tensor]) -> Watched:
    """chunks: the frames of each, uint8 [n, height, width, 3]."""
    pictures, speed, change, first_frames, last, count = [], [], [], [], None, 0
    for frames in chunks:
        joined = (frames if last is None else torch.cat([last[None], frames])).float()
        change.append(joined.diff(dim=0).abs().mean((1, 2, 3)))
        speed.append(camera_speed(frames[-1 - APART], frames[-1]))
        pictures.append(frames[-1])
        first_frames.append(count)
        last, count = frames[-1], count + len(frames)
    return Watched(torch.stack(pictures), torch.tensor(speed), torch.cat(change), torch.tensor(first_frames))
