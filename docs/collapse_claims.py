"""What docs/collapse.md claims: differences between cells of a kept result, whose verdicts come from their intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lolrt.lab.policy import Policy
from lolrt.lab.results import Cell, Result
from lolrt.lab.statistics import difference

DRAWN, EVEN = "jitter 0.8", "jitter 0.8, stratified"


@dataclass(frozen=True)
class Claim:
    """That a measure of one cell is lower ("<") or higher (">") than of another, or than another measure of its own cell."""

    text: str
    cell: str
    measure: str
    sign: str
    other_cell: str
    other_measure: str = ""

    def row(self, result: Result) -> list[str]:
        cell, other = result.cells[self.cell], result.cells[self.other_cell]
        found = difference(
            values(cell, self.measure), values(other, self.other_measure or self.measure), paired=draws(cell) == draws(other)
        )
        low, high = (found.low, found.high) if self.sign == ">" else (-found.high, -found.low)
        verdict = "**holds**" if low > 0 else "**the opposite holds**" if high < 0 else "not told apart"
        return [self.text, str(found), verdict]


def values(cell: Cell, measure: str) -> np.ndarray:
    """[draws, videos]; "dip" and "rise" are means of the predicted frames."""
    return cell.at_predicted(measure) if measure in ("dip", "rise") else cell.numbers[measure]


def draws(cell: Cell) -> list[tuple]:
    """What is drawn for each policy; it is the same with another sigma, in fewer heads, or beside a gate."""
    ropes = [Policy.parse(policy).rope for policy in cell.policies]
    return [(rope.jitter_seed, rope.spread, rope.scope, rope.bases) for rope in ropes]


CAUSE = [
    Claim("plain RoPE: more mass on the sinks at 132 than elsewhere", "plain", "rise_132", ">", "plain", "rise_elsewhere"),
    Claim("and at 201", "plain", "rise_201", ">", "plain", "rise_elsewhere"),
    Claim("and more heads at once at 201", "plain", "synchrony_201", ">", "plain", "synchrony_elsewhere"),
    Claim("drawn jitter: less at 201 than plain", DRAWN, "rise_201", "<", "plain"),
    Claim("stratified: less at 201 than drawn", EVEN, "rise_201", "<", DRAWN),
]
SECOND_CAUSE = [
    Claim("drawn jitter: less mass than plain", DRAWN, "rise", "<", "plain"),
    Claim("stratified: less mass than plain", EVEN, "rise", "<", "plain"),
    Claim("stratified: less mass than drawn", EVEN, "rise", "<", DRAWN),
]
BASELINE = [
    Claim("plain RoPE falls back at 132: dip deeper than elsewhere", "plain", "dip_132", "<", "plain", "dip_elsewhere"),
    Claim("and at 201", "plain", "dip_201", "<", "plain", "dip_elsewhere"),
    Claim("drawn jitter of 0.8: shallower than plain", DRAWN, "dip", ">", "plain"),
    Claim("stratified: shallower than plain", EVEN, "dip", ">", "plain"),
    Claim("stratified: shallower than drawn", EVEN, "dip", ">", DRAWN),
    Claim("but with drawn jitter still deeper at 132 than elsewhere", DRAWN, "dip_132", "<", DRAWN, "dip_elsewhere"),
    Claim("and with stratified", EVEN, "dip_132", "<", EVEN, "dip_elsewhere"),
    Claim("stratified: less motion than plain", EVEN, "motion", "<", "plain"),
    Claim("Sink-Collapse tells drawn jitter from plain", DRAWN, "sink_collapse", "<", "plain"),
    Claim("Sink-Collapse tells stratified jitter from plain", EVEN, "sink_collapse", "<", "plain"),
]


def steps(result: Result, measure: str, sign: str, text: str) -> list[Claim]:
    """That a measure goes one way along the rows of a table, neighbour by neighbour, and from the first to the last."""
    cells = list(result.cells)
    pairs = [*zip(cells[1:], cells[:-1], strict=True), (cells[-1], cells[0])]
    return [Claim(f"{text}: {cell} against {other}", cell, measure, sign, other) for cell, other in dict.fromkeys(pairs)]


def against(result: Result, other: str, text: str, measure: str, sign: str) -> list[Claim]:
    """The same difference of every cell but plain, `other` and, where these are compared elsewhere, jitter alone."""
    cells = [cell for cell in result.cells if cell not in ("plain", DRAWN, other)]
    return [Claim(f"{text}: {cell} against {other}", cell, measure, sign, other) for cell in cells]


def better_bases(result: Result) -> list[Claim]:
    """What chosen bases are asked: less of the fall and of its cause than LoL's draws, at equal motion."""
    return [
        *against(result, DRAWN, "shallower", "dip", ">"),
        *against(result, DRAWN, "less mass", "rise", "<"),
        *against(result, DRAWN, "less motion", "motion", "<"),
    ]


def at_own_frames(result: Result) -> list[Claim]:
    """That a cell falls back at its own frames, if it has any."""
    return [
        Claim(f"{cell}: deeper at its own frames than elsewhere", cell, "dip_own", "<", cell, "dip_elsewhere")
        for cell, found in result.cells.items()
        if cell not in ("plain", DRAWN, EVEN) and "dip_own" in found.numbers
    ]


def held_back(result: Result) -> list[Claim]:
    """What gates are asked: against plain RoPE, against LoL at equal motion, and whether anything is left of the fall."""
    return [
        *against(result, "plain", "shallower", "dip", ">"),
        *against(result, DRAWN, "shallower", "dip", ">"),
        *(Claim(f"{cell}: dip deeper than elsewhere", cell, "dip", "<", cell, "dip_elsewhere") for cell in result.cells),
        *against(result, DRAWN, "less motion", "motion", "<"),
    ]
