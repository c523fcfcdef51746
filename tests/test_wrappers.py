"""What wrappers and training add to a model's names is removed by rule, and the rule chooses one of several weights."""

from __future__ import annotations

from pathlib import Path

import layouts
import packings
import pytest
import torch
from safetensors.torch import save_file

import lolrt
from lolrt.checkpoint import find_files
from lolrt.checkpoint.formats import recognise
from lolrt.cli import main

LAYERS = 1 + max(int(name.split(".")[1]) for name in packings.dit_tensors() if name.startswith("blocks."))


def inner(name: str, wrapper: str) -> str:
    """As a wrapper of each block leaves it."""
    for i in range(LAYERS):
        name = name.replace(f"blocks.{i}.", f"blocks.{i}.{wrapper}.")
    return name


WRAPPERS = {
    "ComfyUI": "model.diffusion_model.{}",
    "one of 14B": "diffusion_model.{}",
    "data parallelism": "module.{}",
    "compiled": "_orig_mod.{}",
    "compiled, sharded, in a trainer": "generator.module._orig_mod._fsdp_wrapped_module.model.{}",
    "diffusers' pipeline": "transformer.{}",
    "a name that nobody has met": "what.ever.this_is.{}",
    "CausVid": "generator.model.{}",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_any_wrapper_is_taken_off_when_what_remains_is_known(wrapper, tmp_path):
    tensors = packings.dit_tensors()
    save_file({WRAPPERS[wrapper].format(name): tensor for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    dit = lolrt.load_dit(tmp_path / "x.safetensors", torch.float32)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in dit.state_dict().items())


@pytest.mark.parametrize(
    "wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module", "_fsdp_wrapped_module._orig_mod"]
)
def test_wrappers_inside_are_taken_off(wrapper, tmp_path):
    tensors = packings.dit_tensors()
    torch.save({"generator": {f"model.{inner(name, wrapper)}": tensor for name, tensor in tensors.items()}}, tmp_path / "x.pt")
    dit = lolrt.load_dit(tmp_path / "x.pt", torch.float32)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in dit.state_dict().items())


def test_dictionaries_may_lie_in_dictionaries(tmp_path):
    tensors = packings.dit_tensors()
    state = {i: {"exp_avg": torch.zeros(3), "step": torch.tensor(1.0)} for i in range(200)}
    content = {
        "state_dict": {"module": {f"net.{n}": t for n, t in tensors.items()}},
        "optimizer": {"state": state, "param_groups": [{"lr": 1e-5}]},
    }
    torch.save(content, tmp_path / "x.pt")
    dit = lolrt.load_dit(tmp_path / "x.pt", torch.float32)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in dit.state_dict().items())


def test_a_file_of_a_whole_pipeline_has_its_parts(tmp_path):
    """A checkpoint as ComfyUI saves it: a branch for each part, and one that is not read here."""
    dit, vae, text = packings.dit_tensors(), layouts.vae_tensors(), layouts.as_diffusers("text_encoder", layouts.text_encoder_tensors())
    branches = {
        "model.diffusion_model": dit,
        "vae": vae,
        "text_encoders.umt5xxl.transformer": text,
        "clip_vision": {"norm.weight": torch.ones(4)},
    }
    file = {f"{branch}.{name}": tensor for branch, tensors in branches.items() for name, tensor in tensors.items()}
    save_file(file, tmp_path / "all.safetensors")
    files = find_files(tmp_path / "all.safetensors")
    assert {component.kind for component in files.components(files.source)} == {"dit", "vae", "text_encoder"}
    assert files.dit == files.vae == files.text_encoder == files.source
    assert torch.equal(lolrt.load_vae(files, dtype=torch.float32).conv1.weight, vae["conv1.weight"])


@pytest.mark.parametrize(
    "foreign",
    [
        {
            f"blocks.{i}.resnet.{part}": torch.zeros(2)
            for i in range(9)
            for part in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias")
        },
        {f"final.{name}": torch.zeros(2) for name in ("norm.weight", "proj_out.weight", "proj_out.bias", "patch_embedding.weight")},
        {
            f"vit.blocks.{i}.{part}": torch.zeros(2)
            for i in range(4)
            for part in ("norm1.weight", "attn.qkv.weight", "mlp.fc1.weight", "ls1.gamma")
        },
    ],
)
def test_layers_of_other_models_are_no_part_of_ours(foreign):
    assert recognise(foreign, Path("x.safetensors")) == []


def trained(form: str, groups: dict[str, float], folder: Path) -> Path:
    """A file with the same DiT in several groups, its weights multiplied by a different number in each."""
    tensors = {
        group: {f"model.{name}": tensor * factor for name, tensor in packings.dit_tensors().items()} for group, factor in groups.items()
    }
    if form == "keys":
        torch.save({**tensors, "step": 3}, folder / "x.pt")
        return folder / "x.pt"
    save_file(
        {f"{group}.{name}".lstrip("."): t for group, inside in tensors.items() for name, t in inside.items()}, folder / "x.safetensors"
    )
    return folder / "x.safetensors"


def used(path: Path, **options: str) -> float:
    bias = packings.dit_tensors()["head.head.bias"]
    return float((lolrt.load_dit(path, torch.float32, **options).head.head.bias / bias).mean())


@pytest.mark.parametrize("form", ["keys", "names"])
@pytest.mark.parametrize(
    "groups, first",
    [
        (["critic", "generator", "generator_ema"], "generator_ema"),
        (["critic", "generator"], "generator"),
        (["ema", "student"], "ema"),
        (["fake_score", "student"], "student"),
        (["model_ema", "model"], "model_ema"),
    ],
)
def test_of_several_weights_the_averaged_ones_are_used_and_a_critics_never(form, groups, first, tmp_path, capsys):
    factors = {group: float(2**i) for i, group in enumerate(groups)}
    path = trained(form, factors, tmp_path)
    assert used(path) == factors[first]
    assert all(used(path, group=group) == factor for group, factor in factors.items())
    assert main(["inspect", str(path)]) == 0
    told = capsys.readouterr().out
    assert f"from {first!r}, wrappers removed\n" in told
    assert all(f"from {group!r}, wrappers removed; used with --weights {group}" in told for group in groups if group != first)


def test_where_the_rule_says_nothing_one_has_to_be_named(tmp_path):
    path = trained("keys", {"left": 1.0, "right": 2.0}, tmp_path)
    with pytest.raises(lolrt.CheckpointError, match="say which to use, with --weights left"):
        lolrt.load_dit(path)
    (tmp_path / "m.toml").write_text('dit = "x.pt"\nweights = "right"\n')
    assert used(tmp_path / "m.toml") == 2.0


def test_a_critic_alone_is_not_taken_for_the_model(tmp_path):
    for form in ("keys", "names"):
        with pytest.raises(lolrt.CheckpointError, match=r"from 'critic'.*expected a DiT"):
            lolrt.load_dit(trained(form, {"critic": 1.0}, tmp_path))


def test_a_name_that_comes_twice_inside_of_wrappers_is_told(tmp_path):
    tensors = packings.dit_tensors()
    torch.save({**tensors, "blocks.0._orig_mod.norm3.bias": torch.zeros(128)}, tmp_path / "x.pt")
    with pytest.raises(lolrt.CheckpointError, match=r"blocks\.0\.norm3\.bias twice, as blocks\.0\._orig_mod\.norm3\.bias too"):
        lolrt.load_dit(tmp_path / "x.pt")


def test_dictionaries_that_hold_each_other_many_times_cost_no_time(tmp_path):
    """Eight levels of twenty names for the same dictionary are 25 billion paths."""
    nested: dict[str, object] = {"blocks.0.norm3.weight": torch.zeros(4)}
    for _ in range(8):
        nested = {str(i): nested for i in range(20)}
    torch.save(nested, tmp_path / "x.pt")
    with pytest.raises(lolrt.CheckpointError):
        lolrt.load_dit(tmp_path / "x.pt")
