"""The output and the failures of the command line, in separate processes."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lolrt_command import command, decode, error_of, run

import lolrt
from lolrt import cli
from lolrt.fields import fields_of, integers
from lolrt.pipeline import MODELS

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def prompt(tiny) -> str:
    return tiny.example_prompts[0]


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-", "2>/dev/full", "2>/dev/full >/dev/full"])
def test_standard_streams_that_cannot_be_written(closed, tmp_path, prompt):
    """The video is made nevertheless, and nothing else is written into it."""
    line = f'exec "$0" -m lolrt generate "$1" -o v.mp4 --frames 9 --threads 1 {closed}'
    done = subprocess.run(["sh", "-c", line, sys.executable, prompt], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == (2 if " >/dev/full" in closed else 0), done.stderr  # the last line cannot be printed there
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
        # With buffering, argparse would not notice that nobody reads its help.
        options = {"stdout": output, "stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "PYTHONUNBUFFERED": ""}}
        done = subprocess.run(command(*words), timeout=120, **options)
        os.close(output)
        assert done.returncode == status and done.stderr.startswith(told) and len(done.stderr.splitlines()) == bool(told), done.stderr


def test_a_folder_that_is_gone(tmp_path):
    """Where the process was started; torch ends the process there, in words of its own."""
    line = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" -m lolrt info'
    done = subprocess.run(["sh", "-c", line, sys.executable], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "lolrt was started is gone" in done.stderr


def test_a_name_that_the_terminal_has_no_letters_for(tmp_path, prompt):
    path = tmp_path / "café.mp4"
    done = run("generate", prompt, "-o", path, "--frames", 9, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and r"caf\xe9.mp4: 9 frames" in done.stdout, done.stderr
    assert decode(path)[0] == 9


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
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


def test_wrong_input_is_one_clear_line(tmp_path, prompt, data):
    out = tmp_path / "v.mp4"
    assert "unicorn" in (line := error_of("generate", "a red unicorn", "-o", out)) and "vocabulary" in line
    assert "neither an embedded model (journey, tiny) nor a path" in error_of("generate", prompt, "-o", out, "--model", "huge")
    assert "ends in .mp4" in error_of("generate", "a red unicorn", "-o", tmp_path / "v.avi")  # reported before any text is encoded
    (tmp_path / "blocked").write_text("a file, where a folder should be")
    assert "cannot write" in error_of("generate", prompt, "-o", tmp_path / "blocked" / "v.mp4")
    assert "sigma" in error_of("generate", prompt, "-o", out, "--sigma", 1.5)
    assert "window" in error_of("generate", prompt, "-o", out, "--recent", 1)
    assert "stretch" in error_of("generate", prompt, "-o", out, "--frequencies", "yarn", "--stretch", 0.5)
    assert "nats" in error_of("generate", prompt, "-o", out, "--sink-bias", "nan")
    assert "--kv fp8 goes with --device cuda" in error_of("generate", prompt, "-o", out, "--kv", "fp8")
    assert "heads of 128 channels" in error_of("info", "--model", "tiny", "--device", "cuda", "--kv", "fp8")
    assert "--kv int8 goes with --device cpu" in error_of("info", "--model", "tiny", "--device", "cuda", "--kv", "int8")
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
    assert done.returncode == 2 and "inf is not a number above 0" in done.stderr and "Traceback" not in done.stderr


def test_the_version_is_told():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"lolrt {lolrt.__version__}\n")


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The main parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def test_help_says_something_of_every_option_and_no_default_that_is_none():
    commands = list(parsers(cli.parser()))
    assert {"lolrt generate", "lolrt serve", "lolrt lab phase"} <= {command.prog for command in commands}
    for parsed in commands:
        for action in parsed._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), f"{parsed.prog} {action.dest}"
        assert not re.search(r"default: (None|False|\[\])", parsed.format_help()), parsed.prog
    told = next(command for command in commands if command.prog.endswith("generate")).format_help()
    assert "(default: 0.8)" in told and "make a video each (default: 0)" in " ".join(told.split())


ABSURD = ("nan", "inf", "-inf", "-1", "1e300", f"1{400 * '0'}", 5000 * "9")
# What is refused later than by the parser: by the dataclass that the option is a field of. A gate may have a bias of -inf.
OWNERS = {field.name: owner for owner in ("Rope", "Window", "SinkGate", "Sampler") for field in fields_of(owner)}
SENSIBLE = {("bias", "-inf"), ("bias", "-1"), ("kernel_level", "-1")}


def test_absurd_numbers_are_refused_in_every_option():
    refused = 0
    for parsed in parsers(cli.parser()):
        for action in parsed._actions:
            if action.type in (None, str, Path) or (action.dest, action.type) == ("seed", integers) or action.choices:
                continue
            for text in ABSURD:
                try:
                    value = action.type(text)  # type: ignore[operator]
                except (ValueError, argparse.ArgumentTypeError) as error:
                    assert "\n" not in str(error)
                else:
                    with contextlib.suppress(lolrt.Error):
                        owner = getattr(lolrt, OWNERS[action.dest])(**{action.dest: value})
                        if action.dest == "bases":
                            owner.head_bases(1, 1)
                        assert (action.dest, text) in SENSIBLE, f"{parsed.prog} {action.option_strings} {text[:20]}"
                refused += 1
    assert refused > 300


def test_an_absurd_length_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "a car", "-o", str(tmp_path / "v.mp4"), "--seconds", "1e300"])
    assert capsys.readouterr().err.endswith("error: argument --seconds: 1e300 is not a number above 0, up to 1,000,000,000\n")


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
    """In every program that imports lolrt first, unless its environment sets it."""
    code = f"import os, {first}, lolrt; print(os.environ.get('GOMP_SPINCOUNT'))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == expected


def test_importing_is_light():
    code = "import sys, lolrt; assert not {'torch', 'av', 'numpy'} & set(sys.modules), set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_server_without_a_temporary_folder_says_so_before_it_loads_a_model(tmp_path, monkeypatch, capsys):
    """Python looks for one in several places; here all of them are missing."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    assert cli.main(["serve", "--model", "nowhere"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lolrt: there is no temporary folder (") and line.endswith("set TMPDIR to a folder that can be written")
