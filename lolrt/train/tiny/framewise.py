"""Command line: makes `tiny` frame-wise. Its training goes on with chunks of one latent frame, for the laboratory.

    python -m lolrt.train.tiny.framewise --work build/framewise           # leaves build/framewise/model
    lolrt lab experiment baseline --model build/framewise/model           # what returns, and what jitter does

The runtime's window stays as it was: 3 sink frames, and the 8 frames before the one that is made. The model is not distilled: a frame
takes as many passes as a chunk of `tiny`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file

import lolrt
from lolrt.models.vae.wan import CausalVAE
from lolrt.train.codec_pca import load_codec, to_unit
from lolrt.train.teacher_forcing import Chunking
from lolrt.train.tiny.data import VAE_FRAMES, DataSizes, make_data, scene_of
from lolrt.train.tiny.scenes import render
from lolrt.train.tiny.train_dit import train_dit

FRAMEWISE = Chunking(frames=1, sinks=3, past=8)
TINY = Path(lolrt.__file__).parent / "_embedded" / "tiny"
SIZES = DataSizes(train=2000)
LEAST_AGREEMENT = 0.95  # correlation of the data's latents with the VAE's, in each channel


def check_codec(work: Path, vae: CausalVAE, seed: int) -> None:
    """Raises `lolrt.Error` where the data's latents are not those that `tiny` lives on: a principal component has no sign of its own."""
    video = to_unit(render(scene_of(seed, 0), torch.arange(VAE_FRAMES))[0])
    ours = load_codec(work).encode(video[None])[0].flatten(1)
    theirs = vae.encode(video.movedim(1, 0), {}).movedim(1, 0).flatten(1).float()
    agreement = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(ours, theirs, strict=True)])
    if agreement.min() < LEAST_AGREEMENT:
        raise lolrt.Error(f"the principal components here are not those of `tiny`: they correlate with its VAE by {agreement.tolist()}")


def export(work: Path, out: Path) -> None:
    """Writes `tiny` with the new weights, and settings that say how it is sampled, to `out`."""
    shutil.copytree(TINY, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md", "measured.json", "training.log"))
    averaged = torch.load(work / "dit.pt")["averaged"]
    save_file({name: x.bfloat16().contiguous() for name, x in averaged.items()}, out / "diffusion_pytorch_model.safetensors")
    settings = json.loads((TINY / "model.json").read_text())
    settings |= {"name": "tiny, frame by frame", "chunk_frames": FRAMEWISE.frames}
    (out / "model.json").write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lolrt.train.tiny.framewise", description="Makes `tiny` frame-wise.")
    parser.add_argument("--work", type=Path, default=Path("build/framewise"), help="data, checkpoint and model (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=25.0, help="CPU time of the training, on one thread (default: 25)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    pipe = lolrt.load("tiny", torch.float32)
    if not (args.work / "pca.pt").exists():
        make_data(args.work, args.seed, SIZES, workers=1, z_dim=pipe.dit.config.in_dim)
    check_codec(args.work, cast(CausalVAE, pipe.vae), args.seed)
    train_dit(args.work, args.seed, args.minutes, pipe.dit.config, batch=4, chunking=FRAMEWISE, start=pipe.dit)
    export(args.work, args.work / "model")


if __name__ == "__main__":
    main()
