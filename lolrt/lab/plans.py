"""The experiments, as cells of policies: what is compared, and the policies of each side. Imports are delayed, so that `--help` is fast.

Numbers of LoL (arXiv 2601.16914): its settings and ablations, where an experiment repeats one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

SIGMAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)  # with a sigma of 1 a base could be 0
SHARES = (0.25, 0.5, 0.75)
BASES = (6000, 8000, 12000, 16000, 20000)
SINKS = (1, 5)
PERIODS = {6: 51, 7: 77, 8: 118, 9: 179, 10: 272}  # of the pairs that RIFLEx may slow down, counted from 1: theta 10000, 44 channels
LENGTH = 132  # the last frames before the first collapse
SYNCHRONISED = "bias=-inf,when=synchronised,head_share=0.4"

Cells = dict[str, list[str]]
PLAIN: Cells = {"plain": ["sigma=0"]}


@dataclass(frozen=True)
class Setting:
    """The model and the sizes that cells are made for."""

    draws: int
    """The jitter draws of each cell that has random bases."""
    frames: int
    """The latent frames of a video."""
    layers: int
    heads: int
    """The heads of one layer of the model."""
    pairs: int
    """The temporal channel pairs of a head."""

    def jitter(self, options: str) -> list[str]:
        return jitter(options, self.draws, self.layers, self.heads)


@dataclass(frozen=True)
class Experiment:
    question: str
    cells: Callable[[Setting], Cells]
    """Returns the cells: name -> policies, one for each jitter draw."""


def jitter(options: str, draws: int, layers: int, heads: int) -> list[str]:
    """The policies of the first jitter seeds with different bases. Stratified bases of four heads have only 24 orders, and a repeated draw
    counts once. Returns fewer than `draws` if there are no more."""
    from lolrt.lab.policy import Policy

    found: dict[bytes, str] = {}
    for seed in range(100 * draws):
        policy = f"{options},jitter_seed={seed}"
        found.setdefault(Policy.parse(policy).rope.head_bases(layers, heads).tobytes(), policy)
        if len(found) == draws:
            break
    return list(found.values())


def drawn(setting: Setting) -> Cells:
    return {
        **PLAIN,
        "jitter 0.8": setting.jitter("sigma=0.8"),
        "jitter 0.8, stratified": setting.jitter("sigma=0.8,spread=stratified"),
    }


def chosen(setting: Setting) -> Cells:
    """The cells of chosen bases. A draw is the order of the bases over the heads. Orders do not repeat as long as there are others."""
    from lolrt.lab.bases import least_ripple, log_spaced, orders

    def ordered(bases: Iterable[float]) -> list[str]:
        return ["bases=" + ":".join(f"{base:.0f}" for base in order) for order in orders(bases, setting.draws)]

    return {
        **drawn(setting),
        "log-spaced": ordered(log_spaced(setting.heads, 0.8)),
        "least ripple": ordered(least_ripple(setting.heads, setting.pairs, 0.8)),
        "jitter 0.8, by layer": setting.jitter("sigma=0.8,scope=layer"),
        "stratified, by layer": setting.jitter("sigma=0.8,spread=stratified,scope=layer"),
    }


def rivals(setting: Setting) -> Cells:
    stretch = f"stretch={max(1, setting.frames / LENGTH):.4g}"
    return {
        **drawn(setting),
        "PI": [f"sigma=0,frequencies=pi,{stretch}"],
        "NTK": [f"sigma=0,frequencies=ntk,{stretch}"],
        "YaRN": [f"sigma=0,frequencies=yarn,{stretch}"],
        "RIFLEx": [f"sigma=0,frequencies=riflex,{stretch}"],
        "window positions": ["sigma=0,positions=window"],
        "sinks anchored at 20": ["sigma=0,positions=anchored"],
        "no sinks": ["sigma=0,sink_frames=0,recent_frames=12"],
    }


def gates(setting: Setting) -> Cells:
    return {
        **drawn(setting),
        "sinks held back by 2 nats": ["sigma=0,bias=-2"],
        "sinks shut where realigned": ["sigma=0,bias=-inf,when=realigned"],
        "sinks shut where synchronised": [f"sigma=0,{SYNCHRONISED}"],
        "jitter 0.8, and shut where synchronised": setting.jitter(f"sigma=0.8,{SYNCHRONISED}"),
        "stratified, and shut where synchronised": setting.jitter(f"sigma=0.8,spread=stratified,{SYNCHRONISED}"),
    }


EXPERIMENTS = {
    "baseline": Experiment(
        "does plain RoPE collapse at the predicted frames, and jittered RoPE not?",
        drawn,
    ),
    "sigma": Experiment(
        "how much jitter, against how much motion?",
        lambda setting: {**PLAIN, **{f"sigma {sigma}": setting.jitter(f"sigma={sigma}") for sigma in SIGMAS}},
    ),
    "share": Experiment(
        "must all heads be jittered?",
        lambda setting: {
            **PLAIN,
            **{f"{share:.0%} of heads": setting.jitter(f"sigma=0.8,share={share}") for share in SHARES},
            "all heads": setting.jitter("sigma=0.8"),
        },
    ),
    "bases": Experiment("are bases that are chosen better than drawn ones?", chosen),
    "rivals": Experiment("what do other policies do?", rivals),
    "gates": Experiment("does it help to hold the sinks back, and to do so beside jitter?", gates),
    "base": Experiment(
        "does another base for all heads help?",
        lambda _: {**PLAIN, **{f"base {base}": [f"bases={base}"] for base in BASES}},
    ),
    "sinks": Experiment(
        "does the number of sinks matter?",
        lambda _: {**PLAIN, **{f"{sinks} sinks": [f"sigma=0,sink_frames={sinks},recent_frames={12 - sinks}"] for sinks in SINKS}},
    ),
    "dimension": Experiment(
        "does slowing one pair help?",
        lambda setting: {
            **PLAIN,
            **{
                f"pair {k}": [f"sigma=0,frequencies=riflex,length_frames={period},stretch={max(1, setting.frames / period):.4g}"]
                for k, period in PERIODS.items()
            },
        },
    ),
    "offsets": Experiment(
        "with the content held fixed and the frame number alone moved, when do heads turn to the sinks?",
        drawn,
    ),
}
