"""Long rollouts of policies over prompts and seeds. They are measured while they run, and kept in a folder to which later runs can add.

    plan.json           the model, the length, whether video is decoded
    videos.jsonl        a line for each finished video: policy, prompt, seed, and its measurements as numbers
    videos/<key>.npz    its measurements as series

A rollout keeps only its measurements, no latents and no video. An interrupted rollout starts again, with the same bits.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import lolrt
from lolrt import measures, workers
from lolrt.checkpoint import read_json
from lolrt.engine.kv_window import Window
from lolrt.errors import Error, OutputError
from lolrt.files import write_whole
from lolrt.lab import cost, pictures
from lolrt.lab.phase import phase_table
from lolrt.lab.policy import Policy
from lolrt.pipeline import Pipeline
from lolrt.session.stream import Chunk, LatentChunk

SIGNATURE_SIZE = (4, 6)
SHEET_COLUMNS = 10


@dataclass(frozen=True)
class Plan:
    """The common settings of a folder: all its videos come from one model, have one length, and are all decoded or all not."""

    model: str
    frames: int
    """Latent frames of a video."""
    decode: bool = True
    """Whether video is decoded, for the measures of `pictures` and for contact sheets. Without decoding a rollout is several times as
    fast."""

    def __post_init__(self) -> None:
        if self.frames < 2 * measures.REFERENCE_FRAMES:
            raise Error(f"videos of {self.frames} latent frames are too short to measure; expected {2 * measures.REFERENCE_FRAMES} or more")


@dataclass(frozen=True)
class Video:
    """One rollout to be measured."""

    policy: str
    prompt: str
    seed: int

    @property
    def key(self) -> str:
        return hashlib.sha1(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@cache
def loaded(model: str) -> Pipeline:
    return lolrt.load(model)


def radians(pipe: Pipeline, policy: Policy) -> np.ndarray:
    """The frequencies of all heads of all layers, [layers * heads, pairs]; of one layer if all are equal."""
    config = pipe.dit.config
    return policy.rope.radians(config.num_layers, config.num_heads, config.temporal_pairs).reshape(-1, config.temporal_pairs)


def predicted_frames(pipe: Pipeline, frames: int, policy: str = "sigma=0") -> list[int]:
    """Own frames: where a policy is to collapse in a rollout of so many frames: the two highest maxima past frame 100, of 400, of the real
    part of the phase kernel of its frequencies, mean over heads, as far as there are frames enough around them to tell. None where
    there are no sinks, or where they do not fall behind. "Predicted" frames are plain RoPE's own."""
    parsed = Policy.parse(policy, pipe.window)
    if parsed.rope.positions != "absolute" or parsed.window.sink_frames == 0:
        return []
    predicted = phase_table(radians(pipe, parsed), max(frames, 400)).predicted()
    return [frame for frame in predicted if frame + measures.FLANKS[1][1] <= frames]


class Recorder:
    """The series of one rollout, chunk by chunk."""

    def __init__(self, plan: Plan, fps: int, predicted: Sequence[int], chunk_frames: int) -> None:
        self.stride = max(1, round(fps / pictures.FLOW_FPS))
        self.series: dict[str, list[Any]] = {name: [] for name in ("distance", "step", "signature", "mass")}
        if plan.decode:
            self.series |= {name: [] for name in ("luminance", "saturation", "sharpness", "flow", "thumbnail_frames", "thumbnails")}
        sheet = {*np.linspace(0, plan.frames - 1, SHEET_COLUMNS).astype(int).tolist(), *predicted}
        self.shown = {frame // chunk_frames * chunk_frames for frame in sheet}
        self.references: Tensor | None = None
        self.last_latent: Tensor | None = None
        self.last_frame: np.ndarray | None = None
        self.video_frames = 0

    def add(self, chunk: LatentChunk) -> None:
        latents, series = chunk.latents, self.series
        if self.references is None or chunk.sink_frames > len(self.references):
            # Sinks are still being made: measure the frames so far again, now that there are more sinks.
            opening = latents if self.references is None else torch.cat([self.references, latents])
            self.references = opening[: max(chunk.sink_frames, len(latents))]
            series["distance"] = list(measures.sink_distance(opening.numpy(), self.references.numpy()))
        else:
            series["distance"].extend(measures.sink_distance(latents.numpy(), self.references.numpy()))
        before = latents[:1] if self.last_latent is None else self.last_latent
        series["step"].extend((latents - torch.cat([before, latents[:-1]])).square().mean((1, 2, 3)).sqrt().tolist())
        self.last_latent = latents[-1:]
        height, width = (min(size, most) for size, most in zip(latents.shape[2:], SIGNATURE_SIZE, strict=True))
        pooled = F.adaptive_avg_pool2d(latents, (height, width))
        series["signature"].extend(pooled.flatten(1).half().numpy())
        assert chunk.mass is not None
        series["mass"].append(chunk.mass[..., : chunk.sink_frames].sum(-1).mean(-1).numpy())
        if isinstance(chunk, Chunk):
            self._add_pictures(chunk.first_frame, chunk.frames.numpy())

    def _add_pictures(self, first_frame: int, frames: np.ndarray) -> None:
        for measure in (pictures.luminance, pictures.saturation, pictures.sharpness):
            self.series[measure.__name__].append(measure(frames).mean())
        for frame in frames[-self.video_frames % self.stride :: self.stride]:
            if self.last_frame is not None:
                self.series["flow"].append(pictures.flow(self.last_frame, frame))
            self.last_frame = frame
        self.video_frames += len(frames)
        if first_frame in self.shown:
            self.series["thumbnail_frames"].append(first_frame)
            self.series["thumbnails"].append(frames[-1])

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.array(values) for name, values in self.series.items()}


def record(plan: Plan, video: Video) -> dict[str, np.ndarray]:
    """Runs one rollout and returns its series.

    distance: [frames, sinks]; step: [frames], RMS difference to the frame before; signature: float16 [frames, features], latents
    averaged to at most 4 x 6 places; mass: [chunks, layers, heads] on all sinks. Decoded: luminance, saturation, sharpness [chunks];
    flow: [n]; thumbnails: uint8 [k, height, width, 3] of the chunks that start at thumbnail_frames [k].
    """
    window, chunks, recorder = begun(plan, video)
    for chunk in islice(chunks, -(-plan.frames // window.chunk_frames)):
        recorder.add(chunk)
    return recorder.arrays()


def begun(plan: Plan, video: Video) -> tuple[Window, Iterator[LatentChunk], Recorder]:
    """A rollout: its window, its chunks, endlessly, and what measures them."""
    pipe = loaded(plan.model)
    policy = Policy.parse(video.policy, pipe.window)
    make: Callable[..., Iterator[LatentChunk]] = pipe.stream if plan.decode else pipe.latent_stream
    chunks = make(video.prompt, seed=video.seed, rope=policy.rope, window=policy.window, probe=True)
    return policy.window, chunks, Recorder(plan, pipe.fps, predicted_frames(pipe, plan.frames), policy.window.chunk_frames)


def collapse_at(series: dict[str, np.ndarray], frames: Sequence[int]) -> dict[str, float]:
    """The means of dip, rise and synchrony at some frames of one video."""
    near, mass = measures.nearest(series["distance"]), series["mass"]
    total, together = measures.sink_mass(mass), measures.synchrony(mass)
    per_chunk = len(near) // len(mass)
    chunks = sorted({frame // per_chunk for frame in frames})
    return {
        "dip": float(np.mean([measures.dip(near, frame) for frame in frames])),
        "rise": float(np.mean([measures.rise(total, chunk) for chunk in chunks])),
        "synchrony": float(np.mean([together[chunk - 1 : chunk + 2].max() for chunk in chunks])),
    }


def summary(series: dict[str, np.ndarray], predicted: Sequence[int], height: int, width: int) -> dict[str, float]:
    """The numbers of one video: the measures of `measures` and `pictures`, at each predicted frame if they refer to a frame."""
    near = measures.nearest(series["distance"])
    row = {"sink_collapse": measures.sink_collapse(near)}
    places = {str(frame): [frame] for frame in predicted} | {"elsewhere": measures.elsewhere(len(near), predicted)}
    for place, frames in places.items():
        if frames:
            row |= {f"{what}_{place}": value for what, value in collapse_at(series, frames).items()}
    row["sink_mass"] = float(np.median(measures.sink_mass(series["mass"])))
    row["synchrony"] = float(np.median(measures.synchrony(series["mass"])))
    row["motion"] = measures.motion(series["step"])
    row["loop_lag"], row["loop"] = measures.loop(series["signature"])
    if "flow" in series:
        row |= {f"{name}_drift": pictures.drift(series[name]) for name in ("luminance", "saturation", "sharpness")}
        row["flow"] = float(series["flow"].mean())
        row["dynamic_degree"] = pictures.dynamic_degree(series["flow"], height, width)
    return {name: float(value) for name, value in row.items()}


class Folder:
    """The kept rollouts of one plan. Several processes may add to it at the same time.

    Raises `lolrt.Error` when the folder holds rollouts of another plan, and `lolrt.OutputError` when it cannot be written.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self.index = path / "videos.jsonl"
        description = path / "plan.json"
        if not description.exists():
            write_whole(description, (json.dumps(asdict(plan)) + "\n").encode())
        elif (kept := read_json(description)) != asdict(plan):
            raise Error(f"{path} holds rollouts of another plan, {kept}; this one is {asdict(plan)}: choose another folder with -o")
        kept_lines = self.index.read_text() if self.index.exists() else ""
        if kept_lines and not kept_lines.endswith("\n"):  # a run was stopped, or a disk was full
            self._append("\n")
        self.rows = {row["key"]: row for row in map(_row, kept_lines.split("\n")) if row}

    def series(self, video: Video) -> dict[str, np.ndarray]:
        with np.load(self._series_path(video)) as file:
            return dict(file)

    def add(self, video: Video, series: dict[str, np.ndarray], numbers: dict[str, float]) -> None:
        file = io.BytesIO()
        np.savez(file, **series)  # type: ignore[arg-type]
        write_whole(self._series_path(video), file.getvalue())
        row = {"key": video.key, **asdict(video), **numbers}
        self._append(json.dumps(row) + "\n")
        self.rows[video.key] = row

    def table(self, policies: Sequence[str], videos: Sequence[tuple[str, int]], name: str) -> np.ndarray:
        """One measure of every video, [policies, videos]."""
        return np.array([[self.rows[Video(policy, *video).key][name] for video in videos] for policy in policies])

    def _append(self, text: str) -> None:
        try:
            with open(self.index, "a") as index:
                index.write(text)
        except OSError as error:
            raise OutputError(f"cannot go on writing {self.index} ({error})") from error

    def _series_path(self, video: Video) -> Path:
        return self.path / "videos" / f"{video.key}.npz"


def _row(line: str) -> dict[str, Any] | None:
    """A line of the index; None for a truncated line, whose video is made again."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def chunk_seconds(plan: Plan, video: Video) -> float:
    """The processor time of one chunk of a rollout and its measures, once the window is full, in seconds."""
    window, chunks, recorder = begun(plan, video)
    for chunk in islice(chunks, -(-window.pages // window.chunk_frames)):
        recorder.add(chunk)
    return cost.cpu_seconds(lambda: recorder.add(next(chunks)))


def predicted_cost(plan: Plan, chunks: Sequence[tuple[Video, int]]) -> str:
    """What so many chunks of each video will cost, as text. One chunk of each window is timed: its size matters most."""
    pipe = loaded(plan.model)
    seconds: dict[Window, float] = {}
    total = 0.0
    for video, count in chunks:
        window = Policy.parse(video.policy, pipe.window).window
        if window not in seconds:
            seconds[window] = chunk_seconds(plan, video)
        total += count * seconds[window]
    return f"{cost.minutes(total)}, predicted from a chunk of each window" if seconds else "no cost"


def told_before(plan: Plan, missing: Sequence[Video], videos: int) -> str:
    """A line about the videos to make."""
    pipe = loaded(plan.model)
    chunks = [(video, -(-plan.frames // Policy.parse(video.policy, pipe.window).window.chunk_frames)) for video in missing]
    each = f"{plan.frames} latent frames ({plan.frames / pipe.fps * pipe.vae.config.temporal_factor:.0f} s)"
    made = f"{len(missing)} of {videos} videos of {each} are to be made, {sum(count for _, count in chunks)} chunks in all"
    return f"{made}: {predicted_cost(plan, chunks)}; the others are there already"


def run(folder: Folder, videos: Sequence[Video], jobs: int = 1) -> None:
    """Measures the videos that the folder does not hold yet. jobs: the number of processes, with one thread each; 1: this process, with
    all its threads.

    Raises `lolrt.Error`: before any work for a policy or prompt that the model does not accept, and after Ctrl-C.
    """
    pipe = loaded(folder.plan.model)
    for policy in {video.policy: None for video in videos}:
        config = pipe.dit.config
        Policy.parse(policy, pipe.window).rope.increments(config.num_layers, config.num_heads, config.temporal_pairs)
    for prompt in {video.prompt: None for video in videos}:
        pipe.encode_text(prompt)
    predicted = predicted_frames(pipe, folder.plan.frames)
    missing = [video for video in videos if video.key not in folder.rows]
    print(told_before(folder.plan, missing, len(videos)), file=sys.stderr)
    bar = tqdm(_recorded(folder.plan, missing, jobs), total=len(missing), unit=" videos", disable=not missing)
    try:
        for video, series in bar:
            folder.add(video, series, summary(series, predicted, pipe.height, pipe.width))
    except KeyboardInterrupt:
        raise Error(f"interrupted; {folder.path} keeps the {bar.n} videos that are finished, and the same command goes on") from None


def _recorded(plan: Plan, videos: Sequence[Video], jobs: int) -> Iterator[tuple[Video, dict[str, np.ndarray]]]:
    if jobs == 1 or len(videos) < 2:
        for video in videos:
            yield video, record(plan, video)
        return
    with workers.pool(jobs, partial(lolrt.set_threads, 1)) as pool:
        waiting = {pool.submit(record, plan, video): video for video in videos}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
