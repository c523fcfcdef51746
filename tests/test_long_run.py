"""What `python -m bench.long_run` makes of its log."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bench.long_run import COLUMNS, PARTS, read, report, returns


def test_returns_are_the_maxima_of_the_phase_kernel():
    """One pair that turns once in 200 frames returns at each multiple of 200; two pairs with different rates return only where both do."""
    found = returns([[2 * np.pi / 200]], 900)
    assert found[:, 0].tolist() == [200, 400, 600, 800] and np.allclose(found[:, 1], 1)
    both = returns([[2 * np.pi / 200, 2 * np.pi / 300]], 1300)
    assert [frame for frame, value in both if value > 0.99] == [600, 1200]


def line(sequence: int, mass: float) -> str:
    first = 3 * sequence
    values = dict.fromkeys(COLUMNS, 0.1) | {"sequence": sequence, "first_latent_frame": first, "sink_mass": mass}
    return ",".join(str(values[name]) for name in COLUMNS) + "\n"


@pytest.mark.parametrize("missing,told", [(None, "each came once, in order"), (70, "NOT each came once")])
def test_the_report_says_what_the_log_says(tmp_path, missing, told):
    """An incomplete last line, as after a power cut, is ignored. The masses at returns are those of the chunks that contain them."""
    path = tmp_path / "log.csv"
    rows = [line(i, 0.9 if 3 * i <= 200 < 3 * i + 3 else 0.2) for i in range(100) if i != missing]
    path.write_text(",".join(COLUMNS) + "\n" + "".join(rows) + line(100, 0.5)[:20])
    machine = {"cpu": "some"}
    about = {"servers": [{"from": 0}, {"from": 50}], "gaps": [], "radians": [[2 * np.pi / 200]], "fps": 32, "speed": 2, "machine": machine}
    (tmp_path / "about.json").write_text(json.dumps(about))
    log = read(path)
    assert len(log["sequence"]) == len(rows) and path.read_text().endswith(rows[-1])
    text = report(tmp_path, tmp_path).read_text()
    assert told in text and "0.02 hours of video" in text and "at 2 times the speed" in text
    assert "| 200 | 1.000 | 0.9000 | 0.1000 |" in text
    assert text.count("| 0.2") >= PARTS - 2 and (tmp_path / "long-run.png").exists()
