"""What docs/collapse.md compares, and the words for what came out. The interval of a difference chooses them, here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lolrt.lab.policy import Policy
from lolrt.lab.results import Cell, Result
from lolrt.lab.statistics import Interval, difference

DRAWN, EVEN = "jitter 0.8", "jitter 0.8, stratified"

WORDS = {  # measure -> its noun, and the verbs of a lower and of a higher one; {} is the "s" of a single subject
    "dip": ("the dip", "fall{} back further", "fall{} back less"),
    "rise": ("the mass on the sinks", "put{} less mass on the sinks", "put{} more mass on the sinks"),
    "synchrony": ("the heads raised at once", "raise{} fewer heads at once", "raise{} more heads at once"),
    "sink_collapse": ("Sink-Collapse", "get{} a lower Sink-Collapse", "get{} a higher Sink-Collapse"),
    "motion": ("motion", "move{} less", "move{} more"),
    "flow": ("optical flow", "show{} less optical flow", "show{} more optical flow"),
    "luminance": ("the drift of luminance", "keep{} less luminance", "keep{} more luminance"),
    "saturation": ("the drift of saturation", "keep{} less saturation", "keep{} more saturation"),
    "sharpness": ("the drift of sharpness", "keep{} less sharpness", "keep{} more sharpness"),
}


@dataclass(frozen=True)
class Comparison:
    """A measure of one cell minus that of another, or minus another measure of the same cell. "dip" and "rise" are means of the predicted
    frames; the measures of one place are "dip_132", "dip_own", "dip_elsewhere"."""

    cell: str
    measure: str
    other: str
    other_measure: str = ""

    def difference(self, result: Result) -> Interval:
        cell, other = result.cells[self.cell], result.cells[self.other]
        measures = (self.measure, self.other_measure or self.measure)
        return difference(*map(values, (cell, other), measures), paired=draws(cell) == draws(other))

    def verdict(self, result: Result) -> int:
        """1 or -1 where the interval lies above or below 0, else 0: no significant difference."""
        found = self.difference(result)
        return int(found.low > 0) - int(found.high < 0)

    def words(self, result: Result, many: bool = False) -> tuple[str, str]:
        """Verb and object of a sentence about the cell, or about many of which the same is true."""
        what = next(what for what in WORDS if self.measure.startswith(what))
        noun, lower, higher = WORDS[what]
        verdict = self.verdict(result)
        verb = {-1: lower, 0: f"show{{}} no significant difference in {noun}", 1: higher}[verdict].format("" if many else "s")
        at, other = place(self.measure, result), f"`{self.other}`"
        if self.other == self.cell:
            at, other = at or f"at {frames(result)}", place(self.other_measure, result) or f"at {frames(result)}"
        return verb, f"{at} {'than' if verdict else 'from'} {other if verdict else other.removeprefix('at ')}".strip()

    def sentence(self, result: Result) -> str:
        return f"`{self.cell}` {' '.join(self.words(result))}"


def values(cell: Cell, measure: str) -> np.ndarray:
    """[draws, videos]"""
    return cell.at_predicted(measure) if measure in ("dip", "rise") else cell.numbers[measure]


def draws(cell: Cell) -> list[tuple]:
    """What is drawn for each policy; it is the same with another sigma, in fewer heads, or beside a gate."""
    ropes = [Policy.parse(policy).rope for policy in cell.policies]
    return [(rope.jitter_seed, rope.spread, rope.scope, rope.bases) for rope in ropes]


def place(measure: str, result: Result) -> str:
    where = measure.rpartition("_")[2]
    return {"own": "at own frames", "elsewhere": "elsewhere"}.get(where, f"at {where}" if where.isdigit() else "")


def frames(result: Result) -> str:
    return listed(map(str, result.predicted))


def listed(names: Iterable[str]) -> str:
    *most, last = list(names) or ["none"]
    return f"{', '.join(most)} and {last}" if most else last


def groups(result: Result, comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    """The comparisons of which the same is true, in order of the first of each."""
    found: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        found.setdefault(comparison.words(result), []).append(comparison)
    return list(found.values())


def said(result: Result, comparisons: Sequence[Comparison]) -> str:
    """What came out, a clause for all cells of which the same is true; differences in parentheses."""
    clauses = []
    for group in groups(result, comparisons):
        names = listed(f"`{one.cell}` ({one.difference(result).value:+.2f})" for one in group)
        clauses.append(f"{names} {' '.join(group[0].words(result, many=len(group) > 1))}")
    return "; ".join(clauses) + "."


def counted(result: Result, comparisons: Sequence[Comparison]) -> str:
    """How many came out how: of comparisons with another cell each."""
    verdicts = [one.verdict(result) for one in comparisons]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    verbs = {verdict: comparisons[verdicts.index(verdict)].words(result, count > 1)[0] for verdict, count in counts.items()}
    return f"Of {len(verdicts)}, {listed(f'{count} {verbs[verdict]}' for verdict, count in counts.items())}."


# ---- what is compared ------------------------------------------------------------------------------------------------------


def left(result: Result, cells: Iterable[str], *measures: str) -> list[Comparison]:
    """What a cell does at each of the predicted frames, against elsewhere."""
    return [
        Comparison(cell, f"{measure}_{frame}", cell, f"{measure}_elsewhere")
        for cell in cells
        for measure in measures
        for frame in result.predicted
    ]


def jittered(*measures: str) -> list[Comparison]:
    pairs = ((DRAWN, "plain"), (EVEN, "plain"), (EVEN, DRAWN))
    return [Comparison(cell, measure, other) for measure in measures for cell, other in pairs]


def cause(result: Result) -> list[Comparison]:
    return [*left(result, ["plain"], "rise", "synchrony"), *jittered("rise")]


def baseline(result: Result) -> list[Comparison]:
    return [*left(result, ("plain", DRAWN, EVEN), "dip"), *jittered("dip", "motion", "sink_collapse")]


def steps(result: Result, measure: str) -> list[Comparison]:
    """Each row of a table against the one before it."""
    cells = list(result.cells)
    return [Comparison(cell, measure, other) for cell, other in zip(cells[1:], cells[:-1], strict=True)]


def against(result: Result, other: str, measure: str) -> list[Comparison]:
    """Every cell but plain, `other` and, because other tables compare it, jitter alone."""
    return [Comparison(cell, measure, other) for cell in result.cells if cell not in ("plain", DRAWN, other)]


def at_own_frames(result: Result, measure: str, other_measure: str) -> list[Comparison]:
    """A measure at the frames of a cell's own kernel, if it has any, against another measure of the cell."""
    return [
        Comparison(cell, f"{measure}_own", cell, other_measure)
        for cell, found in result.cells.items()
        if cell not in ("plain", DRAWN, EVEN) and f"{measure}_own" in found.numbers
    ]


def elsewhere(result: Result) -> list[Comparison]:
    """Whether anything is left of the fall: the dip at the predicted frames against elsewhere."""
    return [Comparison(cell, "dip", cell, "dip_elsewhere") for cell in result.cells]


def better_bases(result: Result) -> list[Comparison]:
    """What chosen bases are asked: less of the fall and of its cause than LoL's draws, at equal motion."""
    return [one for measure in ("dip", "rise", "motion") for one in against(result, DRAWN, measure)]


def beside_jitter(result: Result) -> list[Comparison]:
    """A gate with jitter, against that gate alone."""
    return [Comparison(cell, "dip", "sinks shut where synchronised") for cell in result.cells if "and shut" in cell]


def held_back(result: Result) -> list[Comparison]:
    """What gates are asked: against plain RoPE, against LoL at equal motion, and whether anything is left of the fall."""
    falls = [*against(result, "plain", "dip"), *against(result, DRAWN, "dip"), *beside_jitter(result), *elsewhere(result)]
    return [*falls, *against(result, DRAWN, "motion")]
