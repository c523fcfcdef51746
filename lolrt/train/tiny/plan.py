"""The sizes and budgets of the whole training, and its two long stages, which run in parallel."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from lolrt.models.dit import DiTConfig
from lolrt.models.vae.layers import VAEConfig
from lolrt.train.tiny.data import DataSizes
from lolrt.train.tiny.effort import Effort
from lolrt.train.tiny.train_dit import latents_std, train_dit
from lolrt.train.train_dit import dit_config
from lolrt.train.train_vae import train_vae, vae_config

VAE_SHARES = {"decoder": 0.25, "encoder": 0.2, "joint": 0.55}  # of the VAE's minutes


@dataclass
class Plan:
    """All sizes; `smoke` is a miniature in which every line of the script still runs, in less than a minute."""

    seed: int
    minutes_vae: float
    minutes_dit: float
    z_dim: int = 24
    data: DataSizes = field(default_factory=DataSizes)
    dim: int = 256
    layers: int = 6
    dit_batch: int = 4
    vae_batch: int = 4
    compiled: bool = True
    effort: Effort = field(default_factory=Effort)

    @classmethod
    def smoke(cls, seed: int) -> "Plan":
        return cls(seed, 0.05, 0.05, 8, DataSizes(4, 8, 4), 64, 1, 2, 1, False, Effort(1, 9, 1, 1, 1, 2, 1, 1, 6.0, 44, 2, 11))

    @property
    def dit(self) -> DiTConfig:
        return dit_config(self.z_dim, self.dim, self.layers)

    def vae(self, work: Path) -> VAEConfig:
        return vae_config(self.z_dim, latents_std(work))


def train_vae_stages(work: Path, plan: Plan) -> None:
    torch.set_num_threads(1)
    train_vae(work, plan.seed, plan.minutes_vae, VAE_SHARES, plan.vae(work), batch=plan.vae_batch)


def train_dit_stage(work: Path, plan: Plan) -> None:
    torch.set_num_threads(1)
    train_dit(work, plan.seed, plan.minutes_dit, plan.dit, batch=plan.dit_batch, compiled=plan.compiled)
