"""Sessions for tests: the smallest model that the kernels accept, engines whose free pages are NaN, and runs of chunks."""

from __future__ import annotations

import torch
from torch import Tensor

import lolrt
from lolrt.engine.engine import Engine
from lolrt.engine.kv_window import Window
from lolrt.engine.sampler import Sampler
from lolrt.session.config import StreamConfig
from lolrt.session.session import LatentChunk, Session

TWO_PASSES = Sampler(timesteps=(1000, 500))
"""One denoise pass that is followed by noise, and one that is the last."""


def smallest_dit(dtype: torch.dtype = torch.float32) -> lolrt.CausalDiT:
    """A DiT of two layers of two heads of 16 channels, with random weights that make every pass matter to the next."""
    config = lolrt.DiTConfig(
        dim=32, ffn_dim=32, freq_dim=16, text_dim=8, text_len=4, in_dim=4, out_dim=4, num_heads=2, num_layers=2, rope_dims=(8, 4, 4)
    )
    random = torch.random.get_rng_state()
    torch.manual_seed(1)
    dit = lolrt.CausalDiT(config)
    torch.random.set_rng_state(random)
    return dit.to(dtype).requires_grad_(False)


def smallest_text(seed: int, rows: int = 3) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def poison(engine: Engine) -> None:
    """Sets every page and prompt that nobody holds to NaN, so that the result shows if one of them is read."""
    engine.pool.pages.fill_(torch.nan)
    engine.latents.fill_(torch.nan)
    engine._text_pages.fill_(torch.nan)


def smallest_engine(dit: lolrt.CausalDiT, *, pages: int, sessions: int) -> Engine:
    engine = Engine(dit, 4, 4, pages=pages, sessions=sessions)
    poison(engine)
    return engine


def config(window: Window = Window(1, 2, 1), sampler: Sampler = TWO_PASSES, **options: object) -> StreamConfig:
    return StreamConfig(window=window, sampler=sampler, **options)  # type: ignore[arg-type]


def run(engine: Engine, session: Session, chunks: int) -> list[LatentChunk]:
    """The next chunks of a session that is stepped by itself."""
    made: list[LatentChunk] = []
    while len(made) < chunks:
        made += [chunk for chunk in engine.step([session]) if chunk is not None]
    return made


def same(one: list[LatentChunk], other: list[LatentChunk]) -> bool:
    """Whether two runs have the same bits of latents and of attention mass."""
    return len(one) == len(other) and all(
        a.first_frame == b.first_frame
        and a.page_frames == b.page_frames
        and torch.equal(a.latents, b.latents)
        and (a.mass is None) == (b.mass is None)
        and (a.mass is None or b.mass is None or torch.equal(a.mass, b.mass))
        for a, b in zip(one, other, strict=True)
    )
