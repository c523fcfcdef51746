"""The conclusions of docs/collapse.md. What is written here asks a question, or says how to read an answer; what came out is said by
collapse_claims, and every number is one of a result."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable

from collapse_claims import (
    DRAWN,
    EVEN,
    WORDS,
    Comparison,
    against,
    at_own_frames,
    beside_jitter,
    counted,
    elsewhere,
    jittered,
    left,
    listed,
    said,
    steps,
)

from lolrt.lab.results import Result

SNAP_BACK_P = 0.05
SECOND = "second-"  # results of the second model


def on_both(results: dict[str, Result], name: str, comparisons: Callable[[Result], list[Comparison]]) -> str:
    return " ".join(f"On `{one.model}`, {said(one, comparisons(one))}" for one in (results[name], results[SECOND + name]))


def draws(result: Result, cell: str) -> str:
    """How far the draws of a cell lie apart."""
    texts = []
    for frame in result.predicted:
        plain, means = (result.cells[name].numbers[f"dip_{frame}"].mean(1) for name in ("plain", cell))
        above = int((means > plain.mean()).sum())
        texts.append(
            f"at {frame} the dips of {len(means)} draws are {means.min():.2f} to {means.max():.2f}, {above} of them above that of `plain`, "
            f"which is {plain.mean():.2f}"
        )
    return f"`{cell}`: {'; '.join(texts)}."


def snapped(result: Result) -> str:
    """What the snap-back test finds in the first draw of each cell."""
    tests = {name: cell.snap_back for name, cell in result.cells.items() if cell.snap_back}
    found = listed(f"`{name}` ({frame})" for name, (frame, _, p) in tests.items() if p < SNAP_BACK_P)
    missed = listed(f"`{name}`" for name, (_, _, p) in tests.items() if p >= SNAP_BACK_P)
    return f"Videos fall together at a frame, by the snap-back test (p below {SNAP_BACK_P}): {found}; at no frame: {missed}."


def ahead_of_drawn(results: dict[str, Result]) -> str:
    """Which cells fall back less than drawn jitter, on which of the models."""

    def verdicts(names: Iterable[str]) -> dict[str, int]:
        found = (results[name] for name in names if name in results)
        return {one.cell: one.verdict(result) for result in found for one in against(result, DRAWN, "dip")}

    names = ("rivals", "bases", "gates")
    first, second = verdicts(names), verdicts(SECOND + name for name in names)
    ahead = {cell: (first[cell] > 0, second[cell] > 0 if cell in second else None) for cell in first}
    cases = {
        "on both models": (True, True),
        f"on `{results['baseline'].model}` only": (True, False),
        "on the second model only": (False, True),
        f"on `{results['baseline'].model}`, and not run on the second": (True, None),
    }
    lists = [f"{where}: {listed(f'`{cell}`' for cell, case in ahead.items() if case == wanted)}" for where, wanted in cases.items()]
    return f"What {WORDS['dip'][2].format('s')} than `{DRAWN}`, {'; '.join(lists)}."


def conclusions(results: dict[str, Result], decoded: Result) -> str:
    sigma, share, gates, rivals, sinks, base, pair = (
        results[name] for name in ("sigma", "share", "gates", "rivals", "sinks", "base", "dimension")
    )
    baseline, offsets, base_sweep, pair_sweep = (results[name] for name in ("baseline", "offsets", "base-sweep", "dimension-sweep"))
    bullets = [
        ("In short", ahead_of_drawn(results)),
        ("Plain RoPE, the dip", on_both(results, "baseline", lambda one: left(one, ["plain"], "dip"))),
        ("Plain RoPE, with the content held fixed", said(offsets, left(offsets, ["plain"], "rise", "synchrony"))),
        ("Jitter, the dip", on_both(results, "baseline", lambda _: jittered("dip"))),
        ("Jitter, what is left", on_both(results, "baseline", lambda one: left(one, (DRAWN, EVEN), "dip"))),
        ("Jitter, with the content held fixed", said(offsets, jittered("rise"))),
        ("The same on the second model", said(results["second-baseline-sweep"], jittered("rise"))),
        ("How much jitter", said(sigma, against(sigma, "plain", "dip"))),
        ("From each sigma to the next, within the same draws", counted(sigma, steps(sigma, "rise"))),
        ("How many heads", said(share, against(share, "plain", "dip"))),
        ("From each share to the next", f"{counted(share, steps(share, 'dip'))} {counted(share, steps(share, 'rise'))}"),
        ("How far apart draws are", f"{draws(baseline, DRAWN)} {draws(baseline, EVEN)} With few heads a draw is a lottery."),
        ("Chosen bases, the dip", on_both(results, "bases", lambda one: against(one, DRAWN, "dip"))),
        ("Chosen bases, the mass", on_both(results, "bases", lambda one: against(one, DRAWN, "rise"))),
        ("Chosen bases, motion", on_both(results, "bases", lambda one: against(one, DRAWN, "motion"))),
        ("Rivals, the dip", f"{said(rivals, against(rivals, 'plain', 'dip'))} {said(rivals, against(rivals, DRAWN, 'dip'))}"),
        ("Rivals, motion", said(rivals, against(rivals, "plain", "motion"))),
        (
            "Rivals, other frames",
            f"{said(rivals, at_own_frames(rivals, 'dip', 'dip_elsewhere'))} {snapped(rivals)} Positions in the window, and sinks that "
            "follow at a distance, are not in LoL's tables; by construction they do not depend on the frame number. Nobody ran them here "
            "on a larger model that was trained on absolute positions.",
        ),
        ("A pair slowed down, with the content held fixed", said(pair_sweep, against(pair_sweep, "plain", "rise"))),
        ("A pair slowed down, the dip", said(pair, against(pair, "plain", "dip"))),
        ("Other numbers of sinks, the dip", f"{said(sinks, against(sinks, 'plain', 'dip'))} {said(sinks, elsewhere(sinks))}"),
        ("Other numbers of sinks, the mass", said(sinks, against(sinks, "plain", "rise"))),
        ("Another base, with the content held fixed", said(base_sweep, at_own_frames(base_sweep, "rise", "rise"))),
        ("Another base, the dip", f"{said(base, at_own_frames(base, 'dip', 'dip_elsewhere'))} {snapped(base)}"),
        ("Gates, the dip", on_both(results, "gates", lambda one: against(one, DRAWN, "dip"))),
        ("Gates, what is left", on_both(results, "gates", elsewhere)),
        (
            "Gates, motion",
            f"{on_both(results, 'gates', lambda one: against(one, DRAWN, 'motion'))} LoL names a gate where the kernel predicts the return "
            "as an outlook, for training; here it is inference alone.",
        ),
        ("Gate and jitter together", said(gates, beside_jitter(gates))),
        ("How much jitter, motion", said(sigma, against(sigma, "plain", "motion"))),
        ("Jitter, motion", on_both(results, "baseline", lambda _: jittered("motion"))),
        ("Jitter, decoded video", said(decoded, [Comparison(cell, "flow", "plain") for cell in (DRAWN, EVEN)])),
        (
            "Sink-Collapse, the largest fall of a video anywhere",
            f"{on_both(results, 'baseline', lambda _: jittered('sink_collapse'))} A scene that comes back to its opening by itself counts "
            "as a fall too: measure at predicted frames, against elsewhere.",
        ),
        (
            "What to use",
            'There is no `sigma="auto"`. On a model with more heads and layers a draw is not such a lottery: this page is no ground to '
            "prefer a policy on Wan, and all are there to be tried.",
        ),
    ]
    return "\n".join(wrapped(f"- **{title}.** {text}") for title, text in bullets)


def wrapped(text: str) -> str:
    """Names in backquotes stay on one line."""
    whole = re.sub("`[^`]*`", lambda name: name[0].replace(" ", "\0"), text)
    return textwrap.fill(whole, 140, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False).replace("\0", " ")
