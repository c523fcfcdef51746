"""What the cards of embedded models share: where measured numbers are kept, and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MEASURED = "measured.json"
STAGES = ("decoder", "encoder", "vae", "finetune", "dit")  # as the log calls them


def keep(out: Path, **sections: Any) -> None:
    """Writes sections of what was measured to `measured.json`, beside those that are there."""
    path = out / MEASURED
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**kept, **sections}, indent=1) + "\n")


def cost(log: Path) -> str:
    """A table of the minutes and steps of each stage that the log names, from lines like "dit 75.0 min step 3198 ..."; a run that begins
    anew counts from nothing."""
    spent = {stage: [(0.0, 0)] for stage in STAGES}
    for line in log.read_text().splitlines():
        stage, minutes, _, _, steps = line.split()[:5]
        runs = spent[stage]
        if int(steps) < runs[-1][1]:
            runs.append((0.0, 0))
        runs[-1] = (float(minutes), int(steps))
    rows = [[stage, f"{sum(m for m, _ in runs):.0f}", str(sum(n for _, n in runs))] for stage, runs in spent.items() if runs[-1][1]]
    return table(["stage", "minutes", "steps"], rows)


def table(titles: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [titles, ["---"] * len(titles), *rows])
