"""The command line as a user meets it, in processes of its own."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch

import lolrt
from lolrt import cli
from lolrt.pipeline import MODELS

pytestmark = pytest.mark.whole


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "lolrt", *map(str, arguments)]


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def prompt(tiny) -> str:
    return tiny.example_prompts[0]


def decode(path: Path) -> tuple[int, tuple[int, int]]:
    """Frames in a video, and the size of the last."""
    with av.open(str(path)) as container:
        frames = [frame for frame in container.decode(video=0)]
    return len(frames), (frames[-1].width, frames[-1].height)


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
    """Those that are given, not the defaults; and not with --quiet."""
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
    # Said before the prompt is encoded, and the model loaded.
    line = error_of("generate", "a red unicorn", "-o", tmp_path / "c.mp4", "--start", tmp_path / "nothing.png")
    assert "cannot read" in line and "nothing.png" in line


def started(*arguments: object, partial: Path, size: int = 20_000, **options: object) -> subprocess.Popen[str]:
    """A run that has begun to write its video."""
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
    """Its status and its name say that the video is a part."""
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
    """In a chunk of so many passes that it would take minutes."""
    process = subprocess.Popen(
        command("generate", prompt, "-o", tmp_path / "v.mp4", "--endless", "--timesteps", ":".join(map(str, range(1000, 10, -1)))),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.read(10)  # the bar
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
    """As nohup asks for."""
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


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-", "2>/dev/full", "2>/dev/full >/dev/full"])
def test_standard_streams_that_cannot_be_written(closed, tmp_path, prompt):
    """The video is made all the same, and nothing else is written into it."""
    line = f'exec "$0" -m lolrt generate "$1" -o v.mp4 --frames 9 --threads 1 {closed}'
    done = subprocess.run(["sh", "-c", line, sys.executable, prompt], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == (2 if " >/dev/full" in closed else 0), done.stderr  # where the last line cannot be told
    assert "Traceback" not in done.stderr + done.stdout
    quiet = tmp_path / "quiet.mp4"
    assert run("generate", prompt, "-o", quiet, "--frames", 9, "--threads", 1).returncode == 0
    assert (tmp_path / "v.mp4").read_bytes() == quiet.read_bytes()


def test_standard_output_that_can_take_no_video(tmp_path, prompt):
    line = 'exec "$0" -m lolrt generate "$1" -o - --frames 9 >&-'
    done = subprocess.run(["sh", "-c", line, sys.executable, prompt], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2 and "standard output is closed; choose a file with -o" in done.stderr
    main, terminal = os.openpty()
    done = subprocess.run(command("generate", prompt, "-o", "-"), stdout=terminal, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(terminal)
    os.close(main)
    assert done.returncode == 2 and "standard output is a terminal" in done.stderr


@pytest.mark.parametrize("words", [["info"], ["--help"], ["inspect", MODELS / "tiny"]])
def test_a_reader_of_text_that_goes_away_or_is_full(words):
    unread, written = os.pipe()
    os.close(unread)
    full = os.open("/dev/full", os.O_WRONLY)
    for output, status, told in ((written, 141, ""), (full, 2, "lolrt: cannot write to standard output: No space left on device; ")):
        # Unbuffered, argparse would keep to itself that nobody reads its help.
        options = {"stdout": output, "stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "PYTHONUNBUFFERED": ""}}
        done = subprocess.run(command(*words), timeout=120, **options)
        os.close(output)
        assert done.returncode == status and done.stderr.startswith(told) and len(done.stderr.splitlines()) == bool(told), done.stderr


def test_a_name_that_the_terminal_has_no_letters_for(tmp_path, prompt):
    path = tmp_path / "café.mp4"
    done = run("generate", prompt, "-o", path, "--frames", 9, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and r"caf\xe9.mp4: 9 frames" in done.stdout, done.stderr
    assert decode(path)[0] == 9


def test_a_mass_log_that_cannot_be_written_leaves_the_video(tmp_path, prompt):
    """The disk is full when its last rows are written, after the last frame."""
    (tmp_path / "v.mass.csv").symlink_to("/dev/full")
    line = error_of("generate", prompt, "-o", tmp_path / "v.mp4", "--frames", 21, "--probe")
    assert "cannot go on writing" in line and "v.mass.csv: No space left on device" in line
    assert decode(tmp_path / "v.partial.mp4")[0] == 21


@pytest.mark.parametrize("window", [["--recent", 10**9], ["--recall", 3, "--store", 10**9], ["--recent", 10**21], ["--sinks", 10**7]])
def test_a_window_for_which_there_is_no_memory(window, tmp_path, prompt):
    line = error_of("generate", prompt, "-o", tmp_path / "v.mp4", "--frames", 9, *window)
    assert "take fewer with --sinks, --recent or --store" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")])
def test_memory_that_does_not_suffice_is_one_line(error, monkeypatch, capsys):
    raised = [error, RuntimeError("a fault of ours")]

    def fails() -> None:
        raise raised.pop(0)

    monkeypatch.setattr(cli, "check_kernels", fails)
    assert cli.main(["info"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lolrt: the memory does not suffice")
    with pytest.raises(RuntimeError, match="a fault of ours"):
        cli.main(["info"])


def test_a_script_with_a_byte_order_mark(tmp_path, prompt):
    """And with the line ends of the system that writes one."""
    (tmp_path / "script.txt").write_bytes(b"\xef\xbb\xbf" + f"0 {prompt}\r\n".encode())
    assert cli.main(["generate", "--script", str(tmp_path / "script.txt"), "-o", str(tmp_path / "v.mp4"), "--frames", "9"]) == 0


def test_two_runs_on_one_output(tmp_path, prompt, capsys):
    """The second is refused, and touches nothing that is the first one's."""
    with lolrt.VideoWriter(tmp_path / "v.mp4", 64, 96, 16) as first:
        first.write(torch.zeros(9, 64, 96, 3, dtype=torch.uint8))
        beside = [tmp_path / "v.snapshot.safetensors", tmp_path / "v.snapshot.safetensors.1.partial", tmp_path / "v.mass.csv"]
        for path in beside:
            path.write_bytes(b"the first one's")
        assert cli.main(["generate", prompt, "-o", str(tmp_path / "v.mp4"), "--save-every", "9", "--probe"]) == 2
        assert "another run is writing" in capsys.readouterr().err
    assert all(path.read_bytes() == b"the first one's" for path in beside)
    assert decode(tmp_path / "v.mp4")[0] == 9


def test_the_video_of_a_killed_run_is_kept(tmp_path, prompt):
    (tmp_path / "v.partial.mp4").write_bytes(b"hours of video")
    assert "v.partial.mp4 is what an earlier run had written" in error_of("generate", prompt, "-o", tmp_path / "v.mp4", "--frames", 9)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("v.partial.mp4", b"hours of video")]


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


def error_of(*arguments: object, **options: object) -> str:
    """The one line that a failing command prints."""
    done = run(*arguments, **options)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("lolrt: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def test_options_of_the_jitter_reach_the_stream(monkeypatch, prompt, tmp_path):
    made = []

    def seen(*arguments, **options):
        made.append(options["rope"])
        raise lolrt.Error("seen")

    monkeypatch.setattr(lolrt.Pipeline, "stream", seen)
    options = ["--sigma", "0.5", "--jitter-seed", "3", "--spread", "stratified", "--scope", "layer", "--positions", "window"]
    assert cli.main(["generate", prompt, "-o", str(tmp_path / "v.mp4"), *options]) == 2
    assert made == [lolrt.Rope("window", 0.5, 3, "stratified", "layer")]


def test_wrong_input_is_one_clear_line(tmp_path, prompt, data):
    out = tmp_path / "v.mp4"
    assert "unicorn" in (line := error_of("generate", "a red unicorn", "-o", out)) and "vocabulary" in line
    assert "neither an embedded model (tiny) nor a path" in error_of("generate", prompt, "-o", out, "--model", "huge")
    assert "ends in .mp4" in error_of("generate", "a red unicorn", "-o", tmp_path / "v.gif")  # said before any text is encoded
    (tmp_path / "blocked").write_text("a file, where a folder should be")
    assert "cannot write" in error_of("generate", prompt, "-o", tmp_path / "blocked" / "v.mp4")
    assert "sigma" in error_of("generate", prompt, "-o", out, "--sigma", 1.5)
    assert "window" in error_of("generate", prompt, "-o", out, "--recent", 1)
    assert "stretch" in error_of("generate", prompt, "-o", out, "--frequencies", "yarn", "--stretch", 0.5)
    assert "nats" in error_of("generate", prompt, "-o", out, "--sink-bias", "nan")
    assert "--kv fp8 goes with --device cuda" in error_of("generate", prompt, "-o", out, "--kv", "fp8")
    assert "heads of 128 channels" in error_of("info", "--model", "tiny", "--device", "cuda", "--kv", "fp8")
    assert "head_share" in error_of("generate", prompt, "-o", out, "--head-share", 2)
    assert "--seed" in error_of("generate", prompt, "-o", out, "--seed", -1)
    assert "jitter_seed" in error_of("generate", prompt, "-o", out, "--jitter-seed", -1)
    assert "1024" in error_of("generate", prompt, "-o", out, "--threads", 5000)
    assert "it lacks vae, text_encoder" in error_of("generate", prompt, "-o", out, "--model", data / "self_forcing_dmd_small.pt")
    assert not any(path.suffix == ".mp4" for path in tmp_path.iterdir())


def test_a_damaged_model_is_one_clear_line(tmp_path, prompt):
    for source in (MODELS / "tiny").iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    line = error_of("generate", prompt, "-o", tmp_path / "v.mp4", "--model", tmp_path)
    assert str(weights) in line and "damaged" in line


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "check_kernels", interrupted)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "lolrt: interrupted\n"


def test_usage_errors_exit_with_2(tmp_path):
    assert run("generate").returncode == 2
    assert run("generate", "x", "-o", tmp_path / "v.mp4", "--frames", 0).returncode == 2
    assert run("generate", "x", "-o", tmp_path / "v.mp4", "--frames", 5, "--endless").returncode == 2
    done = run("generate", "x", "-o", tmp_path / "v.mp4", "--seconds", "inf")
    assert done.returncode == 2 and "finite" in done.stderr and "Traceback" not in done.stderr


def test_the_version_is_told():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"lolrt {lolrt.__version__}\n")


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """It and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def test_help_says_something_of_every_option_and_no_default_that_is_none():
    commands = list(parsers(cli.parser()))
    assert {"lolrt generate", "lolrt serve", "lolrt lab phase"} <= {command.prog for command in commands}
    for command in commands:
        for action in command._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), f"{command.prog} {action.dest}"
        assert not re.search(r"default: (None|False|\[\])", command.format_help()), command.prog
    told = next(command for command in commands if command.prog.endswith("generate")).format_help()
    assert "(default: 0.8)" in told and "of the noise (default: 0)" in told


def test_info_names_the_kernels_and_models():
    done = run("info")
    assert done.returncode == 0
    assert lolrt.__version__ in done.stdout and "tiny" in done.stdout and "scalar" in done.stdout


def test_a_kernel_set_that_does_not_exist_is_one_clear_line():
    done = run("info", env={**os.environ, "LOLRT_ISA": "sse"})
    assert done.returncode == 2 and "scalar" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("module", "line"), [("torch", "torch is missing"), ("lolrt._core", "the kernels are not built")])
def test_what_is_not_installed_is_one_clear_line(module: str, line: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from lolrt.cli import main; sys.exit(main(['info']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith(f"lolrt: {line}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("first", "environment", "expected"),
    [
        ("lolrt", {}, "10000"),
        ("torch", {}, "None"),
        ("lolrt", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("lolrt", {"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_threads_of_torch_are_told_to_spin_briefly(first: str, environment: dict[str, str], expected: str) -> None:
    """In every program that imports lolrt first, unless its environment says otherwise."""
    code = f"import os, {first}, lolrt; print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == expected


def test_importing_is_light():
    code = "import sys, lolrt; assert not {'torch', 'av', 'numpy'} & set(sys.modules), set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
