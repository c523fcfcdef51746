"""Runs that are stopped at any instant and resumed: the video equals, byte for byte, that of a run that was never stopped."""

from __future__ import annotations

import fcntl
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from full_disk import full_after

import lolrt
from lolrt import cli
from lolrt.media.destination import Position
from lolrt.media.fragments import Fragments
from lolrt.session.snapshot import Snapshot

FPS = 16
# Two passes and a small window, because the test does not depend on the quality of the video.
FAST = ["--threads", "1", "--timesteps", "1000:500", "--recent", "3", "--sink-frames", "1"]
SCRIPT = "0 a red car by the sea at noon\n1.2 a blue car by the sea at night\n2.5 a red car by the sea at noon\n"
SAVED_RUN = ["--frames", "60", "--save-every", "9", "--probe", "--switch-chunks", "2", "--recache", "sinks", *FAST]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    lolrt.set_threads(threads)


def times(path: Path) -> list[float]:
    """When each frame of a video is shown after the first, in frames: that one waits for those that are coded ahead of it."""
    with av.open(str(path)) as container:
        shown = [frame.pts * frame.time_base * FPS for frame in container.decode(video=0)]
    return [float(time - shown[0]) for time in shown]


def generate(*arguments: object) -> int:
    return cli.main(["generate", *map(str, arguments)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "script.txt").write_text(SCRIPT)
    begun = time.monotonic()
    assert generate("--script", folder / "script.txt", "-o", folder / "x.mp4", *SAVED_RUN) == 0
    seconds.append(time.monotonic() - begun)
    return folder


seconds: list[float] = []
"""Seconds that the run took, with loading the model."""


def equal(folder: Path, whole: Path) -> bool:
    """Also checks that no other file of the run is left."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir())
    return all((folder / name).read_bytes() == (whole / name).read_bytes() for name in ("x.mp4", "x.mass.csv"))


def test_a_run_that_saves_is_a_video_as_any_other(whole):
    assert sorted(path.name for path in whole.iterdir()) == ["script.txt", "x.mass.csv", "x.mp4"]
    assert times(whole / "x.mp4") == list(range(60))


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A child process that continues from the snapshot if there is one; when this returns, it has begun to make video."""
    snapshot = folder / "x.snapshot.safetensors"
    fresh = ["--script", str(folder / "script.txt"), "-o", str(folder / "x.mp4"), *SAVED_RUN]
    arguments = ["--resume", str(snapshot), "--threads", "1"] if snapshot.exists() else fresh
    command = [sys.executable, "-m", "lolrt", "generate", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None and process.stderr.read(1), "no bar came"
    return process


def crash(folder: Path, whole: Path, kills: int, seed: int) -> None:
    """Kills a run at random instants and resumes it. A run that comes to its end is compared, and started again."""
    chance, done, snapshot, video = random.Random(seed), 0, folder / "x.snapshot.safetensors", folder / "x.mp4"
    (folder / "script.txt").write_text(SCRIPT)
    while True:
        process = start(folder)
        if done < kills:
            time.sleep(chance.random() * 0.4 * seconds[0])
            process.kill()
        _, err = process.communicate(timeout=300)
        assert process.returncode in (0, -signal.SIGKILL), err
        done += process.returncode != 0
        if process.returncode and (snapshot.exists() or not video.exists()):
            if not snapshot.exists():  # a new run does not overwrite it
                (folder / "x.partial.mp4").unlink(missing_ok=True)
            continue
        # It has come to its end, and may still have been killed on its way out.
        assert equal(folder, whole), f"after {done} kills"
        if done == kills:
            return
        for name in ("x.mp4", "x.mass.csv"):
            (folder / name).unlink()


@pytest.mark.whole
def test_a_run_that_is_killed_at_random_instants_is_the_whole_one(tmp_path, whole):
    crash(tmp_path, whole, 4, seed=1)


@pytest.mark.slow
def test_a_run_that_is_killed_a_hundred_times_is_the_whole_one(tmp_path, whole):
    crash(tmp_path, whole, 100, seed=2)


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory) -> Path:
    """The folder of a run whose disk became full in its fourth chunk, one after the last snapshot."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copy(whole / "script.txt", folder)
    with full_after(4):
        assert generate("--script", folder / "script.txt", "-o", folder / "x.mp4", *SAVED_RUN) == 2
    return folder


@pytest.fixture
def folder(stopped, tmp_path) -> Path:
    """A copy of it to resume in. The snapshot names the run's folder, so the copy is moved there."""
    for path in stopped.iterdir():
        shutil.copy(path, tmp_path)
    snapshot = Snapshot.read(tmp_path / "x.snapshot.safetensors")
    arguments = {**snapshot.run["arguments"], "output": str(tmp_path / "x.mp4")}
    replace(snapshot, run={**snapshot.run, "arguments": arguments}).write(tmp_path / "x.snapshot.safetensors")
    return tmp_path


def test_a_run_whose_disk_was_full_goes_on(folder, whole):
    """Also if more has reached the disk than the snapshot knows of."""
    assert sorted(path.name for path in folder.iterdir()) == ["script.txt", "x.mass.csv", "x.partial.mp4", "x.snapshot.safetensors"]
    for name in ("x.mass.csv", "x.partial.mp4"):
        with open(folder / name, "ab") as file:
            file.write(b"99,0,0,0,0.5\n")
    assert generate("--resume", folder / "x.snapshot.safetensors", "--threads", 1) == 0
    assert equal(folder, whole)


def test_the_options_of_the_run_may_be_given_again(folder, whole):
    again = ["-o", folder / "x.mp4", *SAVED_RUN, "--seed", 0]
    assert generate("--resume", folder / "x.snapshot.safetensors", *again) == 0
    assert equal(folder, whole)


@pytest.mark.parametrize("option, told", [
    (["--seed", "3"], "seed is [0] in the snapshot and [3] here"),
    (["--timesteps", "1000"], "timesteps is [1000, 500] in the snapshot and [1000] here"),
    (["--sink-bias=-inf"], "bias is 0.0 in the snapshot and -inf here"),
    (["--sigma", "0.1", "--vae-tile", "64"], "vae_tile is None in the snapshot and 64 here"),
    (["-o", "y.mp4"], "x.mp4 in the snapshot and y.mp4 here"),
    (["--frames", "33"], "is at frame 33 of 33 already: ask for more"),
    (["--frames", "9"], "is at frame 33 of 9 already: ask for more"),
    (["--seconds", "1"], "is at frame 33 of 16 already: ask for more"),
])  # fmt: skip
def test_other_options_are_refused_and_change_nothing(option, told, folder, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert generate("--resume", folder / "x.snapshot.safetensors", *option) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lolrt: ")]
    assert told in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_files_that_are_not_the_runs_are_refused(folder, capsys):
    snapshot, partial, mass = (folder / name for name in ("x.snapshot.safetensors", "x.partial.mp4", "x.mass.csv"))
    kept = mass.read_bytes()
    mass.write_bytes(kept[:100])
    assert generate("--resume", snapshot) == 2
    assert "x.mass.csv has fewer than the" in capsys.readouterr().err
    assert mass.read_bytes() == kept[:100]
    mass.write_bytes(kept)
    partial.write_bytes(partial.read_bytes()[:5000])
    assert generate("--resume", snapshot) == 2
    assert "x.partial.mp4 has fewer than the" in capsys.readouterr().err
    partial.unlink()
    assert generate("--resume", snapshot) == 2
    assert "cannot go on with" in capsys.readouterr().err
    assert not (folder / "x.mp4").exists()


def test_what_another_program_saved_is_not_a_run(tiny, tmp_path, capsys):
    path = tmp_path / "s.safetensors"
    stream = tiny.stream(tiny.example_prompts[0])
    for described in (None, {"mine": 1}):
        stream.save(path, run=described)
        assert generate("--resume", path) == 2
        assert "was not saved by lolrt generate; go on with it in Python" in capsys.readouterr().err
    assert generate("--resume", tmp_path / "nothing.safetensors") == 2
    assert "is no snapshot of a stream" in capsys.readouterr().err


def test_a_new_run_forgets_the_snapshot_of_the_one_that_it_overwrites(folder, tiny, monkeypatch):
    """Otherwise a run that is killed before its first snapshot would continue in the middle of another video."""
    seen = []
    (folder / "x.partial.mp4").unlink()
    monkeypatch.setattr(lolrt.VideoWriter, "write", lambda *_: seen.append((folder / "x.snapshot.safetensors").exists()))
    assert generate(tiny.example_prompts[0], "-o", folder / "x.mp4", "--frames", 33, *FAST) == 0
    assert seen == [True, False, False]  # it stays until there is something in its place


# Only the file of the video.


def pictures(count: int) -> torch.Tensor:
    """Coarse noise that changes with time, so that the state of a codec shows in the result."""
    coarse = torch.randint(0, 256, (count, 4, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)


def film(path: Path, cuts: dict[int, str], frames: torch.Tensor) -> None:
    """Writes frames with cuts. After some frames, "cut" goes on writing, "end" ends the run as a complete one, and "kill" leaves the
    file as it is a few frames later."""
    begun, position = 0, None
    for at, what in [*sorted(cuts.items()), (len(frames), "last")]:
        writer = lolrt.VideoWriter(path, 64, 96, FPS, resume=position) if begun == 0 or position is not None else writer  # noqa: F821
        writer.write(frames[begun:at])
        position = None
        if what == "last":
            writer.__exit__(None, None, None)
            return
        cut = writer.cut()
        assert cut.frames == at
        begun = at
        if what != "cut":
            position = cut
        if what == "end":
            writer.__exit__(None, None, None)
        elif what == "kill":
            writer.write(frames[at : at + 20])
            writer._destination.file.flush()
            fcntl.flock(writer._destination.file, fcntl.LOCK_UN)  # as in a process that is gone
            writer._destination.file = None  # type: ignore[assignment]


@pytest.mark.parametrize("first", ["end", "kill"])
@pytest.mark.parametrize("second", ["end", "kill"])
def test_a_film_that_goes_on_is_the_film_that_was_only_cut(first, second, tmp_path):
    frames = pictures(60)
    film(tmp_path / "cut.mp4", {7: "cut", 30: "cut"}, frames)
    film(tmp_path / "on.mp4", {7: first, 30: second}, frames)
    assert (tmp_path / "on.mp4").read_bytes() == (tmp_path / "cut.mp4").read_bytes()
    assert times(tmp_path / "on.mp4") == list(range(60))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.mp4", "on.mp4"]
    content = (tmp_path / "on.mp4").read_bytes()
    assert content.count(b"moov") == content.count(b"ftyp") == 1
    numbers = [int.from_bytes(content[at.end() + 4 : at.end() + 8], "big") for at in re.finditer(b"mfhd", content)]
    assert numbers == list(range(1, 1 + content.count(b"moof"))) and len(numbers) >= 5


def test_cuts_where_there_is_nothing_to_cut(tmp_path):
    """Before the first frame, and twice at the same place: neither the header nor pictures are written twice."""
    frames = pictures(20)
    with lolrt.VideoWriter(tmp_path / "a.mp4", 64, 96, FPS) as writer:
        empty = writer.cut()
        assert empty.frames == empty.fragments == 0
        writer.write(frames[:9])
        assert writer.cut() == writer.cut()
        writer.write(frames[9:])
    with lolrt.VideoWriter(tmp_path / "b.mp4", 64, 96, FPS) as writer:
        writer.write(frames[:9])
        writer.cut()
        writer.write(frames[9:])
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert times(tmp_path / "a.mp4") == list(range(20))


def test_a_file_with_less_than_the_cut_is_refused_and_stays(tmp_path):
    with lolrt.VideoWriter(tmp_path / "a.mp4", 64, 96, FPS) as writer:
        writer.write(pictures(9))
        cut = writer.cut()
    whole = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(lolrt.OutputError, match=f"a.mp4 has fewer than the {cut.bytes + 1} bytes"):
        lolrt.VideoWriter(tmp_path / "a.mp4", 64, 96, FPS, resume=replace(cut, bytes=cut.bytes + 1))
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"] and (tmp_path / "a.mp4").read_bytes() == whole
    (tmp_path / "a.mp4").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of the same length, but another one
    with pytest.raises(lolrt.OutputError, match=r"a\.mp4 is not the video that the snapshot goes on with"):
        lolrt.VideoWriter(tmp_path / "a.mp4", 64, 96, FPS, resume=cut)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    with pytest.raises(lolrt.OutputError, match="cannot go on with"):
        lolrt.VideoWriter(tmp_path / "b.mp4", 64, 96, FPS, resume=cut)
    with pytest.raises(lolrt.OutputError, match="on standard output"):
        lolrt.VideoWriter("-", 64, 96, FPS, resume=Position(9, 1, 100, 0))


def test_fragments_follow_however_a_muxer_cuts_up_its_writes(tmp_path):
    """The boxes of a file in pieces of one byte and of all sizes, moved by 2^40 units: only numbers and times differ."""
    with lolrt.VideoWriter(tmp_path / "a.mp4", 64, 96, FPS) as writer:
        writer.write(torch.zeros(40, 64, 96, 3, dtype=torch.uint8))  # some kilobytes
    content = (tmp_path / "a.mp4").read_bytes()
    made = []
    for piece in (1, 7, len(content)):
        with open(tmp_path / "b.bin", "wb") as file:
            boxes = Fragments(file, 5, 1 << 40, with_header=False)
            assert sum(boxes.write(content[i : i + piece]) for i in range(0, len(content), piece)) == len(content)
        made.append((tmp_path / "b.bin").read_bytes())
        assert boxes.fragments == 5 + content.count(b"moof")
    assert made[0] == made[1] == made[2]
    header = content.index(b"moof") - 4
    assert len(made[0]) == len(content) - header and b"moov" not in made[0]
    (tmp_path / "c.mp4").write_bytes(content + made[0])
    assert times(tmp_path / "c.mp4") == [*range(40), *((1 << 40) / 1000 + i for i in range(40))]
