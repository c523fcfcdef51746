"""What bash completes with the script of `lolrt completion`, and the groups of `lolrt --help`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from lolrt_in_process import said

from lolrt import cli

COMPLETED = """
source {script}
[[ $(complete -p lolrt) =~ -F\\ ([^ ]+) ]]
COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
${{BASH_REMATCH[1]}} lolrt "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
printf '%s\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lolrt gen", {"generate"}),
        ("lolrt lab ro", {"rollout"}),
        ("lolrt generate --recac", {"--recache"}),
        ("lolrt generate --vae ''", {"full", "tiny", "light"}),
        ("lolrt completion ''", {"bash", "zsh", "tcsh"}),
        ("lolrt generate --script d", {"day.txt"}),
        ("lolrt convert v", {"v.mp4"}),
    ],
)
def test_bash_completes(words: str, expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "completion").write_text(said(capsys, "completion", "bash"))
    for name in ("day.txt", "v.mp4"):
        (tmp_path / name).touch()
    done = subprocess.run(
        ["bash", "-c", COMPLETED.format(script="completion", words=words)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == expected


def test_every_command_is_in_one_group_of_the_help() -> None:
    groups = dict(re.findall(r"^([a-z ]+):\n((?:  .*\n)+)", cli.parser().format_help(), re.MULTILINE))
    assert list(groups) == [*cli.GROUPS, "options"]
    told = [re.findall(r"^  (\w+) ", lines, re.MULTILINE) for title, lines in groups.items() if title != "options"]
    there = [[command.__name__.rpartition(".")[2] for command in members] for members in cli.GROUPS.values()]
    assert told == there
