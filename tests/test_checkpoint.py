"""Checkpoint readers: both layouts give the same model, and every damaged file one clear error."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

import lolrt


@pytest.fixture
def tensors(data) -> dict[str, torch.Tensor]:
    loaded = torch.load(data / "self_forcing_dmd_small.pt", weights_only=True)["generator_ema"]
    return {name.removeprefix("model."): tensor for name, tensor in loaded.items()}


@pytest.fixture
def wan_folder(tmp_path, tensors, small_dit):
    """The small model in Wan's layout."""
    config = {name: value for name, value in asdict(small_dit.config).items() if name != "text_dim"}
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanModel", **config, "text_dim": small_dit.config.text_dim}))
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    return tmp_path


def test_both_layouts_give_the_same_model(wan_folder, small_dit):
    loaded = lolrt.load_dit(wan_folder, torch.float32)
    assert loaded.config.dim == small_dit.config.dim == 256
    assert loaded.config.num_heads == small_dit.config.num_heads == 2
    for (name, a), b in zip(loaded.state_dict().items(), small_dit.state_dict().values(), strict=False):
        assert torch.equal(a, b), name


def test_dtype_is_that_asked_for(wan_folder):
    assert lolrt.load_dit(wan_folder).dtype == torch.bfloat16
    with pytest.raises(lolrt.CheckpointError, match=r"expected torch\.bfloat16 or torch\.float32"):
        lolrt.load_dit(wan_folder, torch.float16)


def test_missing_and_unexpected_tensors_are_all_named(wan_folder, tensors):
    del tensors["blocks.0.ffn.0.bias"], tensors["head.head.weight"]
    tensors.update({"blocks.9.extra": torch.zeros(1), "ghost": torch.zeros(1)})
    save_file(tensors, wan_folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(lolrt.CheckpointError) as error:
        lolrt.load_dit(wan_folder)
    message = str(error.value)
    assert "missing: blocks.0.ffn.0.bias, head.head.weight" in message
    assert "unexpected: blocks.9.extra, ghost" in message
    assert "\n" not in message


def test_other_shapes_are_named(wan_folder, tensors):
    tensors["blocks.1.self_attn.q.weight"] = torch.zeros(256, 128)
    save_file(tensors, wan_folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(lolrt.CheckpointError, match=r"blocks\.1\.self_attn\.q\.weight \[256, 128\] instead of \[256, 256\]"):
        lolrt.load_dit(wan_folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(value, wan_folder, tensors):
    tensors["blocks.1.ffn.2.weight"][3, 4] = value
    save_file(tensors, wan_folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(lolrt.CheckpointError, match=r"not finite, in blocks\.1\.ffn\.2\.weight"):
        lolrt.load_dit(wan_folder)


@pytest.mark.parametrize("kept", [0, 4, 1000, -10])
def test_truncated_safetensors(kept, wan_folder):
    path = wan_folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(lolrt.CheckpointError, match="damaged"):
        lolrt.load_dit(wan_folder)


@pytest.mark.parametrize("kept", [0, 4, 1000, -10])
def test_truncated_pt(kept, tmp_path, data):
    path = tmp_path / "model.pt"
    path.write_bytes((data / "self_forcing_dmd_small.pt").read_bytes()[:kept])
    with pytest.raises(lolrt.CheckpointError, match="damaged"):
        lolrt.load_dit(path)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"generator": Payload()}, tmp_path / "model.pt")
    with pytest.raises(lolrt.CheckpointError, match=r"asks for _?io\.open, which is no tensor"):
        lolrt.load_dit(tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


def test_other_contents_of_a_pt(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(lolrt.CheckpointError, match="expected a dictionary"):
        lolrt.load_dit(tmp_path / "list.pt")
    torch.save({"optimizer": {}}, tmp_path / "optimizer.pt")
    with pytest.raises(lolrt.CheckpointError, match="no part of a model that is known here, under names such as optimizer"):
        lolrt.load_dit(tmp_path / "optimizer.pt")
    torch.save({"generator": {"model.conv.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(lolrt.CheckpointError, match=r"names such as generator: model\.conv\.weight"):
        lolrt.load_dit(tmp_path / "other.pt")


def test_broken_configs(wan_folder):
    config = wan_folder / "config.json"
    for text, hint in (
        ("{", "not readable JSON"),
        ("[]", "expected a JSON object"),
        ('{"dim": "x"}', "no config"),
        ('{"dim": 250, "num_heads": 3}', "multiple of the heads"),
        ('{"num_layers": 1000000000}', "no config of this kind of model: num_layers"),
        ('{"patch_size": [1, 2]}', "patch_size has 2 entries"),
        ('{"rope_dims": 5}', "rope_dims is '5'"),
    ):
        config.write_text(text)
        with pytest.raises(lolrt.CheckpointError, match=hint):
            lolrt.load_dit(wan_folder)


def test_sizes_show_in_the_tensors_where_there_is_no_config(wan_folder, small_dit):
    (wan_folder / "config.json").unlink()
    assert lolrt.load_dit(wan_folder, torch.float32).config == small_dit.config


def test_paths_that_do_not_exist(tmp_path):
    with pytest.raises(lolrt.CheckpointError, match="does not exist"):
        lolrt.load_dit(tmp_path / "nowhere")
    with pytest.raises(lolrt.Error, match=r"neither an embedded model \(journey, tiny\) nor a path"):
        lolrt.load("huge")
    with pytest.raises(lolrt.Error, match="load_dit"):
        lolrt.load(tmp_path)
