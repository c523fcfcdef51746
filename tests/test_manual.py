"""The manual: every block of Python and bash in a page is run, every command in it is one that the parser takes, and the site has a page
for everything that is public."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from commands import BIN
from safetensors.torch import save_file

import lolrt
from lolrt import cli
from lolrt.pipeline import MODELS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *MODELS.glob("*/README.md")])
FENCED = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPETS = {path.name: blocks for path in PAGES if (blocks := FENCED.findall(path.read_text()))}
SLOW = {"embedding.md", "first-video.md", "measuring.md", "policies.md", "probe.md"}  # many processes, JAX, a benchmark


def prepare_streams(folder: Path) -> None:
    """The parts of tiny in separate files, and two adapters of one of its layers."""
    tiny = MODELS / "tiny"
    settings = {"dit": tiny / "diffusion_pytorch_model.safetensors", "vae": tiny / "vae.safetensors", "vocabulary": tiny}
    (folder / "model.toml").write_text("".join(f'{part} = "{path}"\n' for part, path in settings.items()) + "height = 64\nwidth = 96\n")
    dim, layer = lolrt.load_dit(tiny).config.dim, "diffusion_model.blocks.0.self_attn.q"
    for name in ("style", "motion"):
        adapter = {f"{layer}.lora_down.weight": torch.ones(1, dim), f"{layer}.lora_up.weight": torch.ones(dim, 1)}
        save_file(adapter, folder / f"{name}.safetensors")


PREPARED = {"streams.md": prepare_streams}


@contextlib.contextmanager
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The variables that torchrun sets for a process."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def absent(code: str) -> set[str]:
    """The packages that the code imports and that are not installed."""
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names if isinstance(node, ast.Import)}
    names |= {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    return {top for name in names if importlib.util.find_spec(top := name.partition(".")[0]) is None}


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else pytest.mark.whole) for page in SNIPPETS])
def test_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order: later ones may use what earlier ones define or write."""
    monkeypatch.chdir(tmp_path)
    PREPARED.get(page, lambda folder: None)(tmp_path)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    names: dict[str, Any] = {"__name__": page}
    missing: set[str] = set()
    with one_rank(monkeypatch):
        for language, block in SNIPPETS[page]:
            if language == "bash":
                done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], env=environment, capture_output=True, text=True)
                assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
            elif not (lacks := absent(block)):
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(block, page, "exec"), names)
            missing |= lacks if language == "python" else set()
    if missing:
        pytest.skip(f"all but the snippets with {', '.join(sorted(missing))}")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command `lolrt` in the text's indented blocks, without comments and redirections."""
    for line in re.findall(r"^    (?:\S*/)?lolrt (.*)$", text, re.MULTILINE):
        words = shlex.split(line, comments=True)
        ends = [i for i, word in enumerate(words) if word[0:1] in ("|", ">", "&") or word == "2>"]
        yield words[: min(ends, default=len(words))]


@pytest.mark.parametrize("page", [path for path in PAGES if list(commands(path.read_text()))], ids=lambda path: path.name)
def test_the_parser_takes_every_command(page: Path) -> None:
    for words in commands(page.read_text()):
        try:
            cli.parser().parse_args(words)
        except SystemExit as refused:
            assert refused.code == 0, words


def test_the_reference_has_every_public_name() -> None:
    named = re.findall(r"^::: lolrt\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(lolrt.__all__)


def test_the_site_shows_every_page() -> None:
    """mkdocs itself does not report a page that no menu leads to."""
    menu = set(re.findall(r"^ +- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= menu
