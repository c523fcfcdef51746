"""LoRAs of every trainer's names are merged rightly, and what would change the weights in another way is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import layouts
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import lolrt
from lolrt.cli import main

RANK = 4
WEIGHTS = layouts.dit_tensors()
ADAPTERS = layouts.lora_tensors(RANK)
LAYERS = sorted({name.removeprefix("base_model.model.").partition(".lora_")[0] for name in ADAPTERS})
PREFIX = "base_model.model."
# Of float32 sums of `RANK` products, in another order than torch's.
ATOL = 1e-6


def of(layer: str, side: str) -> Tensor:
    return ADAPTERS[f"{PREFIX}{layer}.lora_{side}.weight"]


def expected(layer: str, scale: float = 1.0) -> Tensor:
    """The definition, in double precision."""
    return (WEIGHTS[f"{layer}.weight"].double() + scale * of(layer, "B").double() @ of(layer, "A").double()).float()


def model(folder: Path, tensors: dict[str, Tensor], config: dict[str, object] | None = None) -> Path:
    """A model's folder with these adapters in it."""
    layouts.save_wan(folder, WEIGHTS)
    (folder / "adapters").mkdir()
    save_file(tensors, folder / "adapters" / "lora.safetensors")
    if config is not None:
        (folder / "adapters" / "adapter_config.json").write_text(json.dumps(config))
    return folder


def assert_merged(folder: Path, scale: Callable[[str], float] = lambda layer: 1.0) -> None:
    merged = lolrt.load_dit(folder, torch.float32).state_dict()
    for layer in LAYERS:
        assert torch.allclose(merged[f"{layer}.weight"], expected(layer, scale(layer)), rtol=0, atol=ATOL), layer
        assert torch.equal(merged[f"{layer}.bias"], WEIGHTS[f"{layer}.bias"])


def assert_refused(folder: Path, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By `load_dit`, and `inspect` says the same."""
    with pytest.raises(lolrt.CheckpointError, match=hint) as error:
        lolrt.load_dit(folder)
    assert main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    assert str(error.value) in told and "every adapter fits" not in told


def renamed(layer_of: Callable[[str], str], down: str = "lora_A", up: str = "lora_B") -> dict[str, Tensor]:
    return {f"{layer_of(layer)}.{part}.weight": of(layer, side) for layer in LAYERS for side, part in (("A", down), ("B", up))}


# As diffusers calls a block's layers; written down from its source rather than asked of `lolrt.checkpoint.names`.
DIFFUSERS = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v", "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k", "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}  # fmt: skip


def diffusers(layer: str) -> str:
    _, number, module = layer.split(".", 2)
    return f"transformer.blocks.{number}.{DIFFUSERS[module]}"


NAMES = {
    "peft": renamed(lambda layer: PREFIX + layer),
    "peft, an adapter's own name": renamed(lambda layer: PREFIX + layer, "lora_A.student", "lora_B.student"),
    "ComfyUI": renamed(lambda layer: f"diffusion_model.{layer}"),
    "ComfyUI, down and up": renamed(lambda layer: f"diffusion_model.{layer}", "lora_down", "lora_up"),
    "kohya": renamed(lambda layer: "lora_unet_" + layer.replace(".", "_"), "lora_down", "lora_up"),
    "diffusers": renamed(diffusers),
}


@pytest.mark.parametrize("names", NAMES)
def test_adapters_under_every_trainers_names_are_merged(names, tmp_path):
    assert_merged(model(tmp_path, NAMES[names]))


def test_alphas_in_kohyas_file_scale_their_layers(tmp_path):
    alphas = {f"lora_unet_{layer.replace('.', '_')}.alpha": torch.tensor(float(i)) for i, layer in enumerate(LAYERS)}
    assert_merged(model(tmp_path, NAMES["kohya"] | alphas), lambda layer: LAYERS.index(layer) / RANK)


def test_an_alpha_pattern_scales_the_layers_that_it_names(tmp_path):
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2, "alpha_pattern": {"blocks.1.ffn.0": 6, "ffn.0": 8}, "bias": "none"}
    scales = {"blocks.1.ffn.0": 6 / RANK, "blocks.0.ffn.0": 8 / RANK}
    assert_merged(model(tmp_path, ADAPTERS, config), lambda layer: scales.get(layer, 2 / RANK))


@pytest.mark.parametrize("beside", [False, True])
def test_the_config_that_diffusers_writes_into_a_file_counts_where_there_is_no_other(beside, tmp_path):
    folder = model(tmp_path, ADAPTERS, {"lora_alpha": 12} if beside else None)
    config = {"transformer.r": RANK, "transformer.lora_alpha": 6, "transformer.use_rslora": True, "transformer.bias": "none"}
    save_file(ADAPTERS, folder / "adapters" / "lora.safetensors", {"format": "pt", "lora_adapter_metadata": json.dumps(config)})
    assert_merged(folder, lambda layer: 12 / RANK if beside else 6 / RANK**0.5)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_a_config_in_the_file_that_is_none_is_told(text, tmp_path):
    folder = model(tmp_path, ADAPTERS)
    save_file(ADAPTERS, folder / "adapters" / "lora.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(lolrt.CheckpointError, match="no JSON object"):
        lolrt.load_dit(folder)


OTHER_TENSORS = {
    "lora_magnitude_vector": "DoRA's magnitudes",
    "lora_magnitude_vector.default.weight": "DoRA's magnitudes",
    "dora_scale": "DoRA's magnitudes",
    "lora_B.bias": "a bias of an adapter",
    "lora_up.bias": "a bias of an adapter",
    "diff": "differences of whole weights",
    "diff_b": "differences of whole weights or biases",
    "hada_w1_a": "LoHa's factors",
    "lokr_w1": "LoKr's factors",
    "bias": "not understood here",
    "lora_C.weight": "not understood here",
}


@pytest.mark.parametrize("part", OTHER_TENSORS)
def test_a_tensor_that_is_not_understood_is_named(part, tmp_path, capsys):
    folder = model(tmp_path, ADAPTERS | {f"{PREFIX}blocks.0.ffn.0.{part}": torch.ones(320)})
    assert_refused(folder, rf"no plain LoRA.*{OTHER_TENSORS[part]}.*blocks\.0\.ffn\.0\.{part}", capsys)


OTHER_FIELDS = {
    "use_dora": True,
    "peft_type": "LOHA",
    "bias": "lora_only",
    "lora_bias": True,
    "init_lora_weights": "pissa",
    "layer_replication": [[0, 2]],
    "modules_to_save": ["head"],
    "use_rslora": "yes",
    "a_field_of_tomorrow": 1,
}


@pytest.mark.parametrize("field", OTHER_FIELDS)
def test_a_field_that_is_not_understood_is_named(field, tmp_path, capsys):
    folder = model(tmp_path, ADAPTERS, {"r": RANK, "lora_alpha": RANK, field: OTHER_FIELDS[field]})
    assert_refused(folder, rf"the config of .*lora\.safetensors says {field} = ", capsys)


@pytest.mark.parametrize("field", OTHER_FIELDS)
def test_fields_that_are_empty_change_nothing(field, tmp_path):
    assert_merged(model(tmp_path, ADAPTERS, {"r": RANK, "lora_alpha": RANK, field: None}))


@pytest.mark.parametrize(
    "alpha, hint",
    [
        (torch.tensor([8.0, 8.0]), r"a tensor \[2\]"),
        (torch.tensor(float("nan")), "nan"),
        (torch.tensor(True), "True"),
        (torch.zeros(0), r"a tensor \[0\]"),
    ],
)
def test_an_alpha_that_is_no_number_is_refused(alpha, hint, tmp_path, capsys):
    folder = model(tmp_path, ADAPTERS | {f"{PREFIX}blocks.1.ffn.2.alpha": alpha})
    assert_refused(folder, rf"alpha of blocks\.1\.ffn\.2 is {hint}; expected a number", capsys)


@pytest.mark.parametrize(
    "pattern, hint",
    [({"ffn.7": 3}, "'ffn.7', which is the end of no layer's name"), ([1], "alpha_pattern is a list"), ({"ffn.0": "8"}, "is 8")],
)
def test_an_alpha_pattern_that_fits_nothing_is_refused(pattern, hint, tmp_path, capsys):
    assert_refused(model(tmp_path, ADAPTERS, {"alpha_pattern": pattern}), hint, capsys)


def test_two_adapters_in_one_file_are_told(tmp_path):
    both = renamed(lambda layer: PREFIX + layer, "lora_A.one", "lora_B.one") | renamed(
        lambda layer: PREFIX + layer, "lora_A.two", "lora_B.two"
    )
    with pytest.raises(lolrt.CheckpointError, match="twice"):
        lolrt.load_dit(model(tmp_path, {name: tensor.clone() for name, tensor in both.items()}))
