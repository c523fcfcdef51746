"""Which tests `make test-fast`, `make test` and `make test-slow` run: the result of tiers.py and pyproject.toml for each mark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
MARKED = """
import pytest

def test_fast(): pass

@pytest.mark.whole
def test_whole(): pass

@pytest.mark.slow
def test_slow(): pass
"""
TWICE = "import pytest\npytestmark = pytest.mark.whole\n@pytest.mark.{}\ndef test_it(): pass\n"


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder with only the settings of this one."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take seconds to import
    (pytester.path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    pytester.makeconftest((ROOT / "tests" / "tiers.py").read_text())
    return pytester


def test_each_command_runs_its_tiers(suite):
    suite.makepyfile(MARKED)
    commands = dict(
        re.findall(
            r'^(test[a-z-]*): .*\n\t\$\(BIN\)/pytest (?:\$\(IN_TWO_PROCESSES\) )?-m "?([a-z ]+)"?$',
            (ROOT / "Makefile").read_text(),
            re.MULTILINE,
        )
    )
    assert commands.keys() == {"test", "test-fast", "test-slow"}
    for command, names in {"test": ["fast", "whole"], "test-fast": ["fast"], "test-slow": ["slow"]}.items():
        found = suite.inline_run("-m", commands[command], "-p", "no:cacheprovider").listoutcomes()[0]
        assert [report.nodeid.rpartition("_")[2] for report in found] == names


@pytest.mark.parametrize(
    "mark, hint", [("slow", "marked slow and whole"), ("whole", "marked whole and whole"), ("wholly", "'wholly' not found")]
)
def test_a_mark_too_many_and_an_unknown_one_are_refused(suite, mark, hint):
    suite.makepyfile(TWICE.format(mark))
    done = suite.runpytest_inprocess("-p", "no:cacheprovider")
    assert done.ret not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    assert hint in "\n".join(done.outlines + done.errlines)
