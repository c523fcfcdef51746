"""The laboratory: a folder of rollouts from the first video to the report, and sweeps."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import resource
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import lolrt
from lolrt import measures
from lolrt.cli import main
from lolrt.lab import experiments, pictures, statistics, tables
from lolrt.lab.policy import Policy
from lolrt.lab.report import write_report
from lolrt.lab.results import Cell, Result
from lolrt.lab.rollout import Folder, Plan, Recorder, Video, predicted_frames, record, run, summary
from lolrt.session.stream import LatentChunk

FRAMES = 66


# ---- rollouts -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory, tiny) -> tuple[Folder, list[str], list[tuple[str, int]]]:
    """A folder of one video, decoded, of one policy, and of another one whose numbers are made up from it."""
    folder = Folder(tmp_path_factory.mktemp("lab"), Plan("tiny", FRAMES))
    policies, videos = ["sigma=0", "sigma=0.8,spread=stratified"], [(tiny.example_prompts[0], 5)]
    first, second = (Video(policy, *videos[0]) for policy in policies)
    run(folder, [first])
    series = {name: values[::-1] for name, values in folder.series(first).items()}
    folder.add(second, series, summary(series, [], tiny.height, tiny.width))
    return folder, policies, videos


@pytest.mark.whole
def test_series_are_those_of_the_stream(kept, tiny):
    folder, policies, [(prompt, seed)] = kept
    series = folder.series(Video(policies[0], prompt, seed))
    stream = tiny.stream(prompt, seed=seed, rope=lolrt.Rope(sigma=0), probe=True)
    chunks = [next(stream) for _ in range(8)]
    latents = torch.cat([chunk.latents for chunk in chunks])
    distance = [(latents - latents[sink]).square().mean((1, 2, 3)).sqrt() for sink in range(3)]
    np.testing.assert_allclose(series["distance"][:24], torch.stack(distance, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(series["step"][1:24], (latents[1:] - latents[:-1]).square().mean((1, 2, 3)).sqrt(), rtol=1e-5)
    np.testing.assert_allclose(series["mass"][:8].mean((1, 2)), [chunk.sink_mass for chunk in chunks], rtol=1e-5)
    frames = torch.cat([chunk.frames for chunk in chunks]).numpy()[::2]  # 8 of 16 frames a second
    assert series["flow"][40] == pytest.approx(pictures.flow(frames[40], frames[41]))
    assert len(series["distance"]) == FRAMES and len(series["flow"]) == (4 * FRAMES - 3 + 1) // 2 - 1
    np.testing.assert_array_equal(series["thumbnails"][1], chunks[int(series["thumbnail_frames"][1]) // 3].frames[-1])


@pytest.mark.whole
def test_a_folder_goes_on_where_it_was_stopped(kept, tmp_path, monkeypatch):
    folder, policies, [video] = kept
    copy = Folder(tmp_path, folder.plan)
    first, second = (Video(policy, *video) for policy in policies)
    copy.add(first, folder.series(first), {"motion": 1.0})
    with open(copy.index, "a") as index:
        index.write('{"key": "half a li')
    asked = []
    monkeypatch.setattr("lolrt.lab.rollout.record", lambda plan, video: asked.append(video) or folder.series(video))
    again = Folder(tmp_path, folder.plan)
    run(again, [first, second])
    assert asked == [second]
    cut, last = again.index.read_text().splitlines()[1:]
    assert cut == '{"key": "half a li' and json.loads(last) == folder.rows[second.key]
    assert list(Folder(tmp_path, folder.plan).rows) == [first.key, second.key]
    with pytest.raises(lolrt.Error, match="another plan"):
        Folder(tmp_path, Plan("tiny", FRAMES + 3))


def killed_when_a_file_grows_past(size: int, folder: Path, videos: Sequence[Video]) -> bool:
    """Adds videos to a folder in a process of its own, which is killed in the middle of the write that would make a file larger."""

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        opened = Folder(folder, Plan("tiny", FRAMES))
        for video in videos:
            opened.add(video, {"distance": np.arange(3.0) + video.seed}, {f"number {i}": 1.0 for i in range(30)})

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGXFSZ)
    return process.exitcode != 0


def test_a_run_that_is_killed_in_any_write_goes_on(tmp_path):
    videos = [Video("sigma=0", "a car", seed) for seed in range(4)]
    kept = 0
    for size in (10, 200, 400, 700, 1000, 1400, 1800, 2200, 10_000):
        assert killed_when_a_file_grows_past(size, tmp_path, videos[kept:]) == (size < 10_000)
        rows = list(Folder(tmp_path, Plan("tiny", FRAMES)).rows)
        assert rows == [video.key for video in videos[: len(rows)]] and len(rows) >= kept
        kept = len(rows)
        for video in videos[:kept]:
            np.testing.assert_array_equal(Folder(tmp_path, Plan("tiny", FRAMES)).series(video)["distance"], np.arange(3.0) + video.seed)
    assert kept == len(videos)


def test_two_runs_add_to_a_folder_at_a_time(tmp_path, monkeypatch):
    """The second adds a video while the first is in the middle of writing one."""
    first, second = (Folder(tmp_path, Plan("tiny", FRAMES)) for _ in range(2))
    videos = [Video("sigma=0", "a car", seed) for seed in range(2)]
    savez = np.savez

    def in_the_middle(file, **series):
        monkeypatch.setattr(np, "savez", savez)
        second.add(videos[1], {"distance": np.ones(1)}, {})
        savez(file, **series)

    monkeypatch.setattr(np, "savez", in_the_middle)
    first.add(videos[0], {"distance": np.zeros(1)}, {})
    both = Folder(tmp_path, Plan("tiny", FRAMES))
    assert [both.series(video)["distance"].item() for video in videos] == [0, 1] and len(both.rows) == 2


@pytest.mark.whole
def test_the_report_is_one_page_with_every_definition(kept):
    folder, policies, videos = kept
    page = write_report(folder, policies, videos).read_text()
    assert page.count("<img") == 6 and not re.search(r'(src|href)="(?!data:)', page)
    for measure in (*measures.DEFINITIONS, *pictures.DEFINITIONS):
        assert f"<dt>{measure.__doc__.partition(':')[0]}</dt>" in page
    for policy in policies:
        value = statistics.interval(folder.table([policy], videos, "motion"))
        assert f"<td>{value}</td>" in page and policy in page


@pytest.mark.whole
def test_an_experiment_is_a_table_with_intervals(kept, tmp_path):
    folder, policies, videos = kept
    cells = experiments.rolled_out(folder, {"plain": policies[:1], "both": policies}, videos)
    result = Result("sigma", "tiny", FRAMES, 2, ["both"], False, videos, [], cells)
    rows = [line.split(" | ") for line in tables.table(result).splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows if "---" not in row[0]}) == 1
    column = {name.strip("| "): place for place, name in enumerate(rows[0])}
    plain, other = (folder.rows[Video(policy, *videos[0]).key] for policy in policies)
    assert rows[2][column["motion"]] == "1.00 [1.00, 1.00]"
    assert f"{(1 + other['motion'] / plain['motion']) / 2:.2f} [" in rows[3][column["motion"]]
    assert rows[3][column["sink collapse max"]] == f"{max(plain['sink_collapse'], other['sink_collapse']):.2f}"
    assert result.command == 'lolrt lab experiment sigma --model tiny --frames 66 --videos 1 --draws 2 --cells "both"'


@pytest.mark.parametrize(
    "policy, frames",
    [
        ("sigma=0", [132, 201]),
        ("bases=20000", [119, 188]),
        ("bases=12000", [106, 163]),
        ("sigma=0.8,spread=stratified", [107, 151]),
        ("sigma=0,frequencies=yarn,stretch=1.818", [105]),  # the other is 284, too late for 240 frames
        ("sigma=0,positions=window", []),
        ("sigma=0,positions=anchored", []),
        ("sigma=0,sink_frames=0,recent_frames=12", []),
    ],
)
def test_a_policy_has_frames_of_its_own(policy, frames, tiny):
    assert predicted_frames(tiny, 240, policy) == frames
    if frames and not policy.startswith("sigma=0,"):
        bases = Policy.parse(policy).rope.head_bases(6, 4)[0]
        kernel = [sum(math.cos(f * base ** (-i / 22)) for base in bases for i in range(22)) for f in range(401)]
        maxima = [f for f in range(101, 400) if kernel[f - 1] < kernel[f] > kernel[f + 1]]
        assert sorted(sorted(maxima, key=lambda f: -kernel[f])[:2]) == frames


def test_a_fall_at_a_policys_own_frames_is_found(tmp_path):
    """Of two draws that fall to half at their own frames, at no other, and turn to the sinks there with half of their heads."""
    folder, video = Folder(tmp_path, Plan("tiny", 240, decode=False)), ("a car", 0)
    cells = {"plain": ["sigma=0"], "other base": ["bases=20000", "bases=12000"], "window": ["sigma=0,positions=window"]}
    own = {"sigma=0": [132, 201], "bases=20000": [119, 188], "bases=12000": [106, 163], cells["window"][0]: []}
    for policy, frames in own.items():
        distance, mass = np.ones((240, 3)), np.full((80, 6, 4), 0.1)
        for frame in frames:
            distance[frame, 1] = 0.5
            mass[frame // 3, :, ::2] = 0.3
        series = {"distance": distance, "step": np.ones(240), "signature": np.zeros((240, 4)), "mass": mass}
        folder.add(Video(policy, *video), series, summary(series, [132, 201], 64, 96))
    found = experiments.rolled_out(folder, cells, [video])
    for cell in ("plain", "other base"):
        for what, value in (("dip_own", 0.5), ("rise_own", 2.0), ("synchrony_own", 0.5)):
            np.testing.assert_allclose(found[cell].numbers[what], np.full((len(cells[cell]), 1), value))
    np.testing.assert_allclose(found["other base"].at_predicted("dip"), [[1], [1]])
    assert "dip_own" not in found["window"].numbers and found["other base"].own_frames == [[119, 188], [106, 163]]
    rows = tables.table(Result("base", "tiny", 240, 2, [], False, [video], [132, 201], found)).splitlines()
    assert [row.split(" | ")[-1] for row in rows[2:]] == ["132, 201 |", "by draw |", " |"] and len({row.count("|") for row in rows}) == 1


def made_up(series: dict[str, np.ndarray] | None = None) -> Result:
    names = ("dip_132", "dip_201", "dip_elsewhere", "sink_collapse", "motion")
    cells = {
        cell: Cell(["a", "b"][:draws], {name: np.full((draws, 2), 0.123456 * draws) for name in names}, (132, 0.5, 0.001), series or {})
        for cell, draws in (("plain", 1), ("other", 2))
    }
    return Result("share", "tiny", 240, 2, [], False, [("a car", 0), ("a boat", 1)], [132, 201], cells)


def test_a_result_is_kept_in_a_file(tmp_path):
    path = tmp_path / "share.json"
    result = made_up()
    result.write(path)
    again = Result.read(path)
    assert again.command == result.command and again.videos == result.videos and again.cells["other"].snap_back == (132, 0.5, 0.001)
    np.testing.assert_array_equal(again.cells["other"].numbers["dip_201"], np.full((2, 2), 0.2469))
    np.testing.assert_array_equal(again.cells["plain"].at_predicted("dip"), [[0.1235, 0.1235]])
    for wrong in ("", "[]", "{}", path.read_text().replace('"frames"', '"hours"')):
        path.write_text(wrong)
        with pytest.raises(lolrt.Error, match="no result"):
            Result.read(path)


@pytest.mark.parametrize("series", [None, {"start": np.arange(3), "mass": np.ones(3), "synchrony": np.zeros(3)}])
def test_a_result_is_drawn(series, tmp_path):
    tables.figure(made_up(series), tmp_path / "t.png")
    assert (tmp_path / "t.png").stat().st_size > 5000


def test_more_sinks_than_a_chunk_has_frames():
    latents = torch.randn(12, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    recorder = Recorder(Plan("", FRAMES, decode=False), 16, [], 3)
    for first in range(0, 12, 3):
        pages = first + 3
        chunk = LatentChunk(
            first_frame=first,
            latents=latents[first : first + 3],
            page_frames=tuple(range(pages)),
            sums=torch.zeros(2),
            sink_frames=min(5, pages),
            mass=torch.full((2, 2, 3, pages), 1 / pages),
        )
        recorder.add(chunk)
    series = recorder.arrays()
    expected = (latents[:, None] - latents[None, :5]).square().mean((2, 3, 4)).sqrt()
    np.testing.assert_allclose(series["distance"], expected, rtol=1e-5)
    np.testing.assert_allclose(series["mass"][:, 0, 0], [1, 5 / 6, 5 / 9, 5 / 12], rtol=1e-6)


# ---- the sweep, and what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [True, False])
def test_a_sweep_is_measured_against_its_own_median(every, tiny, monkeypatch):
    asked = []

    def sweep(pipe, policy, prompt, seed, starts):
        asked.extend(starts)
        mass = np.full((len(starts), 3, 4), 0.1 * (seed + 1))
        if not every:  # much of what is asked then is raised, and must not count as usual
            mass[[starts.index(start) for start in (66, 75, 84)]] *= 1.2
            mass[[starts.index(start) for start in (129, 135, 198, 201)]] *= 1.4
            # Around sigma 0.5's own frames, 106 and 163.
            mass[[starts.index(start) for start in (102, 105, 108, 159, 162, 165)]] *= 1.6
        mass[starts.index(132)] *= 2
        mass[starts.index(204), :, :2] *= 3  # the chunk after the one that holds 201
        return mass

    monkeypatch.setattr(experiments, "sweep", sweep)
    cell = experiments.swept(tiny, 240, ["sigma=0", "sigma=0.5"], [("a car", 0), ("a boat", 1)], "", every)
    numbers, _ = experiments.chunk_numbers(tiny, 240, ["sigma=0", "sigma=0.5"], every)
    assert sorted(set(asked)) == [3 * number for number in numbers], "as many as are told before"
    expected = {"rise_132": 2, "synchrony_132": 1, "rise_201": 2, "synchrony_201": 0.5}
    for name, value in (expected | ({"rise_elsewhere": 1, "synchrony_elsewhere": 0} if every else {})).items():
        np.testing.assert_allclose(cell.numbers.pop(name), np.full((2, 2), value))
    np.testing.assert_allclose(cell.numbers.pop("rise_own"), [[2, 2], [1 if every else 1.6] * 2])
    np.testing.assert_allclose(cell.numbers.pop("synchrony_own"), [[0.75, 0.75], [0 if every else 1] * 2])
    assert not cell.numbers and len(set(asked)) == (72 if every else 15 + 4)  # two chunks beside own frames are asked for anyway
    if every:
        assert cell.series["start"][[0, -1]].tolist() == [24, 237] and cell.series["mass"][36] == pytest.approx(0.3)


@pytest.mark.whole
def test_a_sweep_changes_nothing_but_positions(tiny):
    masses = experiments.sweep(tiny, "sigma=0,positions=window", tiny.example_prompts[0], 0, [24, 132, 1000])
    assert (masses[0] == masses[1]).all() and (masses[0] == masses[2]).all() and (masses > 0).any()


def test_a_run_says_first_what_it_will_cost(tmp_path, monkeypatch, capsys):
    """Counted here by hand: 3 cells of 1, 2 and 2 draws, 2 videos each, of 72 frames in chunks of 3. One chunk is timed, after those
    that fill the window."""

    def stopped(*_: object, **__: object) -> None:
        raise lolrt.Error("before the first")

    timed = []

    def half_a_second(work: Callable[[], object]) -> float:
        timed.append(work())
        return 0.5

    seen = []
    monkeypatch.setattr("lolrt.lab.rollout.Recorder.add", lambda recorder, chunk: seen.append(len(chunk.page_frames)))
    monkeypatch.setattr("lolrt.lab.cost.cpu_seconds", half_a_second)
    monkeypatch.setattr("lolrt.lab.rollout.record", stopped)
    monkeypatch.setattr("lolrt.lab.experiments.swept", stopped)
    asked = ["lab", "experiment", "baseline", "--videos", "2", "--draws", "2", "--frames", "72", "-o", str(tmp_path)]
    for more, told in (
        ([], "10 of 10 videos of 72 latent frames (18 s) are to be made, 240 chunks in all: about 2 CPU minutes, predicted from a chunk"),
        (["--sweep"], "10 sweeps of one chunk are to be made, over numbers up to 72, "),
    ):
        assert main([*asked, *more]) == 2
        line = capsys.readouterr().err
        assert line.startswith(told)
        (chunks,), (minutes,) = re.findall(r"(\d+) chunks in all", line), re.findall(r"about ([\d.]+) CPU minutes", line)
        assert float(minutes) == pytest.approx(int(chunks) * 0.5 / 60, rel=0.05)
        assert len(timed) == 1 and seen[-2:] == [12, 12] and len(seen) == 5
        timed.clear(), seen.clear()


@pytest.mark.whole
def test_a_rollout_has_the_models_own_chunks_unless_the_policy_says_otherwise(tmp_path):
    folder = tmp_path / "framewise"
    shutil.copytree(Path(lolrt.__file__).parent / "_embedded" / "tiny", folder)
    settings = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(settings | {"chunk_frames": 1, "sampler": {"timesteps": [1000]}}))
    plan = Plan(str(folder), FRAMES, decode=False)
    chunks = {policy: len(record(plan, Video(policy, "a red car", 0))["mass"]) for policy in ("sigma=0", "chunk_frames=2")}
    assert chunks == {"sigma=0": FRAMES, "chunk_frames=2": FRAMES // 2}


def test_wrong_rollouts_are_told(tmp_path, capsys):
    def error(*arguments: str) -> str:
        assert main(["lab", *arguments, "-o", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    assert "too short" in error("rollout", "--frames", "30")
    assert "vocabulary" in error("rollout", "--prompts", "a unicorn")
    assert "'sigm'" in error("rollout", "--policies", "sigm=1")
    assert "--seeds" in error("returning", "--seeds", "1")
    assert "no cell 'sigma 2'" in error("experiment", "sigma", "--cells", "sigma 2")
