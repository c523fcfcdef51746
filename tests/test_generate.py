"""The videos of `lolrt generate`: what is written, how a run ends, and what it leaves."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from lolrt_command import command, decode, error_of, run
from safetensors.torch import load_file, save_file

import lolrt
from lolrt import cli
from lolrt.pipeline import MODELS

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def prompt(tiny) -> str:
    return tiny.example_prompts[0]


def test_generates_exactly_the_frames_asked_for(tmp_path, prompt):
    path = tmp_path / "deep" / "video.mp4"
    done = run("generate", prompt, "-o", path, "--frames", 20, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert decode(path) == (20, (384, 256))
    assert str(path) in done.stdout and "20 frames" in done.stdout
    assert "sink mass" not in done.stderr, "while the window fills, sinks are most of what there is"
    assert [entry.name for entry in path.parent.iterdir()] == ["video.mp4"]


def test_the_same_seed_gives_the_same_file(tmp_path, prompt):
    for name in ("a.mp4", "b.mp4"):
        assert run("generate", prompt, "-o", tmp_path / name, "--frames", 9, "--seed", 5, "--threads", 1).returncode == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_run_without_a_bar_ends_as_well(tmp_path, prompt):
    path = tmp_path / "v.mp4"
    done = run("generate", prompt, "-o", path, "--frames", 9, env={**os.environ, "TQDM_DISABLE": "1"})
    assert done.returncode == 0 and "9 frames" in done.stdout, done.stderr
    assert decode(path)[0] == 9


def test_standard_output_is_an_mp4(tmp_path, prompt):
    with open(tmp_path / "out.mp4", "wb") as out:
        done = subprocess.run(command("generate", prompt, "-o", "-", "--seconds", 1), stdout=out, stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == 0, done.stderr
    assert decode(tmp_path / "out.mp4")[0] == 16


def test_probe_writes_the_attention_mass(tmp_path, prompt, tiny):
    assert run("generate", prompt, "-o", tmp_path / "v.mp4", "--frames", 21, "--probe").returncode == 0
    with open(tmp_path / "v.mass.csv") as file:
        rows = list(csv.DictReader(file))
    config = tiny.dit.config
    assert len(rows) == config.num_layers * config.num_heads * (3 + 6)
    second = [float(row["mass"]) for row in rows if row["first_frame"] == "3" and row["layer"] == "0" and row["head"] == "1"]
    assert sum(second) == pytest.approx(1, abs=1e-3)


def test_chunks_of_another_size_and_another_sampler(tmp_path, prompt):
    path = tmp_path / "v.mp4"
    options = ["--frames", "9", "--chunk-frames", "2", "--recent", "4", "--timesteps", "1000:500", "--probe"]
    assert cli.main(["generate", prompt, "-o", str(path), *options]) == 0
    assert decode(path)[0] == 9
    with open(tmp_path / "v.mass.csv") as file:
        assert {row["first_frame"] for row in csv.DictReader(file)} == {"0", "2"}


def test_the_mass_on_the_sinks_is_shown_from_the_first_full_window_on(tmp_path, prompt):
    done = run("generate", prompt, "-o", tmp_path / "v.mp4", "--frames", 21, "--recent", 3, "--timesteps", 1000)
    assert done.returncode == 0 and "sink mass" in done.stderr, done.stderr


def test_options_and_prompts_that_change_nothing_are_told(tmp_path, capsys):
    """Only for options that are given, not for defaults; and not with --quiet."""
    script = tmp_path / "script.txt"
    script.write_text("0 a red car by the sea at noon\n5 a blue car by the sea at night\n")
    options = ["generate", "--script", str(script), "-o", str(tmp_path / "v.mp4"), "--frames", "9", "--anchor", "5", "--gate", "realigned"]
    assert cli.main(options) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert told == [
        "note: 1 of the script's 2 prompts come after the video's end, the first at 5.0 s",
        "note: --anchor changes nothing: it takes --positions anchored",
        "note: --gate changes nothing: it takes --sink-bias other than 0",
    ]
    assert cli.main([*options, "--quiet"]) == 0
    assert "note" not in capsys.readouterr().err


def test_a_script_switches_prompts_and_says_how_fast(tmp_path):
    script, path = tmp_path / "script.txt", tmp_path / "video.mp4"
    script.write_text("0 a red car by the sea at noon\n0.5 a blue car by the sea at night\n")
    done = run("generate", "--script", script, "-o", path, "--frames", 30, "--recache", "sinks", "--switch-chunks", 2)
    assert done.returncode == 0, done.stderr
    assert decode(path)[0] == 30
    assert "1.31 s: the new prompt counts from here on, mixed in over 2 chunks; sinks and recent frames re-cached; " in done.stderr
    script.write_text("0 a red car by the sea at noon\n0.5 a unicorn\n")
    assert "unicorn" in error_of("generate", "--script", script, "-o", path)


def test_embeddings_that_were_encoded_before_give_the_same_video(tmp_path, prompt):
    done = run("encode", prompt, "a blue boat", "-o", tmp_path / "text.safetensors")
    assert done.returncode == 0 and "2 prompts" in done.stdout, done.stderr
    for name, arguments in (("a.mp4", ()), ("b.mp4", ("--text", tmp_path / "text.safetensors"))):
        assert run("generate", prompt, "-o", tmp_path / name, "--frames", 9, "--threads", 1, *arguments).returncode == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert "nothing to encode" in error_of("encode", "-o", tmp_path / "none.safetensors")


def test_a_video_goes_on_from_another(tmp_path, prompt):
    for name, arguments in (("a.mp4", ()), ("b.mp4", ("--start", tmp_path / "a.mp4"))):
        done = run("generate", prompt, "-o", tmp_path / name, "--frames", 20, *arguments)
        assert done.returncode == 0, done.stderr
    assert decode(tmp_path / "b.mp4")[0] == 20
    # Reported before the prompt is encoded and the model is loaded.
    line = error_of("generate", "a red unicorn", "-o", tmp_path / "c.mp4", "--start", tmp_path / "nothing.png")
    assert "cannot read" in line and "nothing.png" in line


def started(*arguments: object, partial: Path, size: int = 20_000, **options: object) -> subprocess.Popen[str]:
    """Starts a run, and waits until it has begun to write its video."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    process = subprocess.Popen(command(*arguments), **pipes)  # type: ignore[call-overload]
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > size):
        assert process.poll() is None and time.monotonic() < deadline, "no video came"
        time.sleep(0.1)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_endless_run_leaves_a_playable_file(number, tmp_path, prompt):
    path, partial = tmp_path / "endless.mp4", tmp_path / "endless.partial.mp4"
    process = started("generate", prompt, "-o", path, "--endless", partial=partial)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "finishing this chunk; again to stop now" in err
    frames, _ = decode(path)
    assert frames >= 16 and f"{frames} frames" in out
    assert not partial.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_of_some_length_is_no_success(number, tmp_path, prompt):
    """Its status and its name show that the video is incomplete."""
    path, partial = tmp_path / "v.mp4", tmp_path / "v.partial.mp4"
    process = started("generate", prompt, "-o", path, "--seconds", 600, "--save-every", 10_000, partial=partial)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and not path.exists()
    (told,) = re.findall(r"lolrt: stopped after (\d+) of 9600 frames; (.*)", err)
    assert told[1] == f"{partial} holds them; go on with lolrt generate --resume {tmp_path / 'v.snapshot.safetensors'}"
    assert decode(partial)[0] == int(told[0])
    assert (tmp_path / "v.snapshot.safetensors").exists()


def test_the_second_interrupt_stops_at_once(tmp_path, prompt):
    """In the middle of a chunk with so many passes that it would take minutes."""
    process = subprocess.Popen(
        command("generate", prompt, "-o", tmp_path / "v.mp4", "--endless", "--timesteps", ":".join(map(str, range(1000, 10, -1)))),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.read(10)  # the progress bar
    process.send_signal(signal.SIGTERM)
    while "again to stop now" not in said:
        said += process.stderr.read(1)
    assert process.poll() is None
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and time.monotonic() - begun < 10
    assert not list(tmp_path.iterdir())


def test_a_signal_that_is_to_be_ignored_is_ignored(tmp_path, prompt):
    """As nohup requires."""
    path, partial = tmp_path / "v.mp4", tmp_path / "v.partial.mp4"

    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = started("generate", prompt, "-o", path, "--frames", 57, partial=partial, size=0, preexec_fn=nohup)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and decode(path)[0] == 57, err


def test_a_killed_run_leaves_what_it_wrote_as_partial(tmp_path, prompt):
    path = tmp_path / "endless.mp4"
    partial = path.with_name("endless.partial.mp4")
    process = started("generate", prompt, "-o", path, "--endless", partial=partial, size=60_000)
    process.kill()
    process.communicate()
    assert not path.exists()
    with av.open(str(partial)) as container:
        assert sum(1 for _ in container.demux(video=0)) >= 16


@pytest.mark.parametrize("error", [lolrt.OutputError("a file beside it cannot be written"), KeyboardInterrupt()])
def test_what_fails_before_the_first_picture_leaves_nothing(error, tmp_path):
    with pytest.raises(type(error)), lolrt.VideoWriter(tmp_path / "v.mp4", 64, 96, 16):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_size_that_cannot_be_encoded_leaves_nothing(tmp_path):
    frames = torch.zeros(1, 2, 20_000, 3, dtype=torch.uint8)  # enlarged to 256 x 2,560,000
    with pytest.raises(lolrt.OutputError, match="nothing was written"), lolrt.VideoWriter(tmp_path / "v.mp4", 2, 20_000, 16) as writer:
        writer.write(frames)
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_is_not_there_leaves_nothing(tmp_path, monkeypatch):
    def add_stream(*_: object, **__: object) -> None:
        raise av.codec.codec.UnknownCodecError("libx264")

    class Container:
        def __init__(self, *_: object, **__: object) -> None:
            self.add_stream, self.close = add_stream, lambda: None

    monkeypatch.setattr(av, "open", Container)
    with pytest.raises(lolrt.OutputError, match="cannot encode video: libx264"):
        lolrt.VideoWriter(tmp_path / "v.mp4", 64, 96, 16)
    assert not list(tmp_path.iterdir())


def limit_file_size() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


def test_a_disk_that_fills_up(tmp_path, prompt):
    done = run("generate", prompt, "-o", tmp_path / "v.mp4", "--endless", preexec_fn=limit_file_size)
    assert done.returncode == 2
    assert "cannot go on writing" in done.stderr.splitlines()[-1] and "v.partial.mp4" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "v.mp4").exists()


def test_a_reader_that_goes_away(prompt):
    process = subprocess.Popen(command("generate", prompt, "-o", "-", "--endless"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read(100)
    process.stdout.close()
    assert process.wait(timeout=60) == 2
    assert process.stderr is not None and b"standard output is gone" in process.stderr.read()


def test_a_mass_log_that_cannot_be_written_leaves_the_video(tmp_path, prompt):
    """The disk is full when the last rows of the log are written, after the last frame."""
    (tmp_path / "v.mass.csv").symlink_to("/dev/full")
    line = error_of("generate", prompt, "-o", tmp_path / "v.mp4", "--frames", 21, "--probe")
    assert "cannot go on writing" in line and "v.mass.csv: No space left on device" in line
    assert decode(tmp_path / "v.partial.mp4")[0] == 21


@pytest.mark.parametrize("window", [["--recent", 10**9], ["--recall", 3, "--store", 10**9], ["--sinks", 10**7]])
def test_a_window_for_which_there_is_no_memory(window, tmp_path, prompt):
    line = error_of("generate", prompt, "-o", tmp_path / "v.mp4", "--frames", 9, *window)
    assert "take fewer with --sinks, --recent or --store" in line
    assert not list(tmp_path.iterdir())


def test_a_script_with_a_byte_order_mark(tmp_path, prompt):
    """Also with the line ends of systems that write one."""
    (tmp_path / "script.txt").write_bytes(b"\xef\xbb\xbf" + f"0 {prompt}\r\n".encode())
    assert cli.main(["generate", "--script", str(tmp_path / "script.txt"), "-o", str(tmp_path / "v.mp4"), "--frames", "9"]) == 0


def test_two_runs_on_one_output(tmp_path, prompt, capsys):
    """The second is refused, and touches nothing of the first."""
    with lolrt.VideoWriter(tmp_path / "v.mp4", 64, 96, 16) as first:
        first.write(torch.zeros(9, 64, 96, 3, dtype=torch.uint8))
        beside = [tmp_path / "v.snapshot.safetensors", tmp_path / "v.snapshot.safetensors.1.partial", tmp_path / "v.mass.csv"]
        for path in beside:
            path.write_bytes(b"the first one's")
        assert cli.main(["generate", prompt, "-o", str(tmp_path / "v.mp4"), "--save-every", "9", "--probe"]) == 2
        assert "another run is writing" in capsys.readouterr().err
    assert all(path.read_bytes() == b"the first one's" for path in beside)
    assert decode(tmp_path / "v.mp4")[0] == 9


def test_a_video_that_is_removed_while_it_is_made_ends_the_run_with_the_next_chunk(tmp_path, prompt, capsys, monkeypatch):
    written, write = [], lolrt.VideoWriter.write

    def removed(writer: lolrt.VideoWriter, frames: torch.Tensor) -> None:
        write(writer, frames)
        written.append(len(frames))
        (tmp_path / "v.partial.mp4").unlink()

    monkeypatch.setattr(lolrt.VideoWriter, "write", removed)
    run = ["generate", prompt, "-o", str(tmp_path / "v.mp4"), "--seconds", "600", "--timesteps", "1000", "--threads", "1", "--quiet"]
    assert cli.main(run) == 2 and len(written) == 1
    assert capsys.readouterr().err.endswith("v.partial.mp4 was removed, or moved, while it grew\n")
    assert not list(tmp_path.iterdir())


def test_the_video_of_a_killed_run_is_kept(tmp_path, prompt):
    (tmp_path / "v.partial.mp4").write_bytes(b"hours of video")
    assert "v.partial.mp4 is what an earlier run had written" in error_of("generate", prompt, "-o", tmp_path / "v.mp4", "--frames", 9)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("v.partial.mp4", b"hours of video")]


def test_who_is_told_of_the_video_of_a_killed_run_is_told_of_its_snapshot(tmp_path, prompt):
    """A new run removes it, so with the video alone moved away there would be nothing to go on with."""
    for name in ("v.partial.mp4", "v.snapshot.safetensors"):
        (tmp_path / name).write_bytes(b"hours of video")
    told = error_of("generate", prompt, "-o", tmp_path / "v.mp4", "--frames", 9)
    assert f"or go on with it: lolrt generate --resume {tmp_path / 'v.snapshot.safetensors'}, which is to be moved with it" in told
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_run_says(tmp_path, prompt):
    path = tmp_path / "v.mp4"
    asked = "generate", prompt, "-o", path, "--frames", 9
    done = run(*asked, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run(*asked, "--json", "--probe")
    told = {"output": str(path), "frames": 9, "fps": 16, "seconds": 9 / 16, "mass_log": str(tmp_path / "v.mass.csv")}
    assert json.loads(done.stdout) == told and "9/9" in done.stderr
    assert "--json goes to standard output" in error_of("generate", prompt, "-o", "-", "--json")


def test_a_video_that_is_not_to_be_overwritten(tmp_path, prompt):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"mine")
    assert "v.mp4 is there already" in error_of("generate", prompt, "-o", path, "--frames", 9, "--no-overwrite")
    assert path.read_bytes() == b"mine"


def test_the_encoders_loss_is_chosen(tmp_path, prompt):
    sizes = []
    for crf in (1, 40):
        assert cli.main(["generate", prompt, "-o", str(tmp_path / "v.mp4"), "--frames", "9", "--crf", str(crf)]) == 0
        sizes.append((tmp_path / "v.mp4").stat().st_size)
    assert sizes[0] > 4 * sizes[1]


def test_options_of_the_jitter_reach_the_stream(monkeypatch, prompt, tmp_path):
    made = []

    def seen(*arguments, **options):
        made.append(options["rope"])
        raise lolrt.Error("seen")

    monkeypatch.setattr(lolrt.Pipeline, "stream", seen)
    options = ["--sigma", "0.5", "--jitter-seed", "3", "--spread", "stratified", "--scope", "layer", "--positions", "window"]
    assert cli.main(["generate", prompt, "-o", str(tmp_path / "v.mp4"), *options]) == 2
    assert made == [lolrt.Rope("window", 0.5, 3, "stratified", "layer")]


def test_several_prompts_and_seeds_make_a_video_each(tmp_path, capsys):
    """They equal those of separate runs, and the log of each is beside it."""
    prompts, options = (
        ["a red car by the sea at noon", "a blue car by the sea at night"],
        ["--frames", "9", "--timesteps", "1000", "--json"],
    )
    assert cli.main(["generate", *prompts, "--seed", "0:7", "-o", str(tmp_path / "v.mp4"), *options, "--probe"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["output"]).name for line in told] == [f"v-{n}-seed{seed}.mp4" for n in (1, 2) for seed in (0, 7)]
    assert all(Path(line["mass_log"]).exists() for line in told)
    assert cli.main(["generate", prompts[1], "--seed", "7", "-o", str(tmp_path / "alone.mp4"), *options]) == 0
    assert (tmp_path / "alone.mp4").read_bytes() == (tmp_path / "v-2-seed7.mp4").read_bytes()
    assert len({(tmp_path / line["output"]).read_bytes() for line in told}) == 4


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-o", "-"], "several prompts or seeds make a file each"),
        (["-o", "udp://127.0.0.1:9"], "several prompts or seeds make a file each"),
        (["-o", "v.mp4", "--endless"], "--endless makes one video"),
        (["-o", "v.mp4", "--seed", "0:-1"], "--seed must be in 0 .. 2^64 - 1"),
        (["-o", "v.mkv", "--save-every", "9"], "--save-every is for an .mp4 or .m3u8"),
        (["-o", "v.png"], "expected a place for the frame's number, such as v-%05d.png"),
    ],
)
def test_outputs_that_options_do_not_go_with(options, line, tmp_path, monkeypatch, capsys):
    """They are refused before a model is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lolrt, "load", None)
    assert cli.main(["generate", "a red car", "a blue car", *options]) == 2
    assert line in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["v.mp4", "v.gif"])
def test_what_is_in_the_way_is_told_before_a_model_is_loaded(name, tmp_path, monkeypatch, capsys):
    path = tmp_path / name
    path.with_stem("v.partial").write_bytes(b"hours of video")
    monkeypatch.setattr(lolrt, "load", None)
    assert cli.main(["generate", "a red car", "-o", str(path)]) == 2
    assert "is what an earlier run had written" in capsys.readouterr().err
    path.with_stem("v.partial").unlink()
    with lolrt.VideoWriter(path, 64, 96, 16):
        assert cli.main(["generate", "a red car", "-o", str(path)]) == 2
        assert "another run is writing" in capsys.readouterr().err
    (tmp_path / f"folder{path.suffix}").mkdir()
    assert cli.main(["generate", "a red car", "-o", str(tmp_path / f"folder{path.suffix}")]) == 2
    assert "it is a folder" in capsys.readouterr().err


def test_latents_go_out_and_come_in(tmp_path, prompt, tiny):
    """A video that begins with the latents of another equals it, as far as these go. Its own latents are an ordinary safetensors file."""
    options = ["--frames", "21", "--timesteps", "1000", "--threads", "1"]
    assert cli.main(["generate", prompt, "-o", str(tmp_path / "a.mp4"), "--latents", *options]) == 0
    path = tmp_path / "a.latents.safetensors"
    (latents,) = load_file(path).values()
    stream = tiny.stream(prompt, sampler=replace(tiny.sampler, timesteps=(1000,)))
    assert torch.equal(latents, torch.cat([next(stream).latents, next(stream).latents]))
    assert cli.main(["generate", prompt, "-o", str(tmp_path / "b.mp4"), "--start", str(path), *options]) == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert "no latents" in error_of("generate", prompt, "-o", tmp_path / "c.mp4", "--start", MODELS / "tiny" / "vae.safetensors")
    save_file({"latents": latents[:, :2].contiguous()}, path)
    assert "latents of [2, 8, 12]" in error_of("generate", prompt, "-o", tmp_path / "c.mp4", "--start", path)
    assert "cannot read" in error_of("generate", prompt, "-o", tmp_path / "c.mp4", "--start", tmp_path / "no.safetensors")
