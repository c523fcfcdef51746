"""The data of `journey`: clips of worlds as PCA latents for the DiT, and short pixel clips for the VAE.

The prompt of a clip often changes, in the clip or in the frames left out between its sinks and the rest. So the end of a clip may show a
transition between two prompts, or something different from its sinks. Every clip is drawn from its own seed. Clips for the DiT come in
files of SHARD clips, so training can begin before all files exist.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt.train.codec_pca import SPATIAL, TEMPORAL, PCACodec, to_unit
from lolrt.train.journey.landscape import render
from lolrt.train.journey.world import HEIGHT, VOCABULARY, WIDTH, Prompt, World, change_prompt, draw_prompt
from lolrt.train.teacher_forcing import CHUNK, PAST_CHUNKS
from lolrt.train.text import value_rows
from lolrt.workers import pool

CLIP_LATENTS = 21
SINK_FRAMES = CHUNK  # latent frames at the start of a clip, which a rollout never forgets
MAX_GAP = 80  # latent frames left out after the sinks
MAX_SINCE = 40  # latent frames since a change that was in the gap
CHANGE_SHARE = 0.6  # of clips, with a change of the prompt
VAE_FRAMES = 17  # shorter clips drift in brightness, longer ones cost time
SHARD = 200  # clips a file
HEAD_START, CLIPS_A_STEP = 400, 2  # a step draws from the first HEAD_START + CLIPS_A_STEP * step clips
POLL_SECONDS = 5.0


@dataclass
class DataSizes:
    """How much data of each kind: clips, which share no seeds, and streams."""

    pca: int = 400
    pixels: int = 2400
    train: int = 6400
    held_out: int = 64
    made: int = 60
    """Streams of the DiT that the decoder is fine-tuned on."""


@dataclass(frozen=True)
class Clip:
    """The contents of a clip: the first SINK_FRAMES latent frames of a world, then, after a gap of `gap` frames, the rest.

    change: the latent frame of the world from which the second prompt counts; None if there is no second prompt.
    """

    world: World
    gap: int
    change: int | None = None

    @property
    def prompts(self) -> tuple[Prompt, Prompt]:
        """The prompts of the sinks and of the rest."""
        return self.world.prompts[0][1], self.world.prompts[-1][1]

    def counts(self) -> Tensor:
        """The chunks that a rollout could make from the clip, bool [chunks]: those whose recent past is in the clip, with one prompt."""
        chunk = torch.arange(CLIP_LATENTS // CHUNK)
        first = 1 if self.change is None else max(1, -(-(self.change - self.gap) // CHUNK))
        return (chunk == 0) | ((chunk >= first) & ((chunk > PAST_CHUNKS) | (self.gap == 0)))


def video_frame(latent: int) -> int:
    """The first video frame of a latent frame."""
    return max(0, TEMPORAL * latent - TEMPORAL + 1)


def draw_clip(seed: int, number: int) -> Clip:
    """The clip of this number; every second one has a gap."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + number)

    def pick(low: int, high: int) -> int:
        return low + int(torch.randint(high - low + 1, (), generator=generator))

    gap = pick(1, MAX_GAP) if number % 2 else 0
    prompts: list[tuple[int, Prompt]] = [(0, draw_prompt(generator))]
    change = None
    if float(torch.rand((), generator=generator)) < CHANGE_SHARE:
        if not gap:
            change = SINK_FRAMES * pick(1, 4)
        elif pick(0, 2):
            change = SINK_FRAMES + gap - pick(0, min(gap, MAX_SINCE))
        else:
            change = gap + CHUNK * pick(PAST_CHUNKS + 1, PAST_CHUNKS + 2)
        prompts.append((video_frame(change), change_prompt(prompts[0][1], generator)))
    return Clip(World(seed * 1_000_003 + number, tuple(prompts)), gap, change)


def encode_frames(world: World, codec: PCACodec, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Video frames first to last of a world, `first` a multiple of 4: latents bf16 [n, z, h, w], and the subject's share of each latent
    pixel uint8 [n, h, w]. The first latent frame holds one video frame, the others four.
    """
    video, mask = render(world, torch.arange(first, last + 1))
    mask = torch.cat([mask[:1].expand(TEMPORAL - 1, -1, -1), mask])
    share = (F.avg_pool3d(mask[None], (TEMPORAL, SPATIAL, SPATIAL))[0] * 255).byte()
    return codec.encode(to_unit(video)[None])[0].transpose(0, 1).bfloat16(), share


def encode_clip(clip: Clip, codec: PCACodec) -> dict[str, Tensor]:
    """latents bf16 [21, z, h, w]; subject uint8 [21, h, w], its share of each latent pixel, of 255; words int64 [2, groups], of the sinks
    and of the rest; gap; counts bool [chunks]."""
    sinks, sink_share = encode_frames(clip.world, codec, 0, TEMPORAL * (SINK_FRAMES - 1))
    # One more latent frame is encoded before the rest and dropped, because the codec's first latent frame differs from the others.
    begin = TEMPORAL * (clip.gap + SINK_FRAMES - 1)
    rest, rest_share = encode_frames(clip.world, codec, begin, begin + TEMPORAL * (CLIP_LATENTS - SINK_FRAMES))
    return {
        "latents": torch.cat([sinks, rest[1:]]),
        "subject": torch.cat([sink_share, rest_share[1:]]),
        "words": torch.tensor([value_rows(VOCABULARY, prompt) for prompt in clip.prompts]),
        "gap": torch.tensor(clip.gap),
        "counts": clip.counts(),
    }


def pixel_clip(seed: int, number: int) -> Tensor:
    """A short clip from somewhere in a world, uint8 [VAE_FRAMES, 3, H, W]; half of them while something changes."""
    clip = draw_clip(seed, number)
    first = 4 * (number % 16)
    if clip.change is not None:
        first += max(0, video_frame(clip.change) - VAE_FRAMES + 1) // TEMPORAL * TEMPORAL
    return render(clip.world, torch.arange(first, first + VAE_FRAMES))[0]


def _pixels(seed: int, numbers: range) -> Tensor:
    torch.set_num_threads(1)
    return torch.stack([pixel_clip(seed, number) for number in numbers])


def _save(value: object, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    partial.replace(path)


def make_pixels(work: Path, seed: int, sizes: DataSizes, workers: int, z_dim: int) -> None:
    """Draws the VAE's clips and fits the PCA, where they are not there yet: train.pt and held_out.pt with pixels uint8 [clips, 17, 3, H,
    W], and pca.pt."""
    with pool(workers) as processes:

        def drawn(offset: int, count: int) -> Tensor:
            ranges = [range(start, min(start + 50, count)) for start in range(0, count, 50)]
            return torch.cat(list(processes.map(_pixels, [seed + offset] * len(ranges), ranges)))

        for name, offset, count in (("train", 1, sizes.pixels), ("held_out", 2, sizes.held_out)):
            if not (work / f"{name}.pt").exists():
                _save({"pixels": drawn(offset, count)}, work / f"{name}.pt")
        if not (work / "pca.pt").exists():
            sample = to_unit(drawn(3, sizes.pca))
            codec = PCACodec.fit(sample, z_dim)
            print(f"PCA of {sizes.pca} clips: {codec.psnr(sample[:100]):.2f} dB", flush=True)
            _save(vars(codec), work / "pca.pt")


def _shard(work: Path, name: str, seed: int, number: int, codec: PCACodec, clips: int) -> None:
    torch.set_num_threads(1)
    path = work / f"{name}-{number:03d}.pt"
    if not path.exists():
        encoded = [encode_clip(draw_clip(seed, number * SHARD + i), codec) for i in range(clips)]
        _save({key: torch.stack([clip[key] for clip in encoded]) for key in encoded[0]}, path)


def make_clips(work: Path, seed: int, sizes: DataSizes, workers: int, codec: PCACodec) -> None:
    """Draws the DiT's clips: held-000.pt, then clips-000.pt and so on, tensors as of `encode_clip` stacked."""
    _shard(work, "held", seed + 4, 0, codec, sizes.held_out)
    with pool(workers) as processes:
        starts = range(0, sizes.train, SHARD)
        for job in [processes.submit(_shard, work, "clips", seed, i // SHARD, codec, min(SHARD, sizes.train - i)) for i in starts]:
            job.result()


@dataclass
class Clips:
    """The DiT's training clips in a folder. A step draws from the first clips; their number grows with the number of the step. It waits
    until they exist."""

    work: Path
    count: int
    shards: list[dict[str, Tensor]] = field(default_factory=list)

    @property
    def latent_size(self) -> tuple[int, int]:
        return HEIGHT // SPATIAL, WIDTH // SPATIAL

    def draw(self, step: int, number: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random clips, each tensor [number, ...]."""
        limit = min(self.count, HEAD_START + CLIPS_A_STEP * step)
        picks = torch.randint(limit, (number,), generator=generator).tolist()
        clips = [{key: value[pick % SHARD] for key, value in self._shard(pick // SHARD).items()} for pick in picks]
        return {key: torch.stack([clip[key] for clip in clips]) for key in clips[0]}

    def _shard(self, number: int) -> dict[str, Tensor]:
        while len(self.shards) <= number:
            path = self.work / f"clips-{len(self.shards):03d}.pt"
            while not path.exists():
                time.sleep(POLL_SECONDS)
            self.shards.append(torch.load(path, mmap=True))
        return self.shards[number]
