"""The data set: clips of rendered scenes, as PCA latents for the DiT and as short pixel clips for the VAE.

Every clip is a new scene, drawn from its own seed, so that the set is the same whatever the number of workers.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lolrt.train.codec_pca import PCACodec, to_unit
from lolrt.train.text import value_rows
from lolrt.train.tiny.scenes import VOCABULARY, Scene, render, sample_scene
from lolrt.workers import pool

CLIP_FRAMES = 81  # 21 latent frames
SINK_FRAMES = 3  # latent frames at the start of a clip, which a rollout never forgets
MAX_GAP = 80  # latent frames left out after the sinks
VAE_FRAMES = 17  # shorter clips drift in brightness, longer ones cost time
SHARD = 250  # clips a work item


@dataclass
class DataSizes:
    """Clips of each kind. The held-out clips come after the training clips and share no seed with them."""

    pca: int = 300
    train: int = 5000
    held_out: int = 64


def scene_of(seed: int, clip: int) -> Scene:
    return sample_scene(torch.Generator().manual_seed(seed * 1_000_003 + clip))


def gap_of(clip: int) -> int:
    """Latent frames left out after a clip's sinks: none in every second clip, and every number up to MAX_GAP in the others. A
    rollout sees its sinks from ever farther away, which contiguous clips cannot teach.
    """
    return 1 + clip // 2 % MAX_GAP if clip % 2 else 0


def _encode_frames(scene: Scene, codec: PCACodec, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """Video frames first to last of a scene, `first` a multiple of 4: latents bf16 [n, z, h, w], the object's share of each latent
    pixel uint8 [n, h, w], and the video. The first latent frame holds one video frame, the others four.
    """
    video, mask = render(scene, torch.arange(first, last + 1))
    mask = torch.cat([mask[:1].expand(3, -1, -1), mask])
    share = (F.avg_pool3d(mask[None], (4, 8, 8))[0] * 255).byte()
    return codec.encode(to_unit(video)[None])[0].transpose(0, 1).bfloat16(), share, video


def render_clips(seed: int, clips: range, codec: PCACodec) -> dict[str, Tensor]:
    """The clips of these numbers, as `make_data` describes them."""
    torch.set_num_threads(1)
    latents, shares, words, pixels = [], [], [], []
    for clip in clips:
        scene, skipped = scene_of(seed, clip), 4 * gap_of(clip)
        sinks, sink_share, _ = _encode_frames(scene, codec, 0, 4 * (SINK_FRAMES - 1))
        # One more latent frame is encoded before the rest and dropped, because the codec's first latent frame differs from the others.
        rest, rest_share, video = _encode_frames(scene, codec, skipped + 4 * (SINK_FRAMES - 1), skipped + CLIP_FRAMES - 1)
        latents.append(torch.cat([sinks, rest[1:]]))
        shares.append(torch.cat([sink_share, rest_share[1:]]))
        words.append(torch.tensor(value_rows(VOCABULARY, scene.picks())))
        start = clip * 4 % (len(video) - VAE_FRAMES)
        pixels.append(video[start : start + VAE_FRAMES])
    return {
        "latents": torch.stack(latents),
        "object": torch.stack(shares),
        "words": torch.stack(words),
        "gap": torch.tensor([gap_of(clip) for clip in clips]),
        "pixels": torch.stack(pixels),
    }


def fit_codec(seed: int, clips: int, z_dim: int) -> PCACodec:
    """The latent space of so many clips."""
    sample = to_unit(torch.stack([render(scene_of(seed + 1, clip), torch.arange(VAE_FRAMES))[0] for clip in range(clips)]))
    codec = PCACodec.fit(sample, z_dim)
    print(f"PCA of {clips} clips: {codec.psnr(sample[:50]):.2f} dB", flush=True)
    return codec


def make_data(work: Path, seed: int, sizes: DataSizes, workers: int, z_dim: int) -> None:
    """Fits the PCA and renders all clips into `work`.

    pca.pt: PCACodec. train.pt and held_out.pt: latents bf16 [clips, 21, z, 8, 12], object uint8 [clips, 21, 8, 12] (share of each
    latent pixel that the object covers, 0..255), words int64 [clips, 4], gap int64 [clips] (latent frames left out after the
    third), pixels uint8 [clips, 17, 3, 64, 96].
    """
    codec = fit_codec(seed, sizes.pca, z_dim)
    total = sizes.train + sizes.held_out
    shards = [range(start, min(start + SHARD, total)) for start in range(0, total, SHARD)]
    with pool(workers) as processes:
        parts = list(processes.map(render_clips, [seed] * len(shards), shards, [codec] * len(shards)))
    clips = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    torch.save({key: value[: sizes.train].clone() for key, value in clips.items()}, work / "train.pt")
    torch.save({key: value[sizes.train :].clone() for key, value in clips.items()}, work / "held_out.pt")
    torch.save(vars(codec), work / "pca.pt")
