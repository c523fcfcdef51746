"""The sizes and budgets of `journey`'s training, and its long stages. All but the last run in parallel, on one thread each."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

import lolrt.pipeline
from lolrt.models.dit import DiTConfig
from lolrt.models.vae.layers import VAEConfig
from lolrt.train.codec_pca import load_codec
from lolrt.train.finetune_decoder import finetune_decoder
from lolrt.train.journey.data import Clips, DataSizes, make_clips
from lolrt.train.journey.measure import Effort
from lolrt.train.journey.train_dit import train_dit
from lolrt.train.journey.watch import OWN, Video, latents
from lolrt.train.journey.world import draw_prompt
from lolrt.train.train_dit import dit_config
from lolrt.train.train_vae import train_vae, vae_config

VAE_SHARES = {"decoder": 0.5, "encoder": 0.19, "joint": 0.31}  # of the VAE's minutes
MADE_SEED, MADE_CHUNKS = 1000, 8  # of the DiT's streams that the decoder is fine-tuned on; those that are measured have lower seeds


@dataclass
class Plan:
    """All sizes; `smoke` is a miniature in which every line of the script still runs."""

    seed: int
    minutes_vae: float = 20.0
    minutes_finetune: float = 42.0
    minutes_dit: float = 100.0
    z_dim: int = 24
    data: DataSizes = field(default_factory=DataSizes)
    dim: int = 256
    layers: int = 7
    dit_batch: int = 2
    vae_batch: int = 4
    compiled: bool = True
    effort: Effort = field(default_factory=Effort)
    start: Path | None = None
    """The folder of an exported model: its codec and VAE are taken over, and the training of its DiT goes on."""

    @classmethod
    def smoke(cls, seed: int) -> "Plan":
        return cls(seed, 0.05, 0.05, 0.05, 8, DataSizes(4, 6, 4, 4, 2), 64, 1, 2, 1, False, Effort(1, 9, 1, 1, 1, 1, 1, 3, 4, 22, 2, 11))

    @property
    def dit(self) -> DiTConfig:
        return dit_config(self.z_dim, self.dim, self.layers)

    @property
    def vae(self) -> VAEConfig:
        """One residual block a resolution fewer than Wan's: decoding is what takes most of the time. PCA latents have a deviation of 1."""
        return vae_config(self.z_dim, 1.0, num_res_blocks=1)


def clips_stage(work: Path, plan: Plan) -> None:
    make_clips(work, plan.seed, plan.data, 1, load_codec(work))


def vae_stage(work: Path, plan: Plan) -> None:
    """A VAE that was taken over stays."""
    torch.set_num_threads(1)
    if plan.start is None:
        train_vae(work, plan.seed, plan.minutes_vae, VAE_SHARES, plan.vae, batch=plan.vae_batch)


def dit_stage(work: Path, plan: Plan) -> None:
    torch.set_num_threads(1)
    clips = Clips(work, plan.data.train)
    train_dit(work, plan.seed, plan.minutes_dit, plan.dit, clips, batch=plan.dit_batch, compiled=plan.compiled, start=plan.start)


def finetune_stage(work: Path, plan: Plan, model: Path) -> None:
    """model: the folder of the exported model, whose DiT makes some of the latents."""
    generator = torch.Generator().manual_seed(plan.seed + 16)
    pipe = lolrt.pipeline.load(model)
    videos = [Video(OWN, ((0, draw_prompt(generator)),), MADE_SEED + number, MADE_CHUNKS) for number in range(plan.data.made)]
    made = torch.stack([latents(pipe, video, work) for video in videos])
    finetune_decoder(work, plan.minutes_finetune, plan.vae, made, batch=plan.vae_batch)
