"""A file of weights that becomes shorter while it is read causes an error that names it, and never ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import layouts
import pytest
import torch

import lolrt
from lolrt.checkpoint.synth import synth

CUT = """
import os, sys
from pathlib import Path
import torch, lolrt
from lolrt.checkpoint import convert, load, mapped
from lolrt.text import umt5

folder, name, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
read = load.read_component
cut = lambda: os.truncate(folder / name, 4096)  # the headers stay

def found(*arguments, **options):  # names and shapes are known, and nothing has been read
    component = read(*arguments, **options)
    cut()
    return component

load.read_component = convert.read_component = umt5.read_component = found
try:
    if what == "convert":
        convert.convert(folder, folder.with_name("made"))
    elif what == "text":
        umt5.CachedUMT5(folder, folder / "tokenizer", folder)
    else:
        getattr(lolrt, what)(folder, dtype=torch.float32)
except lolrt.CheckpointError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth(tmp_path_factory.mktemp("synth") / "small", "small")


@pytest.mark.whole
@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("load_dit", "diffusion_pytorch_model.safetensors"),
        ("load_vae", "vae.safetensors"),
        ("convert", "vae.safetensors"),
        ("text", "t5.pth"),
    ],
)
def test_a_file_that_is_cut_while_it_is_read(what: str, name: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    if what == "text":
        torch.save(layouts.text_encoder_tensors(), folder / "t5.pth")
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    done = subprocess.run([sys.executable, "-c", CUT, folder, name, what], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert name in done.stdout and "has become shorter while it was read" in done.stdout, done.stdout
    assert not (tmp_path / "made").exists()


def test_another_bus_error_still_ends_the_process(tmp_path: Path) -> None:
    """Only our own mappings are guarded."""
    code = """
import ctypes, mmap, sys
from lolrt.checkpoint.mapped import map_file
from pathlib import Path
path = Path(sys.argv[1])
path.write_bytes(bytes(range(256)) * 64)
data = map_file(path)  # sets the handler
with open(path, "r+b") as file:
    other = mmap.mmap(file.fileno(), 0)
    file.truncate(0)
print(int(data.sum()), flush=True)
other[0]
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (-7, "0\n"), done


def test_a_mapping_that_is_gone_is_not_guarded(tmp_path: Path) -> None:
    """Its slot is free for the next mapping, however many there were."""
    from lolrt.checkpoint.mapped import map_file

    (tmp_path / "x").write_bytes(os.urandom(5000))
    for _ in range(3000):
        map_file(tmp_path / "x")
    data = map_file(tmp_path / "x")
    number = lolrt._core.guard_mapping(data.data_ptr(), len(data))
    assert number >= 0
    lolrt._core.unguard_mapping(number)
