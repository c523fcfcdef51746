"""`mapped=True`: weights that stay in their file."""

from __future__ import annotations

import copy
import os
import pickle
import re
import shutil
from functools import partial
from pathlib import Path

import layouts
import pytest
import torch
from safetensors.torch import save_file

import lolrt
from lolrt.checkpoint.load import with_lora
from lolrt.checkpoint.safetensors_file import write_safetensors

EMBEDS = torch.randn(5, layouts.DIT.text_dim, generator=torch.Generator().manual_seed(1))


def in_file(tensor: torch.Tensor, path: Path) -> bool:
    """Whether a tensor is at an address at which the file is mapped."""
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    return any(tensor.data_ptr() in range(*(int(end, 16) for end in line[0].split("-"))) for line in mapped)


@pytest.fixture
def file(tmp_path) -> Path:
    """As `lolrt convert` writes it, in bfloat16."""
    tensors, path = layouts.dit_tensors(), tmp_path / "dit.safetensors"
    write_safetensors(path, {name: tuple(value.shape) for name, value in tensors.items()}, torch.bfloat16, tensors.__getitem__)
    return path


def stream_of(dit: lolrt.CausalDiT) -> lolrt.LatentStream:
    return lolrt.LatentStream(dit, EMBEDS, 8, 8, seed=3, sampler=lolrt.Sampler((1000, 500)))


def test_nothing_is_copied_from_a_converted_file(file):
    dit, copied = lolrt.load_dit(file, mapped=True), lolrt.load_dit(file)
    assert all(in_file(parameter, file) for parameter in dit.parameters())
    assert not any(in_file(parameter, file) for parameter in copied.parameters())
    for one, other, _ in zip(stream_of(dit), stream_of(copied), range(3), strict=False):
        assert torch.equal(one.latents, other.latents)
    assert all(in_file(parameter, file) for parameter in dit.parameters())


def test_of_a_file_of_others_only_q_k_and_v_are_copied(tmp_path):
    """They must lie side by side, which they do not in the files that the safetensors library writes."""
    path = tmp_path / "wan.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in layouts.dit_tensors().items()}, path)
    dit = lolrt.load_dit(path, mapped=True)
    copied = {name for name, parameter in dit.named_parameters() if not in_file(parameter, path)}
    assert copied == {name for name, _ in dit.named_parameters() if re.search(r"self_attn\.[qkv]\.", name)}


def overwrite(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.seek(-64, os.SEEK_END)
        opened.write(bytes(64))


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.rename(path)


@pytest.mark.parametrize("change", [overwrite, partial(os.truncate, length=4096)], ids=["overwritten", "truncated"])
def test_a_stream_ends_when_its_file_is_written(file, change):
    """And the process goes on, with the weights of other files."""
    stream, again = stream_of(lolrt.load_dit(file, mapped=True)), shutil.copy(file, file.with_name("copy.safetensors"))
    next(stream)
    change(file)
    for _ in range(2):
        with pytest.raises(lolrt.CheckpointError, match="was written while"):
            next(stream)
    assert next(stream_of(lolrt.load_dit(again, mapped=True))).latents.isfinite().all()


@pytest.mark.parametrize("change", [Path.unlink, replace], ids=["removed", "replaced"])
def test_a_stream_goes_on_when_its_file_is_removed_or_replaced(file, change):
    stream, alone = stream_of(lolrt.load_dit(file, mapped=True)), stream_of(lolrt.load_dit(file))
    assert torch.equal(next(stream).latents, next(alone).latents)
    change(file)
    assert torch.equal(next(stream).latents, next(alone).latents)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda dit: pickle.loads(pickle.dumps(dit))], ids=["copy", "pickle"])
def test_a_copy_has_weights_of_its_own(file, copied):
    dit = copied(lolrt.load_dit(file, mapped=True))
    assert not any(in_file(parameter, file) for parameter in dit.parameters())
    overwrite(file)
    assert next(stream_of(dit)).latents.isfinite().all()


def test_other_adapters_leave_the_other_weights_in_the_file(file, tmp_path):
    save_file(layouts.lora_tensors(4), tmp_path / "lora.safetensors")
    dit = with_lora(lolrt.load_dit(file, mapped=True), str(tmp_path / "lora.safetensors"))
    assert in_file(dit.head.head.weight, file)
    stream = stream_of(dit)
    next(stream)
    overwrite(file)
    with pytest.raises(lolrt.CheckpointError, match="was written while"):
        next(stream)


def test_layers_of_int8_cannot_stay_in_the_file(file):
    with pytest.raises(lolrt.Error, match="mapped=True"):
        lolrt.load_dit(file, linear="int8", mapped=True)
