"""LoRAs with the names of every trainer are merged correctly, and those that would change the weights in another way are refused by
name."""

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
    """`load_dit` refuses it, and `inspect` says the same."""
    with pytest.raises(lolrt.CheckpointError, match=hint) as error:
        lolrt.load_dit(folder)
    assert main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    assert str(error.value) in told and "every adapter fits" not in told


def renamed(layer_of: Callable[[str], str], down: str = "lora_A", up: str = "lora_B") -> dict[str, Tensor]:
    return {f"{layer_of(layer)}.{part}.weight": of(layer, side) for layer in LAYERS for side, part in (("A", down), ("B", up))}


# diffusers' names of a block's layers, written down from its source instead of asked of `lolrt.checkpoint.names`.
DIFFUSERS = {
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v", "self_attn.o": "attn1.to_out.0",
    "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k", "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}  # fmt: skip


def diffusers(layer: str) -> str:
    _, number, module = layer.split(".", 2)
    return f"transformer.blocks.{number}.{DIFFUSERS[module]}"


def kohya(layer: str, mark: str = "lora_unet_") -> str:
    return mark + layer.replace(".", "_")


def parts(layer_of: Callable[[str], str], down: str, up: str) -> dict[str, Tensor]:
    """Tensors with any suffixes, appended to the layer's name as they are."""
    return {f"{layer_of(layer)}{end}": of(layer, side) for layer in LAYERS for side, end in (("A", down), ("B", up))}


NAMES = {
    "peft": renamed(lambda layer: PREFIX + layer),
    "peft, an adapter's own name": renamed(lambda layer: PREFIX + layer, "lora_A.student", "lora_B.student"),
    "bare": renamed(str),
    "ComfyUI": renamed(lambda layer: f"diffusion_model.{layer}"),
    "ComfyUI, down and up": renamed(lambda layer: f"diffusion_model.{layer}", "lora_down", "lora_up"),
    "kohya and musubi": renamed(kohya, "lora_down", "lora_up"),
    "VideoX-Fun": renamed(lambda layer: kohya(layer, "lora_unet__"), "lora_down", "lora_up"),
    "kohya, diffusers' layers": renamed(lambda layer: kohya(diffusers(layer).removeprefix("transformer.")), "lora_down", "lora_up"),
    "LyCORIS": renamed(lambda layer: kohya(layer, "lycoris_"), "lora_down", "lora_up"),
    "diffusers": renamed(diffusers),
    "DiffSynth": renamed(lambda layer: f"pipe.dit.{layer}", "lora_A.default", "lora_B.default"),
    "no .weight": parts(lambda layer: f"diffusion_model.{layer}", ".lora_A", ".lora_B"),
    "_lora": parts(diffusers, "_lora.down.weight", "_lora.up.weight"),
    ".lora": parts(diffusers, ".lora.down.weight", ".lora.up.weight"),
    "lora_linear_layer": parts(diffusers, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
}


@pytest.mark.parametrize("names", NAMES)
def test_adapters_under_every_trainers_names_are_merged(names, tmp_path):
    assert_merged(model(tmp_path, NAMES[names]))


def test_alphas_in_kohyas_file_scale_their_layers(tmp_path):
    alphas = {f"lora_unet_{layer.replace('.', '_')}.alpha": torch.tensor(float(i)) for i, layer in enumerate(LAYERS)}
    assert_merged(model(tmp_path, NAMES["kohya and musubi"] | alphas), lambda layer: LAYERS.index(layer) / RANK)


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
    "lora_mid.weight": "the middle factor of a convolution",
    "hada_t1": "LoHa's factors of a convolution",
    "lokr_t2": "LoKr's factors of a convolution",
    "oft_blocks": "OFT's rotations",
    "bias": "not understood here",
    "lora_C.weight": "not understood here",
}


@pytest.mark.parametrize("part", OTHER_TENSORS)
def test_a_tensor_that_is_not_understood_is_named(part, tmp_path, capsys):
    folder = model(tmp_path, ADAPTERS | {f"{PREFIX}blocks.0.ffn.0.{part}": torch.ones(320)})
    assert_refused(folder, rf"no LoRA of a DiT that is understood.*{OTHER_TENSORS[part]}.*blocks\.0\.ffn\.0\.{part}", capsys)


LAYER = f"{PREFIX}blocks.0.ffn.0"
UNFIT = {
    "magnitudes of another size": ({f"{LAYER}.dora_scale": torch.ones(7)}, r"magnitudes \[7\] for a weight \[320, 256\]"),
    "magnitudes alone": ({"lora_unet_head_head.dora_scale": torch.ones(64)}, "head.head has magnitude, of which no adapter can be made"),
    "a difference of another shape": ({f"{LAYER}.diff": torch.ones(320)}, r"a difference \[320\] for \[320, 256\]"),
    "a bias of another size": ({f"{LAYER}.lora_B.bias": torch.ones(256)}, r"a difference \[256\] for \[320\]"),
    "half of LoHa": (
        {"head.head.hada_w1_a": torch.ones(64, 2), "head.head.hada_w1_b": torch.ones(2, 256)},
        "has hada_w1_a, hada_w1_b, of which no adapter",
    ),
    "LoKr of another size": (
        {"head.head.lokr_w1": torch.ones(3, 4), "head.head.lokr_w2": torch.ones(8, 8)},
        r"LoKr's factors \[3, 4\], \[8, 8\] for a weight",
    ),
    "no numbers in it": (
        {"head.head.lora_A.weight": torch.ones(0, 256), "head.head.lora_B.weight": torch.ones(64, 0)}, "has lora_A, lora_B, of which no"
    ),
    "a number for a matrix": ({"head.head.lora_A.weight": torch.tensor(1.0), "head.head.lora_B.weight": torch.tensor(1.0)}, r"has A \[\]"),
    "integers": (
        {"head.head.lora_A.weight": torch.ones(2, 256, dtype=torch.int8), "head.head.lora_B.weight": torch.ones(64, 2)},
        "head.head is of a dtype",
    ),
    "alpha alone": ({"head.head.alpha": torch.tensor(1.0)}, "head.head has alpha, of which no adapter"),
    "magnitudes that are not there": ({}, "lacks DoRA's magnitudes, which its config speaks of"),
}  # fmt: skip


@pytest.mark.parametrize("fault", UNFIT)
def test_an_adapter_that_does_not_fit_is_told(fault, tmp_path, capsys):
    tensors, hint = UNFIT[fault]
    assert_refused(model(tmp_path, ADAPTERS | tensors, {"use_dora": True} if not tensors else None), hint, capsys)


def test_every_key_that_matches_nothing_is_listed(tmp_path, capsys):
    """As from a LoRA for image-to-video, or for the 14B, which has more layers."""
    others = [f"blocks.{i}.cross_attn.{name}" for i in range(2) for name in ("k_img", "v_img")] + ["blocks.39.ffn.0", "img_emb.proj.1"]
    tensors = {f"diffusion_model.{layer}.lora_{side}.weight": torch.ones(4, 4) for layer in others for side in ("down", "up")}
    folder = model(tmp_path, NAMES["ComfyUI, down and up"] | tensors | {"diffusion_model.img_emb.proj.0.diff_b": torch.ones(4)})
    names = sorted([f"{layer}.weight" for layer in others] + ["img_emb.proj.0.bias"])
    assert_refused(folder, f"the model has no {', '.join(names)}".replace(".", r"\."), capsys)


OTHER_FIELDS = {
    "peft_type": "IA3",
    "bias": "lora_only",
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
