"""The error for a file that is no checkpoint says in one line what the file is: by its first bytes, by its tensors, or by its name."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import layouts
import pytest
import torch
from safetensors.torch import save_file

import lolrt
from lolrt.checkpoint import read_safetensors
from lolrt.checkpoint.shapes import listed
from lolrt.cli import main

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0f" * 32 + "\nsize 5676543210\n"
FILES = {
    "an LFS pointer": (POINTER.encode(), "a Git LFS pointer"),
    "a web page": (b"\n <!DOCTYPE HTML>\n<html><head><title>Log in</title></head></html>", r"a web page \(HTML"),
    "a store's answer": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', r"a web page \(HTML or XML"),
    "an error in JSON": (b'{"error": "Access to this model is restricted"}', "text, which begins with .*restricted"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "an HDF5 file"),
    "gzip": (gzip.compress(b"weights" * 100), "compressed with gzip"),
}


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of an error."""
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.gguf"])
@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_called_what_they_are(kind, name, tmp_path, capsys):
    content, hint = FILES[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(lolrt.CheckpointError, match=f"{name} is {hint}"):
        lolrt.load_dit(tmp_path / name)
    line = told(capsys, "inspect", tmp_path / name)
    assert "damaged" not in line and "fetch it again" not in line


def test_gguf_under_another_name_is_told(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"GGUF\3\0\0\0" + bytes(64))
    assert "model.safetensors is a GGUF file under the name of another kind" in told(capsys, "inspect", tmp_path / "model.safetensors")


def test_a_pickle_of_before_torch_1_6_is_not_called_damaged(tmp_path, capsys):
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    line = told(capsys, "inspect", tmp_path / "old.pt")
    assert "of before torch 1.6" in line and "damaged" not in line


@pytest.mark.parametrize("name", ["config.json", "model.toml"])
def test_a_pointer_in_place_of_a_text_file_is_called_one(name, tmp_path):
    layouts.save_wan(tmp_path, layouts.dit_tensors())
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(lolrt.CheckpointError, match=f"{name} is a Git LFS pointer"):
        lolrt.load_dit(tmp_path / "model.toml" if name == "model.toml" else tmp_path)


def test_pipes_and_devices_are_refused_at_once(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.pt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("pipe.pt", "pipe.safetensors", "/dev/zero"):
        (tmp_path / "model.toml").write_text(f'dit = "{name}"\n')
        for path in (tmp_path / "model.toml", tmp_path / name):
            assert "a device or a pipe" in told(capsys, "inspect", path)
    for path in (tmp_path / "pipe.safetensors", "/dev/zero"):
        with pytest.raises(lolrt.CheckpointError, match="a device or a pipe"):
            lolrt.EmbeddingFile(path)
    os.mkfifo(tmp_path / "pipe.toml")
    assert "is no file" in told(capsys, "inspect", tmp_path / "pipe.toml")


VARIANTS = {
    "blocks.{}.cross_attn.k_img.weight": "an image-to-video DiT",
    "img_emb.proj.{}.weight": "an image-to-video DiT",
    "vace_blocks.{}.before_proj.weight": "a VACE DiT",
    "audio_injector.injector.{}.q.weight": "a speech-to-video DiT",
    "control_adapter.conv.{}.weight": "a DiT that is led by a camera",
    "condition_embedder.delta_embedder.linear_{}.weight": "an AnyFlow DiT",
    "far_patch_embedding.{}.weight": "an AnyFlow DiT",
    "compressed_patch_embedding.{}.weight": "an AnyFlow DiT",
    "blocks.{}.self_attn.q.weight.absmax": "weights in the packing of bitsandbytes",
    "blocks.{}.self_attn.q.weight_global_scale": "weights in NVFP4",
    "blocks.{}.self_attn.q.quantized_weight_values": "weights in 4o6",
    "blocks.{}.self_attn.q.pre_quant_scale": "weights in AWQ",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_named_and_their_tensors_are_not_listed(name, tmp_path, capsys):
    tensors = layouts.dit_tensors() | {name.format(i): torch.zeros(2, 2) for i in range(40)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(lolrt.CheckpointError, match=VARIANTS[name]) as error:
        lolrt.load_dit(tmp_path)
    assert str(error.value).count(name.partition("{")[2][1:]) == 1 and len(str(error.value)) < 400
    assert VARIANTS[name] in told(capsys, "convert", tmp_path, tmp_path.with_name("out"))
    assert main(["inspect", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"wrong      {error.value}" in said and "nothing is missing" not in said


# What the config of Wan's other models says; the tensors here are those of a text-to-video model.
MODEL_TYPES = {"i2v": "an image-to-video DiT", "ti2v": "the DiT of Wan2.2-TI2V-5B", "vace": "a VACE DiT", "s2v": "a speech-to-video DiT"}


@pytest.mark.parametrize("kind", [*MODEL_TYPES, "t2v", ["i2v"], None])
def test_what_the_config_of_another_model_says_counts_where_no_tensor_shows_it(kind, tmp_path, capsys):
    folder = layouts.save_wan(tmp_path / "model", layouts.dit_tensors())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    if not isinstance(kind, str) or kind == "t2v":
        assert lolrt.load_dit(folder).config == layouts.DIT
        return
    with pytest.raises(lolrt.CheckpointError, match=rf"{MODEL_TYPES[kind]}.*\(the config beside it says model_type '{kind}'\)") as error:
        lolrt.load_dit(folder)
    assert main(["inspect", str(folder)]) == 0
    assert f"wrong      {error.value}" in capsys.readouterr().out


@pytest.mark.parametrize("extra", ["downsamples.0.downsamples.0.residual.0.gamma", "down_blocks.0.resnets.0.norm1.gamma"])
def test_the_vae_of_wan_2_2_is_named(extra, tmp_path):
    """With its own names, and with diffusers'."""
    tensors = layouts.vae_tensors() if extra.startswith("downsamples") else layouts.as_diffusers("vae", layouts.vae_tensors())
    save_file({**tensors, f"encoder.{extra}": torch.zeros(8, 1, 1, 1)}, tmp_path / "vae.safetensors")
    with pytest.raises(lolrt.CheckpointError, match=r"the VAE of Wan2\.2-TI2V-5B"):
        lolrt.load_vae(tmp_path)


def longlive2(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A folder like diffusers', whose transformer has Wan's names under a wrapper's, as published for LongLive 2."""
    (folder / "transformer").mkdir(parents=True)
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("save", [longlive2, layouts.save_diffusers, layouts.save_wan, layouts.save_pt("generator", "model.{}".format)])
def test_the_dit_of_wan_2_2_and_of_longlive_2_is_named(save, tmp_path, capsys):
    tensors = layouts.dit_tensors()
    tensors |= {
        "patch_embedding.weight": torch.zeros(256, 48, 1, 2, 2),
        "head.head.weight": torch.zeros(192, 256),
        "head.head.bias": torch.zeros(192),
    }
    path = save(tmp_path / "model", tensors)
    for line in (told(capsys, "convert", path, tmp_path / "out"), told(capsys, "generate", "a", "-o", tmp_path / "v.mp4", "--model", path)):
        assert "the DiT of Wan2.2-TI2V-5B, or of LongLive 2" in line or "is not a whole pipeline" in line
    with pytest.raises(
        lolrt.CheckpointError, match=r"the DiT of Wan2\.2-TI2V-5B, or of LongLive 2.*patch_embedding\.weight \[256, 48, 1, 2, 2\]"
    ):
        lolrt.load_dit(path)


def test_the_taehv_of_wan_2_2_is_named(tmp_path):
    torch.save(layouts.taehv_tensors() | {"decoder.1.weight": torch.zeros(256, 48, 3, 3)}, tmp_path / "taew2_2.pth")
    with pytest.raises(lolrt.CheckpointError, match=r"the TAEHV of Wan2\.2-TI2V-5B"):
        lolrt.load_taehv(tmp_path / "taew2_2.pth")


def test_names_that_differ_in_a_number_are_told_as_one():
    names = [f"blocks.{i}.ffn.0.bias" for i in range(12)] + ["blocks.3.a", "blocks.5.a", "blocks.6.a", "head.head.bias", "x.01.y", "x.1.y"]
    assert listed(reversed(names)) == "blocks.{0-11}.ffn.0.bias, blocks.3.a, blocks.5.a, blocks.6.a, head.head.bias, x.01.y, x.1.y"


def shards(folder: Path) -> list[Path]:
    """Shards of a DiT, without an index."""
    folder = layouts.save_sharded(folder, layouts.dit_tensors())
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    return sorted(folder.glob("*.safetensors"))


def test_shards_without_their_index_are_told(tmp_path, capsys):
    files = shards(tmp_path / "model")
    for path in (tmp_path / "model", files[0]):
        line = told(capsys, "inspect", path)
        assert "is shard 1 of 3" in line and "diffusion_pytorch_model.safetensors.index.json" in line
    for path in files[:2]:
        path.unlink()
    assert "is shard 3 of 3" in told(capsys, "inspect", tmp_path / "model")


@pytest.mark.parametrize("stray", ["._model.safetensors", ".ipynb_checkpoints/model-checkpoint.safetensors", "transformer/._x.safetensors"])
def test_what_systems_and_editors_keep_beside_files_is_left_alone(stray, tmp_path):
    layouts.save_diffusers(tmp_path, layouts.dit_tensors())
    (tmp_path / stray).parent.mkdir(exist_ok=True)
    (tmp_path / stray).write_bytes(b"\0\5\26\7 no weights")
    assert lolrt.load_dit(tmp_path).config == layouts.DIT


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    layouts.save_wan(tmp_path / "wan", layouts.dit_tensors())
    config = tmp_path / "wan" / "config.json"
    config.write_text(config.read_text(), encoding="utf-8-sig")
    (tmp_path / "model.toml").write_text('dit = "wan"\n', encoding="utf-8-sig")
    assert lolrt.load_dit(tmp_path / "model.toml").config == layouts.DIT


def test_a_file_larger_than_memory_is_mapped_and_its_tensors_can_be_written_to(tmp_path):
    header = b'{"a": {"dtype": "U8", "shape": [%d], "data_offsets": [0, %d]}}' % ((1 << 40) + 8, (1 << 40) + 8)
    header += b" " * (-len(header) % 8)
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 40) + 8)  # sparse, because no disk can hold it
    (tensor,) = read_safetensors(tmp_path / "a.safetensors").values()
    tensor[-1] = 3
    assert tensor[0] == 0 and tensor[-1] == 3 and tensor.nbytes > 1 << 40
    with open(tmp_path / "a.safetensors", "rb") as file:
        file.seek(-1, os.SEEK_END)
        assert file.read() == b"\0", "the file is as it was"
