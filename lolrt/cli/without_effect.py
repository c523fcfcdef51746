"""Finds options that were given but have no effect, and says for each what it needs to have one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

from lolrt.fields import SHORT

if TYPE_CHECKING:
    from lolrt.engine.kv_window import Window
    from lolrt.positions.rope import Rope


class Need(NamedTuple):
    options: tuple[str, ...]
    """The options, by the names of their fields."""
    takes: str
    """The setting that they need to have an effect."""
    given: Callable[[Rope, Window], bool]


def _jitters(rope: Rope, _: Window) -> bool:
    return rope.bases is None and rope.sigma > 0


NEEDS = (
    Need(("sigma",), "no --bases, which say it all", lambda rope, window: rope.bases is None),
    Need(
        ("jitter_seed", "spread", "scope", "share"),
        "--sigma above 0, and no --bases",
        lambda rope, _: rope.bases is None and rope.sigma > 0,
    ),
    Need(("anchor_frames",), "--positions anchored", lambda rope, window: rope.positions == "anchored"),
    Need(("stretch", "length_frames"), "--frequencies other than plain", lambda rope, window: rope.frequencies != "plain"),
    Need(("bias",), "--sinks above 0", lambda rope, window: window.sink_frames > 0),
    Need(("when", "kernel_level", "after_frames", "head_share"), "--sink-bias other than 0", lambda rope, window: window.gate.bias != 0),
    Need(("kernel_level", "after_frames"), "--gate realigned", lambda rope, window: window.gate.when == "realigned"),
    Need(("head_share",), "--gate synchronised", lambda rope, window: window.gate.when == "synchronised"),
    Need(("store_frames", "recall_positions"), "--recall above 0", lambda rope, window: window.recall_frames > 0),
)


def without_effect(given: Collection[str], rope: Rope, window: Window) -> Iterator[str]:
    """A line for each option that was given (by the name of its field) and has no effect with these policies."""
    for need in NEEDS:
        idle = [f"--{SHORT.get(name, name).replace('_', '-')}" for name in need.options if name in given]
        if idle and not need.given(rope, window):
            yield f"{', '.join(idle)} changes nothing: it takes {need.takes}"
