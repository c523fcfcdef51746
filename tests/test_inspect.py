"""lolrt inspect, and which weights of a file are used."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import layouts
import pytest
import torch
from lolrt_in_process import refused, said
from safetensors.torch import load_file, save_file

import lolrt
from lolrt.checkpoint import find_files
from lolrt.checkpoint.convert import convert
from lolrt.checkpoint.synth import synth
from lolrt.models.vae.layers import VAEConfig
from lolrt.pipeline import preferred_dtype

pytestmark = pytest.mark.whole

BYTES = preferred_dtype().itemsize


def test_inspect_says_what_is_there(self_forcing, capsys):
    told = said(capsys, "inspect", self_forcing)
    assert "DiT with Wan's names, from 'generator_ema', wrappers removed" in told
    assert "DiT with Wan's names, from 'generator', wrappers removed" in told
    assert "num_layers 2" in told and "read off the tensors" in told
    assert "VAE with Wan's names" in told and "UMT5 text encoder with Wan's names" in told and "TAEHV with TAEHV's names" in told
    assert "of bfloat16" in told and "of float32" in told


def test_inspect_says_what_is_wrong(tmp_path, capsys):
    tensors = {name.replace("norm3", "norm4"): tensor for name, tensor in layouts.dit_tensors().items()}
    tensors["head.head.bias"] = torch.zeros(3)
    layouts.save_wan(tmp_path, tensors)
    told = said(capsys, "inspect", tmp_path)
    assert "missing: blocks.0.norm3.bias, blocks.0.norm3.weight, blocks.1.norm3.bias, blocks.1.norm3.weight" in told
    assert "unexpected: blocks.0.norm4.bias" in told and "head.head.bias [3] instead of [64]" in told
    assert "needed for a pipeline: VAE, UMT5 text encoder" in told
    assert "expected a folder" in refused(capsys, "inspect", tmp_path / "nowhere")


def test_inspect_says_which_of_several_weights_are_used(self_forcing, tmp_path, capsys):
    unused = "from 'generator', wrappers removed; used with --weights generator"
    assert unused in said(capsys, "inspect", self_forcing)
    (tmp_path / "m.toml").write_text('dit = "downloads/x.pt"\nweights = "generator"\n')
    told = said(capsys, "inspect", tmp_path / "m.toml")
    assert unused not in told and "wrappers removed; used with --weights generator_ema" in told


def test_inspect_says_the_same_as_json(self_forcing, capsys):
    found = json.loads(said(capsys, "inspect", "--json", self_forcing))
    told = said(capsys, "inspect", self_forcing)
    parts = {(part["kind"], part["group"]): part for part in found["parts"]}
    assert parts.keys() == {("dit", "generator_ema"), ("dit", "generator"), ("vae", ""), ("text_encoder", ""), ("taehv", "")}
    assert {key for key, part in parts.items() if not part["used"]} == {("dit", "generator")}
    dit, tensors = parts["dit", "generator_ema"], layouts.dit_tensors()
    count = sum(tensor.numel() for tensor in tensors.values())
    assert (dit["tensors"], dit["parameters"], dit["stored"]) == (len(tensors), count, {"float32": 4 * count})
    assert dit["memory"] == {"bfloat16": 2 * count, "float32": 4 * count} and dit["file"] == str(self_forcing / "x.pt")
    sizes = asdict(layouts.DIT)
    assert dit["config"] == {name: list(x) if isinstance(x, tuple) else x for name, x in sizes.items() if x is not None}
    assert dit["checked"] and not dit["wrong"] and not dit["config_beside"]
    assert found["tokenizers"] == [str(self_forcing / "tokenizer")] and found["vocabulary"] is None and found["missing"] == []
    assert found["sampling"]["timesteps"] == [1000, 750, 500, 250] and found["sampling"]["chunk_frames"] == 3
    assert found["wrong"] == ["the text encoder gives 32 channels, the DiT takes 48; take both of one model"]
    for text in (f"{count:,} parameters", dit["title"], *found["wrong"], "timesteps 1000, 750, 500, 250", found["tokenizers"][0]):
        assert text in told


def test_json_of_what_is_wrong_has_nothing_that_a_terminal_obeys(tmp_path, capsys):
    name = "blocks.0.\x1b[2J\x7f\x9b"
    save_file({**layouts.dit_tensors(), name: torch.zeros(3)}, tmp_path / "x.safetensors")
    (tmp_path / "model.json").write_text('{"sampler": {"shift": NaN, "timesteps": {"a": 1}}}')
    told = said(capsys, "inspect", "--json", tmp_path)
    assert all(line.isprintable() for line in told.splitlines()) and "NaN" not in told
    (part,) = json.loads(told)["parts"]
    assert part["wrong"] == [f"unexpected: {name}"]
    assert all(line.isprintable() for line in said(capsys, "inspect", tmp_path).splitlines())


@pytest.mark.parametrize(
    "command",
    [["convert", "MODEL", "OUT"], ["generate", "a red car by the sea", "-o", "OUT.mp4", "--model", "MODEL"],
     ["serve", "--model", "MODEL", "--port", "0"], ["info", "--model", "MODEL"], ["inspect", "MODEL"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_weights_that_are_named_are_those_that_are_used(command, small_model, tmp_path, capsys):
    """The other weights of the file are valid, these are not finite; commands that do not read values name their choice."""
    tensors = load_file(small_model / "diffusion_pytorch_model.safetensors")
    torch.save({"generator_ema": tensors, "generator": {name: tensor * torch.nan for name, tensor in tensors.items()}}, tmp_path / "x.pt")
    (tmp_path / "m.toml").write_text(f'dit = "x.pt"\nvae = "{small_model}"\nvocabulary = "{small_model}"\n')
    arguments = [part.replace("MODEL", str(tmp_path / "m.toml")).replace("OUT", str(tmp_path / "out")) for part in command]
    there = "from 'generator_ema'; DiT with Wan's names, from 'generator'; expected a DiT in 'critic'"
    assert there in refused(capsys, *arguments, "--weights", "critic")
    if command[0] == "inspect":
        told = said(capsys, *arguments, "--weights", "generator")
        assert "from 'generator'\n" in told and "from 'generator_ema'; used with --weights generator_ema" in told
    elif command[0] == "info":
        assert "in all" in said(capsys, *arguments, "--weights", "generator")
    else:
        assert "has values that are not finite" in refused(capsys, *arguments, "--weights", "generator")


def test_weights_are_named_in_python_too(small_model, tmp_path):
    tensors = load_file(small_model / "diffusion_pytorch_model.safetensors")
    torch.save({"generator_ema": tensors, "generator": {name: 2 * tensor for name, tensor in tensors.items()}}, tmp_path / "x.pt")
    (tmp_path / "m.toml").write_text(f'dit = "x.pt"\nvae = "{small_model}"\nvocabulary = "{small_model}"\n')
    usual, named = (lolrt.load(tmp_path / "m.toml", torch.float32, group=group).dit.head.head.weight for group in (None, "generator"))
    assert torch.equal(named, 2 * usual)
    convert(tmp_path / "m.toml", tmp_path / "x", group="generator")
    assert torch.equal(lolrt.load_dit(tmp_path / "x", torch.float32).head.head.weight, named)


def test_inspect_reads_adapters_and_checks_them_against_their_model(tmp_path, capsys):
    tensors = layouts.lora_tensors(rank=4)
    torch.save(tensors, tmp_path / "lora.pt")
    told = said(capsys, "inspect", tmp_path / "lora.pt")
    assert "adapters   of 20 layers: 20 x LoRA of rank 4, scale 1" in told and "complete" not in told
    layouts.save_wan(tmp_path, layouts.dit_tensors())
    assert "complete   every adapter fits a layer of the DiT" in said(capsys, "inspect", tmp_path)
    tensors["base_model.model.blocks.1.ffn.0.lora_A.weight"] = torch.tensor(1.0)
    torch.save(tensors, tmp_path / "lora.pt")
    assert "blocks.1.ffn.0 has A [] and B [320, 4] for a weight [320, 256]" in said(capsys, "inspect", tmp_path)


def test_inspect_says_what_keeps_parts_from_being_used_together(self_forcing, tmp_path, capsys):
    assert "nothing is missing" not in (told := said(capsys, "inspect", self_forcing))
    assert "the text encoder gives 32 channels, the DiT takes 48" in told
    shutil.rmtree(self_forcing / "tokenizer")
    assert "needed for a pipeline: its tokenizer" in said(capsys, "inspect", self_forcing)
    model = synth(tmp_path / "synth", "small")
    assert "nothing is missing for a pipeline" in said(capsys, "inspect", model)
    other = VAEConfig(dim=8, z_dim=48, latents_mean=(0.0,) * 48, latents_std=(1.0,) * 48)
    (tmp_path / "sizes.json").write_text(json.dumps({"dim": 128, "num_heads": 1, "num_layers": 1, "vae": asdict(other)}))
    wide = synth(tmp_path / "wide", str(tmp_path / "sizes.json"))
    (tmp_path / "m.toml").write_text(f'dit = "{model}"\nvae = "{wide}"\nvocabulary = "{model}"\n')
    clause = "the VAE has latents of 48 channels, the DiT of 16"
    told = said(capsys, "inspect", tmp_path / "m.toml")
    assert clause in told and "nothing is missing" not in told
    assert clause in refused(capsys, "info", "--model", tmp_path / "m.toml")
    assert clause in refused(capsys, "generate", "a red car", "-o", tmp_path / "v.mp4", "--model", tmp_path / "m.toml")
    with pytest.raises(lolrt.CheckpointError, match=clause):
        lolrt.load(tmp_path / "m.toml")


def test_a_dit_that_takes_more_than_it_gives_is_refused_before_anything_is_computed(tmp_path, capsys):
    sizes = {"dim": 128, "num_heads": 1, "num_layers": 1, "ffn_dim": 64, "text_dim": 32, "in_dim": 36, "vae": {"dim": 8}, "height": 64}
    (tmp_path / "sizes.json").write_text(json.dumps({**sizes, "width": 64}))
    model = synth(tmp_path / "model", str(tmp_path / "sizes.json"))
    hint = "holds a DiT that takes 36 channels and gives 16, as those for image-to-video"
    told = said(capsys, "inspect", model)
    assert hint in told and "nothing is missing" not in told
    assert hint in refused(capsys, "info", "--model", model)
    assert hint in refused(capsys, "generate", "a red car", "-o", tmp_path / "v.mp4", "--model", model)
    assert hint in refused(capsys, "convert", model, tmp_path / "made")
    with pytest.raises(lolrt.CheckpointError, match=hint):
        lolrt.load_dit(model)


@pytest.mark.parametrize(
    "line, hint",
    [
        ('vae = "synth/taehv.safetensors"', "holds TAEHV with TAEHV's names; expected a VAE"),
        ('vocabulary = "synth/text.json"', "expected a folder with text.json"),
        ('vocabulary = "."', "expected a folder with text.json"),
        ('tokenizer = "synth"', "expected a folder with tokenizer.json"),
    ],
)
def test_a_part_that_is_not_what_it_is_named_as_is_told(line, hint, small_model, tmp_path, capsys):
    (tmp_path / "synth").symlink_to(small_model)
    (tmp_path / "m.toml").write_text(line)
    assert hint in refused(capsys, "inspect", tmp_path / "m.toml")


def test_two_tokenizers_are_told(self_forcing, tmp_path, capsys):
    shutil.copytree(self_forcing / "tokenizer", self_forcing / "xlm")
    assert "more than one tokenizer" in said(capsys, "inspect", self_forcing)
    assert "more than one tokenizer" in refused(capsys, "encode", "a car", "-o", tmp_path / "t", "--model", self_forcing)
    (tmp_path / "m.toml").write_text('dit = "downloads"\ntext_encoder = "downloads"\ntokenizer = "downloads/xlm"\n')
    assert find_files(tmp_path / "m.toml").tokenizer == self_forcing / "xlm"
