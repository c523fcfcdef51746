"""Adapters of every kind against independent implementations: peft's merge, diffusers' converters and fuse, and, for what neither has,
the published rules in double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from safetensors.torch import save_file
from test_diffusers import fill, save
from torch import Tensor

import lolrt
from lolrt.checkpoint.lora import LoRAFile, lora_files

# The tolerance is for float32 sums of a few products in another order. Weights are of the order of 0.05, differences of 0.1.
ATOL = 2e-6
WEIGHTS = layouts.dit_tensors()


def drawn(*shape: int, seed: int = 0, scale: float = 0.1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return layouts.save_wan(tmp_path_factory.mktemp("base"), WEIGHTS)


def merged(base: Path, lora: Any, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return lolrt.load_dit(base, dtype, lora).state_dict()


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name].to(ours[name].dtype), rtol=0, atol=ATOL), name


LAYERS = ["q", "k", "v", "o", "ffn.0", "ffn.2", "time_projection.1", "head.head"]


def lora_config(**fields: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": LAYERS, "init_lora_weights": False, **fields})


def loha_config(**fields: Any) -> Any:
    from peft import LoHaConfig

    return LoHaConfig(r=3, alpha=2, target_modules=LAYERS, init_weights=False, **fields)


def lokr_config(**fields: Any) -> Any:
    from peft import LoKrConfig

    return LoKrConfig(**{"r": 2, "alpha": 3, "target_modules": LAYERS, "init_weights": False, **fields})


PEFT = {
    "LoRA": lora_config,
    "rsLoRA": lambda: lora_config(use_rslora=True),
    "patterns": lambda: lora_config(rank_pattern={"ffn.0": 2}, alpha_pattern={"blocks.1.self_attn.q": 5}),
    "biases": lambda: lora_config(lora_bias=True),
    "DoRA": lambda: lora_config(use_dora=True),
    "a convolution": lambda: lora_config(target_modules=[*LAYERS, "patch_embedding"]),
    "DoRA of a convolution": lambda: lora_config(target_modules=["patch_embedding", "q"], use_dora=True),
    "LoHa": loha_config,
    "LoKr": lokr_config,
    "LoKr, large factors": lambda: lokr_config(r=1000),
    "LoKr, both split": lambda: lokr_config(r=1, decompose_both=True, decompose_factor=16),
}


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # peft takes biases for matrices
@pytest.mark.parametrize("kind", PEFT)
def test_what_peft_saves_is_merged_as_peft_merges_it(kind, base, tmp_path):
    from peft import get_peft_model

    model = lolrt.CausalDiT(layouts.DIT)
    model.load_state_dict({name: tensor.clone() for name, tensor in WEIGHTS.items()})
    model.requires_grad_(False)
    torch.manual_seed(3)
    adapted = get_peft_model(model, PEFT[kind]())
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
        elif parameter.requires_grad:
            parameter.data *= torch.linspace(0.5, 2, parameter.numel()).view_as(parameter)
    adapted.save_pretrained(tmp_path / "adapters")
    expected = adapted.merge_and_unload().state_dict()
    changed = sum(not torch.equal(expected[name], WEIGHTS[name]) for name in WEIGHTS)
    assert changed >= (5 if kind == "DoRA of a convolution" else 22)
    assert_same(merged(base, tmp_path / "adapters"), expected)


def comfy(diffs: bool) -> dict[str, Tensor]:
    """As ComfyUI's tools extract them from a fine-tuned model: alphas of some layers, differences of biases."""
    tensors: dict[str, Tensor] = {}
    for i, (name, shape) in enumerate(layouts.DIT_SHAPES.items()):
        layer = f"diffusion_model.{name.removesuffix('.weight')}"
        if name.endswith(".weight") and len(shape) == 2 and "head" not in name:
            tensors |= {
                f"{layer}.lora_down.weight": drawn(4, shape[1], seed=2 * i),
                f"{layer}.lora_up.weight": drawn(shape[0], 4, seed=2 * i + 1),
            }
            if name.startswith("blocks.0"):
                tensors[f"{layer}.alpha"] = torch.tensor(float(i % 5))
            if diffs:
                tensors[f"{layer}.diff_b"] = drawn(shape[0], seed=i)
    return tensors


def musubi() -> dict[str, Tensor]:
    """Adapters of all layers of the blocks, with their alphas, as diffusers' converter expects them."""
    tensors = {}
    for name, tensor in comfy(False).items():
        layer, _, part = name.removeprefix("diffusion_model.").partition(".lora_")
        if layer.startswith("blocks.") and part:
            kohya = f"lora_unet_{layer.replace('.', '_')}"
            tensors |= {f"{kohya}.lora_{part}": tensor, f"{kohya}.alpha": torch.tensor(3.0, dtype=torch.bfloat16)}
    return tensors


@pytest.mark.whole
@pytest.mark.parametrize("style", ["ComfyUI", "ComfyUI, biases", "musubi"])
def test_files_that_diffusers_converts_are_merged_as_it_fuses_them(style, base, tmp_path):
    from diffusers import WanTransformer3DModel
    from diffusers.loaders import lora_conversion_utils as convert

    sizes = dict(num_attention_heads=2, attention_head_dim=128, ffn_dim=320, text_dim=48, num_layers=2)
    theirs = fill(WanTransformer3DModel(**sizes), seed=1)
    folder = save(theirs, tmp_path / "transformer")
    tensors = musubi() if style == "musubi" else comfy("biases" in style)
    save_file(tensors, tmp_path / "lora.safetensors")
    ours = merged(folder, tmp_path / "lora.safetensors")
    converter = convert._convert_musubi_wan_lora_to_diffusers if style == "musubi" else convert._convert_non_diffusers_wan_lora_to_diffusers
    converted = converter(tensors)
    save_file(converted, tmp_path / "converted.safetensors")
    assert_same(merged(folder, tmp_path / "converted.safetensors"), ours)
    theirs.load_lora_adapter(converted, prefix="transformer")
    theirs.fuse_lora()
    fused = {name.replace(".base_layer", ""): x for name, x in theirs.state_dict().items() if ".lora_" not in name}
    expected = layouts.as_wan("dit", fused)
    assert sum(not torch.equal(expected[name], tensor) for name, tensor in merged(folder, None).items()) >= 20
    assert_same(ours, expected)


def rows(values: Tensor) -> Tensor:
    return values.square().sum(1, keepdim=True).sqrt()


W = WEIGHTS["blocks.0.ffn.0.weight"].double()  # [320, 256]
A, B = drawn(3, 256, seed=1), drawn(320, 3, seed=2)
SUM = W + B.double() @ A.double()
PAIR = {"lora_down.weight": A, "lora_up.weight": B}
HADA = {
    "hada_w1_a": drawn(320, 2, seed=3),
    "hada_w1_b": drawn(2, 256, seed=4),
    "hada_w2_a": drawn(320, 2, seed=5),
    "hada_w2_b": drawn(2, 256, seed=6),
}
LOHA = (HADA["hada_w1_a"].double() @ HADA["hada_w1_b"].double()) * (HADA["hada_w2_a"].double() @ HADA["hada_w2_b"].double())
W1, W2 = drawn(4, 8, seed=7), drawn(80, 32, seed=8)
KRON = torch.einsum("ij,kl->ikjl", W1.double(), W2.double()).reshape(320, 256)
W2A, W2B = drawn(80, 2, seed=9), drawn(2, 32, seed=10)
KRON_SPLIT = torch.einsum("ij,kl->ikjl", W1.double(), W2A.double() @ W2B.double()).reshape(320, 256)
MAGNITUDE, COLUMNS = torch.linspace(0.5, 2, 320)[:, None], torch.linspace(0.5, 2, 256)[None]

RULES = {
    "a difference": ({"diff": drawn(320, 256, seed=11)}, W + drawn(320, 256, seed=11).double()),
    "LoHa of LyCORIS": ({**HADA, "alpha": torch.tensor(6.0)}, W + 6 / 2 * LOHA),
    "LoKr of LyCORIS, whole": ({"lokr_w1": W1, "lokr_w2": W2, "alpha": torch.tensor(6.0)}, W + KRON),
    "LoKr of LyCORIS, split": ({"lokr_w1": W1, "lokr_w2_a": W2A, "lokr_w2_b": W2B, "alpha": torch.tensor(6.0)}, W + 6 / 2 * KRON_SPLIT),
    "DoRA of kohya": ({**PAIR, "dora_scale": MAGNITUDE}, MAGNITUDE.double() / rows(SUM) * SUM),
    "DoRA of LyCORIS, by inputs": ({**PAIR, "dora_scale": COLUMNS}, COLUMNS.double() / rows(SUM.T).T * SUM),
    "DoRA over LoHa": ({**HADA, "dora_scale": MAGNITUDE}, MAGNITUDE.double() / rows(W + LOHA) * (W + LOHA)),
}


@pytest.mark.parametrize("strength", [1, 0.4, -1])
@pytest.mark.parametrize("kind", RULES)
def test_each_kind_follows_its_rule_in_double_precision(kind, strength, base, tmp_path):
    tensors, whole = RULES[kind]
    save_file({f"lora_unet_blocks_0_ffn_0.{part}": tensor.contiguous() for part, tensor in tensors.items()}, tmp_path / "a.safetensors")
    ours = merged(base, f"{tmp_path}/a.safetensors:{strength}")
    expected = W + strength * (whole - W)
    assert (whole - W).abs().max() > 0.01
    assert (ours.pop("blocks.0.ffn.0.weight") - expected).abs().max() <= 2e-6 * max(1, expected.abs().max())
    assert all(torch.equal(tensor, WEIGHTS[name]) for name, tensor in ours.items())


def test_differences_of_every_kind_of_tensor(base, tmp_path):
    """Whole weights, biases and modulations, as LightX2V's tool stores what is not a product."""
    ends = {".diff": ("head.head.weight", "blocks.1.norm3.weight", "blocks.0.cross_attn.norm_q.weight", "patch_embedding.weight")}
    ends |= {".diff_b": ("head.head.bias", "blocks.1.norm3.bias", "blocks.0.self_attn.q.bias")}
    ends |= {".diff_m": ("blocks.1.modulation", "head.modulation")}
    diffs = {name: drawn(*layouts.DIT_SHAPES[name], seed=i) for i, name in enumerate(name for names in ends.values() for name in names)}
    tensors = {f"diffusion_model.{name.rpartition('.')[0]}{end}": diffs[name] for end, names in ends.items() for name in names}
    save_file(tensors, tmp_path / "a.safetensors")
    ours = merged(base, f"{tmp_path}/a.safetensors:0.5")
    assert_same(ours, {name: tensor.double() + 0.5 * diffs.get(name, torch.zeros(1)).double() for name, tensor in WEIGHTS.items()})


def test_several_are_added_up_in_float32_and_rounded_once(base, tmp_path):
    """In bfloat16, where each rounding shows: a hundred small adapters, most of which would change no weight if they were added one by
    one."""
    file = tmp_path / "small.safetensors"
    layer = "blocks.0.self_attn.q"
    a, b = drawn(1, 256, seed=1, scale=2e-3), drawn(256, 1, seed=2, scale=2e-2)
    save_file({f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}, file)
    one = merged(base, file, torch.bfloat16)[f"{layer}.weight"]
    before = WEIGHTS[f"{layer}.weight"].bfloat16()
    assert (one != before).float().mean() < 0.3
    hundred = merged(base, [file] * 99 + [f"{file}:1.0"], torch.bfloat16)[f"{layer}.weight"]
    exact = WEIGHTS[f"{layer}.weight"].double() + 100 * b.double() @ a.double()
    # One rounding: half a step of bfloat16, which has 8 bits, and the error of the float32 sum.
    assert ((hundred.double() - exact).abs() <= 2.0 ** (torch.frexp(exact)[1] - 9).double() + 1e-6).all()
    assert (hundred != before).float().mean() > 0.8


def test_adapters_that_are_given_are_added_to_those_of_the_model(tmp_path):
    layouts.save_wan(tmp_path, WEIGHTS)
    torch.save({"generator_lora": layouts.lora_tensors(4)}, tmp_path / "lora.pt")
    own = merged(tmp_path, None)
    difference = drawn(64, 256)
    save_file({"head.head.diff": difference, "head.head.alpha": torch.tensor(1.0)}, tmp_path.parent / "style.safetensors")
    both = merged(tmp_path, tmp_path.parent / "style.safetensors")
    assert torch.equal(both["blocks.0.ffn.0.weight"], own["blocks.0.ffn.0.weight"])
    assert not torch.equal(own["blocks.0.ffn.0.weight"], WEIGHTS["blocks.0.ffn.0.weight"])
    assert torch.equal(both["head.head.weight"], WEIGHTS["head.head.weight"] + difference)


def test_a_strength_comes_behind_the_last_colon(tmp_path):
    (tmp_path / "a:2").touch()
    given = [f"{tmp_path}/x:0.5", "y:-1e-1", tmp_path / "a:2", "z", "C:z", "x:.5:1"]
    found = lora_files(given)
    assert found == [(tmp_path / "x", 0.5), (Path("y"), -0.1), (tmp_path / "a:2", 1), (Path("z"), 1), (Path("C:z"), 1), (Path("x:.5"), 1)]
    assert lora_files(None) == [] and lora_files("y:3") == [LoRAFile(Path("y"), 3.0)] and str(found[0]) == "x:0.5"
    for text in ("x:nan", "x:inf"):
        with pytest.raises(lolrt.Error, match="expected a finite number"):
            lora_files(text)


def test_a_lora_that_is_not_there_or_is_none_is_told(base, tmp_path):
    with pytest.raises(lolrt.CheckpointError, match=r"no\.safetensors does not exist"):
        merged(base, f"{tmp_path}/no.safetensors:0.5")
    with pytest.raises(lolrt.CheckpointError, match="holds no LoRA of a DiT; it holds DiT"):
        merged(base, base)


def test_numbers_that_are_not_finite_are_of_the_weights_or_of_the_adapters(base, tmp_path):
    save_file({"head.head.diff": torch.full((64, 256), float("inf"))}, tmp_path / "a.safetensors")
    with pytest.raises(lolrt.CheckpointError, match=r"not finite, in head\.head\.weight, or what .*a\.safetensors adds to them"):
        merged(base, tmp_path / "a.safetensors")
