"""Text in files never reaches the terminal as a command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import layouts
import packings
import pytest
import torch
from ggufs import save_gguf
from safetensors.torch import save_file

import lolrt
from lolrt.cli import main
from lolrt.pipeline import MODELS

COMMAND = "\x1b]0;owned\x07\x1b[2J"


@pytest.mark.parametrize(
    "file, path, prompt",
    [
        ("model.json", ["sampler", COMMAND], "a red car"),
        ("text.json", ["groups", COMMAND], "a zebra"),
        ("text.json", ["groups", "place"], "a zebra"),
    ],
)
def test_text_of_a_models_files_does_not_command_the_terminal(file, path, prompt, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(MODELS / "tiny", model)
    values = json.loads((model / file).read_text())
    values[path[0]][path[1]] = [COMMAND]
    (model / file).write_text(json.dumps(values))
    assert main(["generate", prompt, "-o", str(tmp_path / "v.mp4"), "--model", str(model)]) == 2
    told = capsys.readouterr().err
    assert "\\x1b]0;owned" in told and all(line.isprintable() for line in told.splitlines())


def odd_name_in(container: str, folder: Path) -> Path:
    """A model with a tensor, a key or an entry that contains control sequences for the terminal, and the path to read it by."""
    odd = {f"blocks.0.{COMMAND}.weight": torch.zeros(32, 32)}
    whole, path = layouts.dit_tensors() | odd, folder / "x.safetensors"
    if container == "safetensors":
        save_file(whole, path)
    elif container == "pickle":
        path = folder / "x.pt"
        torch.save({"generator": whole, f"generator_{COMMAND}": whole}, path)
    elif container == "gguf":
        path = folder / "x.gguf"
        save_gguf(path, whole, "Q8_0", COMMAND)
    elif container == "comfy_quant":
        file, _, _ = packings.PACKINGS["fp8_scaled"](packings.dit_tensors())
        said = torch.tensor(list(json.dumps({"format": "float8_e4m3fn", COMMAND: COMMAND}).encode()), dtype=torch.uint8)
        save_file({**file, "blocks.0.ffn.0.comfy_quant": said}, path)
    elif container == "lora":
        save_file(layouts.dit_tensors(), path)
        save_file({f"blocks.0.{COMMAND}.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}, folder / "lora.safetensors")
        path = folder
    elif container == "index":
        layouts.save_sharded(folder / "x", layouts.dit_tensors())
        (index,) = (folder / "x").glob("*.json")
        index.write_text(index.read_text().replace('"head.head.bias"', json.dumps(COMMAND)))
        path = folder / "x"
    else:
        path = folder / "x.toml"
        path.write_text(f"dit = {json.dumps(COMMAND)}\n{json.dumps(COMMAND)} = 3\n")
    return path


@pytest.mark.parametrize("container", ["safetensors", "pickle", "gguf", "comfy_quant", "lora", "index", "toml"])
def test_names_in_files_do_not_command_the_terminal(container, tmp_path, capsys):
    path = odd_name_in(container, tmp_path)
    with pytest.raises(lolrt.CheckpointError) as error:
        lolrt.load_dit(path)
    assert str(error.value).isprintable()
    statuses = [main(["inspect", *option, str(path)]) for option in ([], ["--json"])] + [main(["convert", str(path), f"{tmp_path} out"])]
    told = capsys.readouterr()
    assert statuses[2] == 2 and "owned" in told.out + told.err
    assert all(line.isprintable() for line in (told.out + told.err).splitlines())
