"""What the laboratory predicts from phases, and the policies that it compares."""

from __future__ import annotations

import cmath
import csv
import math
import re
import sys

import numpy as np
import pytest

import lolrt
from lolrt.cli import main
from lolrt.lab import bases, plans
from lolrt.lab.phase import phase_table
from lolrt.lab.policy import Policy

# ---- phase ----------------------------------------------------------------------------------------------------------------


def test_wan_realigns_at_the_papers_frames(tmp_path, capsys):
    assert main(["lab", "phase", "-o", str(tmp_path / "wan")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"past frame 100: 132 \(0\.541\), 201 \(0\.544\)", out)
    assert re.search(r"3 sinks and 3 frames, at chunk starts: 132 \(0\.505\), 201 \(0\.503\)", out)
    assert "at 132: k = 8, period 118" in out
    assert (tmp_path / "wan.png").stat().st_size > 10_000
    with open(tmp_path / "wan.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 400 and rows[131]["chunk_real"] is None and float(rows[132]["chunk_real"]) == pytest.approx(0.505, abs=1e-3)


@pytest.mark.parametrize("sinks, chunk", [(3, 3), (1, 4), (5, 2)])
def test_the_kernel_is_equation_5(sinks, chunk):
    bases = [[3000.0, 17000.0], [9000.0, 12000.0]]
    radians = lolrt.Rope(bases=bases).radians(2, 2, 5).reshape(4, 5)
    table = phase_table(radians, 40, sinks, chunk)

    def c(base: float, offset: int) -> complex:
        return sum(cmath.exp(1j * base ** (-2 * i / 10) * offset) for i in range(5)) / 5

    for frame in (0, 7, 39):
        heads = [c(base, frame) for layer in bases for base in layer]
        assert table.real[frame] == pytest.approx(sum(z.real for z in heads) / 4)
        assert table.modulus[frame] == pytest.approx(sum(abs(z) for z in heads) / 4)
    for i, start in enumerate(table.starts):
        heads = [c(b, start + f - s) for layer in bases for b in layer for f in range(chunk) for s in range(sinks)]
        assert start >= sinks and start % chunk == 0
        assert table.chunk_real[i] == pytest.approx(sum(z.real for z in heads) / len(heads))
        assert table.chunk_modulus[i] == pytest.approx(sum(abs(z) for z in heads) / len(heads))


def test_the_numbers_do_not_need_the_plots_library(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["lab", "phase", "-o", str(tmp_path / "x")]) == 0
    told = capsys.readouterr().out
    assert "highest past frame 100: 132 (0.541), 201 (0.544)" in told and "no picture: the laboratory's plots needs matplotlib" in told
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_wrong_splits_are_told(tmp_path, capsys):
    for wrong in (["--split", "43", "42", "42"], ["--split", "0", "64", "64"], ["--frames", "10"], ["--policy", "theta"]):
        assert main(["lab", "phase", "-o", str(tmp_path / "x"), *wrong]) == 2
    assert capsys.readouterr().err.count("lolrt: ") == 4 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        "phase --heads 0", "phase --layers -1", "phase --count 0", "rollout --jobs 0", "rollout --jobs -2",
        "experiment sigma --videos 0", "experiment sigma --draws 0", "experiment sigma --jobs 0", "returning --jobs 0",
        "text --steps -1", "text --texts 0", "text --draws -3",
    ],
)  # fmt: skip
def test_numbers_that_must_be_positive(wrong, tmp_path, capsys):
    *_, option, value = wrong.split()
    with pytest.raises(SystemExit) as ended:
        main(["lab", *wrong.split(), "-o", str(tmp_path / "out")])
    assert ended.value.code == 2 and not list(tmp_path.iterdir())
    assert f"argument {option}: {value} is not a number above 0, up to 1" in capsys.readouterr().err


# ---- policies -------------------------------------------------------------------------------------------------------------


def test_a_policy_is_its_text():
    policy = Policy.parse("sigma=0.5,spread=stratified,sink_frames=1,bias=-inf,when=realigned,bases=2000:18000")
    assert policy.rope == lolrt.Rope(sigma=0.5, spread="stratified", bases=[2000.0, 18000.0])
    assert policy.window == lolrt.Window(sink_frames=1, gate=lolrt.SinkGate(-math.inf, "realigned"))
    assert Policy.parse("").rope == lolrt.Rope()


@pytest.mark.parametrize("wrong, hint", [("sigm=0", "sigma, "), ("sigma=much", "like 0.8"), ("sigma=2", "less than 1"), ("seed", "'seed'")])
def test_wrong_policies_are_told(wrong, hint):
    with pytest.raises(lolrt.Error, match=re.escape(hint)):
        Policy.parse(wrong)


@pytest.mark.parametrize("frames", [100, 240, 1000])
def test_every_experiment_is_made_of_policies(frames):
    for name, experiment in plans.EXPERIMENTS.items():
        cells = experiment.cells(plans.Setting(3, frames, layers=30, heads=12, pairs=22))
        assert cells["plain"] == ["sigma=0"], name
        texts = [text for policies in cells.values() for text in policies]
        assert len(texts) == len(set(texts)) and {len(policies) for policies in cells.values()} <= {1, 3}
        for text in texts:
            Policy.parse(text).rope.increments(2, 12, 22)


def test_chosen_bases_stay_within_the_jitters_range():
    spaced = bases.log_spaced(5, 0.8)
    assert spaced[[0, -1]] == pytest.approx([2000, 18000])
    np.testing.assert_allclose(spaced[1:] / spaced[:-1], 9**0.25)
    chosen = bases.least_ripple(4, 22, 0.8)
    assert (np.abs(chosen / 10000 - 1) <= 0.8).all()
    # The same shift as the paper's rule has on average, and a lower kernel than its draws have.
    assert np.sqrt(np.square((chosen / 10000 - 1) / 0.8).mean()) == pytest.approx(3**-0.5)

    def highest(heads: np.ndarray) -> float:
        return max(np.mean([[math.cos(base ** (-i / 22) * offset) for i in range(22)] for base in heads]) for offset in range(100, 400))

    drawn = [highest(lolrt.Rope(jitter_seed=seed).head_bases(1, 4)[0]) for seed in range(10)]
    assert highest(chosen) < min(drawn)


def test_chosen_bases_change_heads_with_the_draw():
    cells = plans.EXPERIMENTS["bases"].cells(plans.Setting(3, 240, layers=6, heads=4, pairs=22))
    for cell in ("log-spaced", "least ripple"):
        orders = [Policy.parse(text).rope.head_bases(1, 4)[0].tolist() for text in cells[cell]]
        assert len({tuple(order) for order in orders}) == 3 and len({tuple(sorted(order)) for order in orders}) == 1


def test_no_draw_of_a_cell_comes_twice():
    """Seeds 0 and 2 give four heads the same order of stratified bases."""
    bases = [lolrt.Rope(spread="stratified", jitter_seed=seed).head_bases(6, 4) for seed in (0, 2)]
    assert (bases[0] == bases[1]).all()
    for experiment in plans.EXPERIMENTS.values():
        for cell, policies in experiment.cells(plans.Setting(6, 240, layers=6, heads=4, pairs=22)).items():
            drawn = {Policy.parse(policy).rope.head_bases(6, 4).tobytes() for policy in policies}
            assert len(drawn) == len(policies), cell
    assert len(plans.jitter("sigma=0.8,spread=stratified", 30, 6, 4)) == 24
