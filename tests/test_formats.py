"""Every layout gives the same model, recognised by its tensors' names; an error reports what does not fit."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import layouts
import pytest
import torch
from safetensors.torch import save_file

import lolrt
from lolrt.checkpoint import find_files, read_component, to_diffusers
from lolrt.checkpoint.load import read_dit
from lolrt.checkpoint.shapes import expected_shapes, faults
from lolrt.pipeline import MODELS


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("layout", layouts.DIT_LAYOUTS)
def test_every_layout_gives_the_same_dit(layout, tmp_path):
    tensors = layouts.dit_tensors()
    path = layouts.DIT_LAYOUTS[layout](tmp_path, tensors)
    dit = lolrt.load_dit(path, torch.float32)
    assert dit.config == layouts.DIT
    assert same(dict(dit.state_dict()), tensors)


@pytest.mark.parametrize("save", ["wan.pth", "diffusers"])
def test_both_layouts_give_the_same_vae(save, tmp_path):
    tensors = layouts.vae_tensors()
    if save == "wan.pth":
        torch.save(tensors, tmp_path / save)
    else:
        (tmp_path / save / "vae").mkdir(parents=True)
        save_file(layouts.as_diffusers("vae", tensors), tmp_path / save / "vae" / "diffusion_pytorch_model.safetensors")
        config = {"base_dim": 8, "z_dim": 16, "temperal_downsample": [False, True, True]}
        (tmp_path / save / "vae" / "config.json").write_text(json.dumps(config))
    vae = lolrt.load_vae(tmp_path / save, dtype=torch.float32)
    assert vae.config == layouts.VAE
    assert same(dict(vae.state_dict()), tensors)


@pytest.mark.parametrize("tied", [False, True])
def test_both_layouts_give_the_same_text_encoder(tied, tmp_path):
    tensors = layouts.text_encoder_tensors()
    torch.save({name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path / "t5.pth")
    theirs = layouts.as_diffusers("text_encoder", tensors)
    if not tied:
        del theirs["encoder.embed_tokens.weight"]
    layouts.save_sharded(tmp_path / "hub" / "text_encoder", theirs, stem="model")
    (tmp_path / "hub" / "text_encoder" / "config.json").write_text('{"d_model": 32, "num_layers": 2}')
    wan, hub = read_component(tmp_path / "t5.pth", "text_encoder"), read_component(tmp_path / "hub", "text_encoder")
    assert (wan.layout, hub.layout, hub.config["d_model"]) == ("Wan", "transformers", 32)
    assert same({name: tensor.bfloat16() for name, tensor in hub.tensors.items()}, dict(wan.tensors))
    assert to_diffusers("text_encoder", wan.tensors)["token_embedding.weight"] == ("shared.weight", "encoder.embed_tokens.weight")


@pytest.mark.parametrize("surplus", [False, True])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_taehv(suffix, surplus, tmp_path):
    tensors = layouts.taehv_tensors(surplus)
    (torch.save if suffix == "pth" else save_file)(tensors, tmp_path / f"tae.{suffix}")
    component = read_component(tmp_path / f"tae.{suffix}", "taehv")
    assert same(dict(component.tensors), tensors)
    assert faults(expected_shapes(component), component.tensors) == []


def test_averaged_weights_come_first_unless_others_are_asked_for(tmp_path):
    tensors = layouts.dit_tensors()
    path = layouts.DIT_LAYOUTS["Self-Forcing"](tmp_path, tensors)
    assert torch.equal(lolrt.load_dit(path, torch.float32, group="generator").head.head.bias, -tensors["head.head.bias"])
    with pytest.raises(lolrt.CheckpointError, match="expected a DiT in 'teacher'"):
        lolrt.load_dit(path, group="teacher")


@pytest.mark.parametrize(
    "others, used", [(("generator",), "generator"), (("model",), "model"), (("critic",), "generator_ema"), ((), "generator_ema")]
)
def test_adapters_are_merged_into_the_weights_that_are_not_averaged_where_there_are_such(others, used, tmp_path):
    """LongLive's adapters are trained on these; `save_pt` writes the negatives of these weights as the others."""
    tensors = layouts.dit_tensors()
    path = layouts.save_pt("generator_ema", "model.{}".format, others=others)(tmp_path / "base", tensors)
    torch.save({"generator_lora": layouts.lora_tensors(rank=4)}, tmp_path / "lora.pt")
    merged = lolrt.load_dit(path, torch.float32, tmp_path / "lora.pt")
    assert torch.equal(merged.head.head.bias, tensors["head.head.bias"] * (1 if used == "generator_ema" else -1))
    component, _ = read_dit(path, tmp_path / "lora.pt")
    assert component.group == used


def test_other_entries_of_a_training_checkpoint_are_not_taken_for_the_model(tmp_path):
    layouts.save_pt("critic", "model.{}".format)(tmp_path, layouts.dit_tensors())
    with pytest.raises(lolrt.CheckpointError, match=r"holds DiT with Wan's names, from 'critic'.*expected a DiT"):
        lolrt.load_dit(tmp_path / "x.pt")


def whole_model(folder: Path) -> Path:
    """Wan's official folder, with a tokenizer, and with a VAE and a text encoder under other file names."""
    layouts.save_wan(folder, layouts.dit_tensors())
    torch.save(layouts.vae_tensors(), folder / "Wan2.1_VAE.pth")
    torch.save(layouts.text_encoder_tensors(), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    (folder / "google" / "umt5-xxl").mkdir(parents=True)
    (folder / "google" / "umt5-xxl" / "tokenizer.json").touch()
    return folder


def test_parts_of_a_folder(tmp_path):
    parts = find_files(whole_model(tmp_path))
    assert parts.dit == tmp_path / "diffusion_pytorch_model.safetensors"
    assert parts.vae == tmp_path / "Wan2.1_VAE.pth"
    assert parts.text_encoder == tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
    assert parts.tokenizer == tmp_path / "google" / "umt5-xxl"
    assert parts.lora is None and parts.taehv is None
    assert lolrt.load_vae(tmp_path, dtype=torch.float32).config == layouts.VAE


def test_names_of_files_play_no_part(tmp_path):
    torch.save(layouts.vae_tensors(), tmp_path / "self_forcing_dmd.pt")
    torch.save(layouts.dit_tensors(), tmp_path / "Wan2.1_VAE.pth")
    parts = find_files(tmp_path)
    assert (parts.vae, parts.dit) == (tmp_path / "self_forcing_dmd.pt", tmp_path / "Wan2.1_VAE.pth")


def test_two_of_a_kind_are_told(tmp_path):
    whole_model(tmp_path)
    layouts.DIT_LAYOUTS["Self-Forcing"](tmp_path, layouts.dit_tensors())
    with pytest.raises(lolrt.CheckpointError, match=r"more than one DiT: .*\.safetensors and .*x\.pt; name the one to use"):
        lolrt.load_dit(tmp_path)
    assert lolrt.load_dit(tmp_path / "x.pt").config == layouts.DIT


def test_a_toml_file_names_the_parts(tmp_path):
    whole_model(tmp_path / "wan")
    layouts.DIT_LAYOUTS["Self-Forcing"](tmp_path, layouts.dit_tensors(seed=3))
    model = tmp_path / "model.toml"
    model.write_text(
        'dit = "x.pt"\nweights = "generator"\nvae = "wan"\ntokenizer = "wan/google/umt5-xxl"\nfps = 16\n[sampler]\nshift = 8.0\n'
    )
    parts = find_files(model)
    assert (parts.dit, parts.vae) == (tmp_path / "x.pt", tmp_path / "wan" / "Wan2.1_VAE.pth")
    assert parts.settings == {"fps": 16, "sampler": {"shift": 8.0}}
    assert torch.equal(lolrt.load_dit(model, torch.float32).head.head.bias, -layouts.dit_tensors(seed=3)["head.head.bias"])


@pytest.mark.parametrize(
    "text, hint",
    [
        ("dit = ", "not readable TOML"),
        ('dit = "nowhere.pt"', "nowhere.pt, which is not there"),
        ('model = "x.pt"', "names model; expected some of dit, lora"),
        ("dit = 3", "texts in quotes"),
        ('vae = "."', "holds no VAE"),
        (f'dit = "{"x" * 5000}"', "which is not there"),
        ("fps = " + "[" * 5000, "not readable TOML"),
    ],
)
def test_wrong_toml(text, hint, tmp_path):
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(lolrt.CheckpointError, match=hint):
        lolrt.load_dit(tmp_path / "m.toml")


def test_a_shard_of_another_model_is_told(tmp_path):
    layouts.save_diffusers(tmp_path, layouts.dit_tensors())
    shard = next(iter((tmp_path / "transformer").glob("*-00002-*")))
    save_file({"blocks.0.norm2.weight": torch.zeros(256)}, shard)
    with pytest.raises(lolrt.CheckpointError, match="belong to different models"):
        lolrt.load_dit(tmp_path)
    shard.unlink()
    with pytest.raises(lolrt.CheckpointError, match=r"00002-of-00003.* does not exist"):
        lolrt.load_dit(tmp_path)


@pytest.mark.parametrize("place", ["../secret.safetensors", "..", "", "/etc/passwd", "nul\0.safetensors", "surrogate\ud800.safetensors"])
def test_an_index_reads_nothing_outside_its_folder(place, tmp_path):
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"head.head.weight": place}}))
    with pytest.raises(lolrt.CheckpointError, match="files beside it"):
        lolrt.load_dit(tmp_path)


def test_a_name_that_comes_twice_is_told(tmp_path):
    tensors = layouts.dit_tensors()
    torch.save({**tensors, "model.head.head.bias": torch.zeros(64)}, tmp_path / "x.pt")
    with pytest.raises(lolrt.CheckpointError, match=r"head\.head\.bias twice, as model\.head\.head\.bias"):
        lolrt.load_dit(tmp_path / "x.pt")


@pytest.mark.parametrize("layout", layouts.DIT_LAYOUTS)
def test_in_every_layout_missing_and_unexpected_tensors_are_all_named(layout, tmp_path):
    tensors = layouts.dit_tensors()
    del tensors["blocks.1.cross_attn.norm_k.weight"], tensors["patch_embedding.weight"]
    extra = "blocks.0.self_attn.extra.weight"
    if layout == "diffusers":
        path = layouts.save_diffusers(tmp_path, tensors)
        index = tmp_path / "transformer" / "extra.safetensors"
        save_file({extra: torch.zeros(1)}, index)
        listing = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
        values = json.loads(listing.read_text())
        values["weight_map"][extra] = index.name
        listing.write_text(json.dumps(values))
    else:
        path = layouts.DIT_LAYOUTS[layout](tmp_path, {**tensors, extra: torch.zeros(1)})
    with pytest.raises(lolrt.CheckpointError) as error:
        lolrt.load_dit(path)
    assert "missing: blocks.1.cross_attn.norm_k.weight, patch_embedding.weight" in str(error.value)
    assert f"unexpected: {extra}" in str(error.value)


def test_a_model_is_looked_through_once():
    """Whatever is loaded from the folder, each file of weights is opened once to be recognised, and then mapped."""
    opened: Counter[str] = Counter()

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and watching and str(arguments[0]).startswith(str(MODELS)):
            opened[Path(str(arguments[0])).name] += 1

    watching = True
    sys.addaudithook(watch)  # the hook stays forever, because there is no way to remove one
    pipe = lolrt.load("tiny")
    next(pipe.latent_stream(pipe.example_prompts[0]))
    watching = False
    assert opened["diffusion_pytorch_model.safetensors"] == opened["vae.safetensors"] == opened["model.json"] == 1
    assert all(count <= 2 for count in opened.values()), opened
