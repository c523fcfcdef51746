"""The experiments, as cells of policies: what is compared, and which policies stand for it. Imports nothing, so that asking for help
stays fast.

Numbers of LoL (arXiv 2601.16914): its settings and ablations, where an experiment repeats one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SIGMAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)  # a sigma of 1 would let a base be 0
SHARES = (0.25, 0.5, 0.75)
BASES = (6000, 8000, 12000, 16000, 20000)
SINKS = (1, 5)
PERIODS = {6: 51, 7: 77, 8: 118, 9: 179, 10: 272}  # of the pairs that RIFLEx may slow down, counted from 1: theta 10000, 44 channels
LENGTH = 132  # the last frames before the first collapse

Cells = dict[str, list[str]]
PLAIN: Cells = {"plain": ["sigma=0"]}


@dataclass(frozen=True)
class Experiment:
    question: str
    cells: Callable[[int, int], Cells]
    """(draws, latent frames of a video) -> name of a cell -> its policies, one a jitter draw."""


def jitter(draws: int, options: str) -> list[str]:
    return [f"{options},jitter_seed={draw}" for draw in range(draws)]


def rivals(draws: int, frames: int) -> Cells:
    stretch = f"stretch={max(1, frames / LENGTH):.4g}"
    return {
        **PLAIN,
        "jitter 0.8": jitter(draws, "sigma=0.8"),
        "jitter 0.8, stratified": jitter(draws, "sigma=0.8,spread=stratified"),
        "PI": [f"sigma=0,frequencies=pi,{stretch}"],
        "NTK": [f"sigma=0,frequencies=ntk,{stretch}"],
        "YaRN": [f"sigma=0,frequencies=yarn,{stretch}"],
        "RIFLEx": [f"sigma=0,frequencies=riflex,{stretch}"],
        "window positions": ["sigma=0,positions=window"],
        "sinks anchored at 20": ["sigma=0,positions=anchored"],
        "sinks shut where realigned": ["sigma=0,bias=-inf,when=realigned"],
        "sinks shut where synchronised": ["sigma=0,bias=-inf,when=synchronised,head_share=0.4"],
        "no sinks": ["sigma=0,sink_frames=0,recent_frames=12"],
    }


EXPERIMENTS = {
    "baseline": Experiment(
        "does plain RoPE collapse at the predicted frames, and jittered RoPE not?",
        lambda draws, _: {
            **PLAIN,
            "jitter 0.8": jitter(draws, "sigma=0.8"),
            "jitter 0.8, stratified": jitter(draws, "sigma=0.8,spread=stratified"),
        },
    ),
    "sigma": Experiment(
        "how much jitter, against how much motion?",
        lambda draws, _: {**PLAIN, **{f"sigma {sigma}": jitter(draws, f"sigma={sigma}") for sigma in SIGMAS}},
    ),
    "share": Experiment(
        "must all heads be jittered?",
        lambda draws, _: {
            **PLAIN,
            **{f"{share:.0%} of heads": jitter(draws, f"sigma=0.8,share={share}") for share in SHARES},
            "all heads": jitter(draws, "sigma=0.8"),
        },
    ),
    "rivals": Experiment("what do other policies do?", rivals),
    "base": Experiment(
        "does another base for all heads help?",
        lambda *_: {**PLAIN, **{f"base {base}": [f"bases={base}"] for base in BASES}},
    ),
    "sinks": Experiment(
        "does the number of sinks matter?",
        lambda *_: {**PLAIN, **{f"{sinks} sinks": [f"sigma=0,sink_frames={sinks},recent_frames={12 - sinks}"] for sinks in SINKS}},
    ),
    "dimension": Experiment(
        "does slowing one pair help?",
        lambda _, frames: {
            **PLAIN,
            **{
                f"pair {k}": [f"sigma=0,frequencies=riflex,length_frames={period},stretch={max(1, frames / period):.4g}"]
                for k, period in PERIODS.items()
            },
        },
    ),
    "offsets": Experiment(
        "with the content held fixed and the frame number alone moved, when do heads turn to the sinks?",
        lambda draws, _: {
            **PLAIN,
            "jitter 0.8": jitter(draws, "sigma=0.8"),
            "jitter 0.8, stratified": jitter(draws, "sigma=0.8,spread=stratified"),
        },
    ),
}
