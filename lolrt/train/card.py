"""What the cards of embedded models share: where measured numbers are kept, and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MEASURED = "measured.json"
STAGES = ("decoder", "encoder", "vae", "dit")  # as the log calls them


def keep(out: Path, **sections: Any) -> None:
    """Writes sections of what was measured to `measured.json`, beside those that are there."""
    path = out / MEASURED
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**kept, **sections}, indent=1) + "\n")


def cost(log: Path) -> str:
    """A table of the last line of each stage: "dit 75.0 min step 3198 ..."."""
    last = {line.split()[0]: line.split() for line in log.read_text().splitlines()}
    return table(["stage", "minutes", "steps"], [[name, f"{float(last[name][1]):.0f}", last[name][4]] for name in STAGES])


def table(titles: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [titles, ["---"] * len(titles), *rows])
