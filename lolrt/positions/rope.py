"""Rotary position policies: the frequencies of each head, and the offset between a query frame and a page.

Every policy results in one table, `rotation[page, frame, head, pair] = (cos, sin)`, which the attention kernel applies to Q. Offsets are
integers, and phases are integer fractions of a turn (csrc/core/phase). So a table at frame 10^9 is as exact as one at frame 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lolrt import _core
from lolrt.errors import MOST_FRAMES, Error, check_real, check_whole
from lolrt.positions.frequencies import POLICIES, yarn_amplitude

# The limits of bases. A smaller one would turn some pair by many turns from frame to frame, a larger one would turn none but the first.
LEAST_BASE, MOST_BASE = 1e-3, 1e15


@dataclass(frozen=True)
class Rope:
    """Temporal rotary positions of a rollout.

    Multi-head RoPE jitter (LoL, arXiv 2601.16914, Alg. 1): head h uses the base theta_h = theta * (1 + sigma * eps_h), fixed for the
    rollout, so that the phases of all heads do not re-align with the sink frames at the same time. sigma = 0 is plain RoPE, bit for bit.
    The frequencies of head h are theta_h^(-2 i / d), i = 0 .. d / 2 - 1, over the d temporal channels of a head. `frequencies` changes
    them, and `positions` chooses the positions that they apply to.
    """

    positions: Literal["absolute", "window", "anchored"] = "absolute"
    """What RoPE counts. "absolute": the latent frame's number (Self-Forcing, LongLive, LoL). "window": its index in the window,
    0 .. pages - 1 (LongLive's "infinity" variant; Infinity-RoPE, arXiv 2511.20649). "anchored": the frame's number, but the sinks follow
    the chunk, so that the first one is never more than `anchor_frames` behind its last frame (the temporal RoPE adjustment of Deep
    Forcing, arXiv 2512.05081, with the distance left to choose); anchored right behind the recent frames, they have their index in
    the window."""
    sigma: float = 0.8
    """Strength of the per-head RoPE jitter, at least 0 and less than 1; 0 is plain RoPE."""
    jitter_seed: int = 0
    """Draws the jitter, eps; the same seed gives the same bases everywhere."""
    spread: Literal["uniform", "stratified"] = "uniform"
    """How the jitter is drawn. "uniform": eps_h ~ U[-1, 1], the paper's rule. "stratified": the values linspace(-1, 1, heads) in random
    order, so that no two heads have bases close together."""
    scope: Literal["model", "layer"] = "model"
    """Whether layers share the heads' jitter ("model") or have their own ("layer"). LoL does not say which."""
    bases: Sequence[float] | Sequence[Sequence[float]] | None = None
    """Explicit bases, one for each head or one for all, instead of those that the jitter draws. [heads] or [layers, heads] in Python; in a
    text they stand between colons. sigma, jitter_seed, spread and scope then play no part."""
    theta: float = 10000.0
    """The base that the model was trained with."""
    share: float = 1.0
    """Share of the heads that are jittered, chosen by jitter_seed; the others keep theta (LoL's ablation)."""
    frequencies: Literal["plain", "pi", "ntk", "yarn", "riflex"] = "plain"
    """How RoPE's frequencies are stretched: not at all, position interpolation, NTK-aware, YaRN, RIFLEx. Formulas are in
    `lolrt.positions.frequencies`."""
    length_frames: int = 132
    """Latent frames that the model covers without stretching, L. LoL takes the last ones before the first collapse."""
    stretch: float = 1.0
    """How many times as many frames the frequencies shall cover, s = L' / L; 1 changes nothing but in RIFLEx."""
    anchor_frames: int = 20
    """Frames that anchored sinks stay behind at most; 20 is what a model saw that was trained on 21 latent frames."""
    recall_positions: Literal["near", "kept"] = "near"
    """Where recalled frames stand: right behind the recent ones ("near"), as if they had just left the window, or where they were
    ("kept"). See `lolrt.engine.memory_bank`."""

    def __post_init__(self) -> None:
        check_whole(jitter_seed=self.jitter_seed, anchor_frames=self.anchor_frames)
        check_real(sigma=self.sigma, theta=self.theta, share=self.share, stretch=self.stretch, length_frames=self.length_frames)
        if self.positions not in ("absolute", "window", "anchored"):
            raise Error(f'positions is {self.positions!r}; expected "absolute", "window" or "anchored"')
        if self.recall_positions not in ("near", "kept"):
            raise Error(f'recall_positions is {self.recall_positions!r}; expected "near" or "kept"')
        if self.spread not in ("uniform", "stratified"):
            raise Error(f'spread is {self.spread!r}; expected "uniform" or "stratified"')
        if self.scope not in ("model", "layer"):
            raise Error(f'scope is {self.scope!r}; expected "model" or "layer"')
        if not 0 <= self.jitter_seed < 2**32:
            raise Error(f"jitter_seed is {self.jitter_seed}; expected a number from 0 to 2^32 - 1")
        if not 0 <= self.sigma < 1:
            raise Error(f"sigma is {self.sigma}; expected 0 (plain RoPE) or more, and less than 1, so that every base stays positive")
        if not LEAST_BASE <= self.theta <= MOST_BASE:
            raise Error(f"theta is {self.theta}; expected a base from {LEAST_BASE:g} to {MOST_BASE:g}, such as 10000")
        if not 0 <= self.share <= 1:
            raise Error(f"share is {self.share}; expected 0 (no head is jittered) to 1 (all are)")
        if self.frequencies not in POLICIES:
            raise Error(f"frequencies is {self.frequencies!r}; expected one of {', '.join(POLICIES)}")
        if not (1 <= self.length_frames <= MOST_FRAMES and 1 <= self.stretch <= MOST_FRAMES):
            raise Error(f"length_frames is {self.length_frames} and stretch {self.stretch}; expected both to be from 1 to {MOST_FRAMES:,}")
        if not 0 <= self.anchor_frames <= MOST_FRAMES:
            raise Error(f"anchor_frames is {self.anchor_frames}; expected from 0 to {MOST_FRAMES:,} frames")

    def head_bases(self, layers: int, heads: int) -> np.ndarray:
        """The bases, float64 [1, heads], or [layers, heads] if they differ by layer."""
        if self.bases is not None:
            bases = np.atleast_2d(np.asarray(self.bases, dtype=np.float64))
            if bases.shape == (1, 1):
                bases = np.full((1, heads), bases[0, 0])
            if bases.shape not in ((1, heads), (layers, heads)):
                raise Error(f"bases have shape {list(np.shape(self.bases))}; expected [{heads}] or [{layers}, {heads}] for this model")
            if not ((bases >= LEAST_BASE) & (bases <= MOST_BASE)).all():
                raise Error(f"bases are {bases.ravel()[:12].tolist()}; expected numbers from {LEAST_BASE:g} to {MOST_BASE:g}")
            return bases
        random = np.random.RandomState(self.jitter_seed)  # the legacy generator, because its output never changes
        count = heads * (layers if self.scope == "layer" else 1)
        eps = random.uniform(-1, 1, count) if self.spread == "uniform" else random.permutation(np.linspace(-1, 1, count))
        if self.share < 1:
            eps[random.permutation(count)[round(self.share * count) :]] = 0
        return self.theta * (1 + self.sigma * eps.reshape(-1, heads))

    def radians(self, layers: int, heads: int, pairs: int) -> np.ndarray:
        """The frequencies in radians per frame, float64 [1 or layers, heads, pairs]."""
        return POLICIES[self.frequencies](self.head_bases(layers, heads), pairs, self.length_frames, self.stretch)

    @property
    def amplitude(self) -> float:
        """The factor on the rotation tables: 1, or that of YaRN's temperature on the rotated channels."""
        return yarn_amplitude(self.stretch) if self.frequencies == "yarn" else 1.0

    def increments(self, layers: int, heads: int, pairs: int) -> np.ndarray:
        """The phase per frame in units of 2^-64 turns, uint64 [1 or layers, heads, pairs]."""
        radians = self.radians(layers, heads, pairs)
        turns = np.empty(radians.shape, dtype=np.uint64)
        _core.phase_increments(radians.reshape(-1), turns.reshape(-1))
        return turns

    def offsets(self, page_frames: Sequence[int], chunk_frames: int, sink_frames: int = 0, recalled_frames: int = 0) -> np.ndarray:
        """Query position minus page position, int64 [pages, chunk_frames]; the first `sink_frames` pages are the sinks, then come
        `recalled_frames`, and the last `chunk_frames` are the chunk's own."""
        positions = np.array(page_frames, dtype=np.int64)
        recent = sink_frames + recalled_frames
        if recalled_frames and self.recall_positions == "near":
            positions[sink_frames:recent] = positions[recent] - np.arange(recalled_frames, 0, -1)
        if self.positions == "window":
            positions = np.arange(len(positions), dtype=np.int64)
        elif self.positions == "anchored":
            reach = max(self.anchor_frames, len(positions) - 1)  # sinks never get positions among the recent frames
            positions[:sink_frames] += max(0, positions[-1] - positions[0] - reach)
        return positions[None, -chunk_frames:] - positions[:, None]


def rotation_tables(increments: np.ndarray, offsets: np.ndarray) -> Tensor:
    """(cos, sin) of increments [layers, heads, pairs] at offsets [pages, frames]: float32 [layers, pages, frames, heads, pairs, 2],
    on the CPU."""
    layers, heads, pairs = increments.shape
    table = torch.empty(layers, *offsets.shape, heads, pairs, 2, dtype=torch.float32, device="cpu")
    for layer in range(layers):
        _core.rotation_table(increments[layer], offsets, table[layer])
    return table


def spatial_rotation(rows: int, columns: int, row_pairs: int, column_pairs: int, theta: float = 10000.0) -> Tensor:
    """(cos, sin) of each token's row and column in its frame, float32 [rows * columns, row_pairs + column_pairs, 2], tokens row by row.

    Rows and columns have a spectrum each, theta^(-i / pairs). Source: Wan2.1, `rope_params` and `rope_apply`.
    """
    y, x = np.divmod(np.arange(rows * columns), columns)
    angles = [index[:, None] * theta ** (-np.arange(pairs) / pairs) for index, pairs in ((y, row_pairs), (x, column_pairs))]
    angle = np.concatenate(angles, axis=1)
    return torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32))
