"""Everything that the card of a trained model says of it, measured from its files, section by section."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

import lolrt.pipeline
from lolrt.models.vae.wan import CausalVAE
from lolrt.train.card import keep
from lolrt.train.codec_pca import to_unit
from lolrt.train.tiny.data import DataSizes, fit_codec, scene_of
from lolrt.train.tiny.effort import Effort
from lolrt.train.tiny.long_run import at_returns, long_run, switches
from lolrt.train.tiny.scenes import render
from lolrt.train.tiny.subject import accuracy, kept_reader
from lolrt.train.train_vae import codec_quality


def measure(out: Path, work: Path, seed: int, data: DataSizes, effort: Effort) -> None:
    """Measures the model in the folder `out`; `work` keeps the reader and what was seen of long videos."""
    pipe = lolrt.pipeline.load(out)
    vae, z_dim = cast(CausalVAE, pipe.vae), pipe.dit.config.in_dim
    parameters = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in (("vae", vae), ("dit", pipe.dit))}
    sizes = {"z_dim": z_dim, "clips": data.train, **{f"{name}_parameters": count for name, count in parameters.items()}}
    clips = [render(scene_of(seed + 2, clip), torch.arange(effort.codec_frames))[0] for clip in range(effort.codec_clips)]
    quality = codec_quality(vae, fit_codec(seed, data.pca, z_dim), to_unit(torch.stack(clips)))
    keep(out, sizes=sizes, codec={"frames": effort.codec_frames, "decibels": quality})
    reader = kept_reader(work, seed, effort.training, effort.training_steps)
    keep(out, reader={"scenes": effort.held_out, "right": accuracy(reader, vae, seed, effort.held_out)})
    keep(out, returns=at_returns(pipe, reader, effort.examples))
    keep(out, long_run=long_run(pipe, reader, effort, work))
    keep(out, switches=switches(pipe, reader, effort, work))
