"""Writes docs/collapse-journey.md, and its figures, from the results kept in docs/collapse-journey: `python docs/collapse_journey.py`. As
docs/collapse.py, whose parts it uses: every number and every sentence about what came out is one of a result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from collapse import CERTAINTY, FRAMES, PICTURES, findings, save_figure, section
from collapse_claims import (
    DRAWN,
    EVEN,
    Comparison,
    against,
    at_own_frames,
    baseline,
    cause,
    elsewhere,
    frames,
    held_back,
    jittered,
    left,
    said,
)
from collapse_conclusions import snapped, wrapped

from lolrt.lab import tables
from lolrt.lab.results import Cell, Result

DOCS = Path(__file__).parent
KEPT = DOCS / "collapse-journey"
# Table 1 of LoL (arXiv 2601.16914), by row of ours: largest and mean Sink-Collapse and Dynamic Degree, of LongLive and of Self-Forcing++.
PAPER = {
    "plain": ((73.06, 30.54, 34.62), (68.07, 34.11, 83.32)),
    "jitter 0.8": ((16.67, 3.93, 35.27), (22.70, 6.12, 81.20)),
    "PI": ((4.97, 2.27, 0.35), (17.07, 2.62, 1.95)),
    "NTK": ((41.11, 11.64, 28.72), (49.65, 14.96, 82.90)),
    "YaRN": ((11.17, 5.08, 2.67), (33.04, 6.69, 36.71)),
    "RIFLEx": ((70.95, 29.93, 35.11), (66.56, 32.86, 82.36)),
}


def beside_the_paper(results: dict[str, Result], decoded: Result) -> str:
    rows = [["", "Sink-Collapse, largest", "mean", "Dynamic Degree, %", "LongLive", "Self-Forcing++"]]
    cells = {name: cell for result in (results["rivals"], results["gates"]) for name, cell in result.cells.items()}
    for name, cell in cells.items():
        numbers = cell.numbers["sink_collapse"]
        dynamic = decoded.cells[name].numbers["dynamic_degree"].mean() if name in decoded.cells else None
        published = [" / ".join(f"{number:.2f}" for number in model) for model in PAPER[name]] if name in PAPER else ["", ""]
        rows.append([name, f"{numbers.max():.2f}", f"{numbers.mean():.2f}", "" if dynamic is None else f"{dynamic:.0%}", *published])
    return tables.markdown(rows)


def document(results: dict[str, Result], decoded: Result) -> str:
    rivals, gates, offsets = (results[name] for name in ("rivals", "gates", "offsets"))
    return f"""# Sink-collapse on the model that travels

What [collapse.md](collapse.md) asks of `tiny`, asked of `journey`, whose camera travels on: a scene of it does not come back to its opening
by itself. Measures, intervals and the words of findings are explained there. Frequencies and sinks are Wan's, so that the same frames are
predicted: {frames(rivals)}. `python docs/collapse_journey.py` writes this page from the results in [collapse-journey](collapse-journey).

## Beside the table of the paper

The measures of LoL's first table, and its own numbers for published models, each as largest / mean Sink-Collapse / Dynamic Degree. They
are not the same quantity: LoL leaves open what distances are of and what they are divided by; its videos are longer; and its Dynamic Degree
is VBench's, with another optical flow. Only the order of the rows can be compared.

{beside_the_paper(results, decoded)}

## The cause, apart from its effect

{section("offsets", offsets, cause(offsets), KEPT.name)}

## Plain RoPE, jitter and rivals

{
        section(
            "rivals",
            rivals,
            [
                *baseline(rivals),
                *cause(rivals),
                *against(rivals, "plain", "dip"),
                *against(rivals, "plain", "sink_collapse"),
                *at_own_frames(rivals, "dip", "dip_elsewhere"),
                *against(rivals, "plain", "motion"),
            ],
            KEPT.name,
        )
    }

## Gates on the sinks

{section("gates", gates, held_back(gates), KEPT.name)}

## Decoded video

{decoded.model}, {len(decoded.videos)} videos of {decoded.frames} latent frames, decoded; mean [{CERTAINTY} interval]. Made by
`lolrt lab rollout`. Drifts are in percent, from the first chunk to the last tenth; flow is in pixels.

{tables.table(decoded)}

{findings(decoded, [Comparison(cell, what, "plain") for what in PICTURES[1:] for cell in (DRAWN, EVEN)])}

## What this says

Names are rows of the tables above. In parentheses are differences, or frames.

{conclusions(results, decoded)}
"""


def conclusions(results: dict[str, Result], decoded: Result) -> str:
    rivals, gates, offsets = (results[name] for name in ("rivals", "gates", "offsets"))
    bullets = [
        ("Plain RoPE, with the content held fixed", said(offsets, left(offsets, ["plain"], "rise", "synchrony"))),
        ("Plain RoPE, the mass", said(rivals, left(rivals, ["plain"], "rise", "synchrony"))),
        ("Plain RoPE, the dip", said(rivals, left(rivals, ["plain"], "dip"))),
        ("Jitter, the mass", said(rivals, jittered("rise"))),
        ("Jitter, the dip", said(rivals, jittered("dip"))),
        ("Jitter, Sink-Collapse", said(rivals, jittered("sink_collapse"))),
        ("Jitter, motion", said(rivals, jittered("motion"))),
        ("Rivals, the dip", said(rivals, against(rivals, "plain", "dip"))),
        ("Rivals, Sink-Collapse", said(rivals, against(rivals, "plain", "sink_collapse"))),
        ("Rivals, motion", said(rivals, against(rivals, "plain", "motion"))),
        ("Together at a frame", snapped(rivals)),
        ("Gates, what is left", said(gates, elsewhere(gates))),
        ("Decoded video", said(decoded, [Comparison(cell, "flow", "plain") for cell in decoded.cells if cell != "plain"])),
    ]
    return "\n".join(wrapped(f"- **{title}.** {text}") for title, text in bullets)


def pictures(rows: list[dict], rolled_out: Result) -> Result:
    """Decoded videos as a result, whose cells have the names of the cells with the same policy."""
    names = {policy: name for name, cell in rolled_out.cells.items() for policy in cell.policies}
    cells = {}
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        cells[names[policy]] = Cell([policy], {name: np.array([[row[name] for row in own]]) for name in PICTURES})
    videos = list(dict.fromkeys((row["prompt"], row["seed"]) for row in rows))
    return Result("rollout", rolled_out.model, FRAMES, len(videos), [], False, videos, rolled_out.predicted, cells)


def read() -> tuple[dict[str, Result], Result]:
    results = {path.stem: Result.read(path) for path in sorted(KEPT.glob("*.json"))}
    rows = [json.loads(line) for line in (KEPT / "decoded.jsonl").read_text().splitlines()]
    return results, pictures(rows, results["rivals"])


def main() -> None:
    results, decoded = read()
    (DOCS / "collapse-journey.md").write_text(document(results, decoded))
    for name, result in results.items():
        save_figure(result, KEPT / f"{name}.png")


if __name__ == "__main__":
    main()
