"""Parity with diffusers, an independent implementation, on random models that diffusers has saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import lolrt
from lolrt.checkpoint.names import to_wan
from lolrt.engine.engine import Engine
from lolrt.engine.kv_window import Window
from lolrt.positions.rope import Rope
from lolrt.session.config import StreamConfig
from lolrt.session.session import Session

pytestmark = pytest.mark.whole  # diffusers alone takes seconds to import: the tests do it, not this file

# Relative to the standard deviation of the outputs.
FP32_MAX = 5e-5


def fill(model: Any, seed: int) -> Any:
    """Draws every parameter at random, so that no bias or norm has a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 and "scale_shift_table" not in name else 16
        noise = torch.randn(parameter.shape, generator=generator) * fan_in**-0.5
        parameter.data = 1 + noise if name.endswith(("gamma", "norm_q.weight", "norm_k.weight", "norm2.weight")) else noise
    return model.eval()


def save(model: Any, folder: Path, shard: str = "1GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.std()).item()


@torch.inference_mode()
def one_chunk(dit: lolrt.CausalDiT, sample: Tensor, timestep: float, prompt: Tensor) -> Tensor:
    """The first chunk of a stream sees only itself, so it must equal the bidirectional model's output for a clip of its length."""
    frames, _, height, width = sample.shape
    session = Session(
        Engine(dit, height, width, pages=frames), prompt, StreamConfig(rope=Rope(sigma=0.0), window=Window(0, frames, frames))
    )
    pages = session.window.advance(0, frames)
    modulation = dit.modulations(torch.tensor([timestep]))[0]
    return dit(session.pass_inputs(sample, modulation, pages, *session.positions(pages)))


DITS = {
    "as the 1.3B": dict(num_attention_heads=2, attention_head_dim=128, ffn_dim=448, text_dim=96, num_layers=2),
    "small heads": dict(
        num_attention_heads=3, attention_head_dim=64, ffn_dim=160, text_dim=32, num_layers=3, in_channels=12, out_channels=12
    ),
    "wide patches": dict(
        num_attention_heads=1, attention_head_dim=96, ffn_dim=96, text_dim=64, num_layers=1, patch_size=(1, 1, 3), freq_dim=64
    ),
}


@pytest.mark.parametrize("name", DITS)
@pytest.mark.parametrize("frames, size", [(3, (6, 12)), (1, (4, 6)), (5, (10, 6))])
def test_a_chunk_equals_the_bidirectional_transformer(name, frames, size, tmp_path):
    from diffusers import WanTransformer3DModel

    theirs = fill(WanTransformer3DModel(**DITS[name]), seed=frames)
    ours = lolrt.load_dit(save(theirs, tmp_path / "transformer"), torch.float32)
    generator = torch.Generator().manual_seed(7)
    sample = torch.randn(frames, theirs.config.in_channels, *size, generator=generator)
    prompt = torch.randn(11, theirs.config.text_dim, generator=generator)
    padded = torch.nn.functional.pad(prompt, (0, 0, 0, 512 - len(prompt)))[None]
    for timestep in (1000.0, 625.0, 0.0):
        with torch.inference_mode():
            expected = theirs(sample.transpose(0, 1)[None], torch.tensor([timestep]), padded, return_dict=False)[0]
        assert relative(one_chunk(ours, sample, timestep, prompt), expected[0].transpose(0, 1)) <= FP32_MAX


def test_shards_are_one_model(tmp_path):
    from diffusers import WanTransformer3DModel

    theirs = fill(WanTransformer3DModel(**DITS["small heads"]), seed=0)
    whole = lolrt.load_dit(save(theirs, tmp_path / "whole"), torch.float32)
    folder = save(theirs, tmp_path / "shards", "500KB")
    assert len(list(folder.glob("*.safetensors"))) > 2 and (folder / "diffusion_pytorch_model.safetensors.index.json").exists()
    sharded = lolrt.load_dit(folder, torch.float32)
    assert sharded.config == whole.config
    assert all(torch.equal(a, b) for a, b in zip(sharded.state_dict().values(), whole.state_dict().values(), strict=True))


def adapters(model: Any, rank: int, seed: int) -> dict[str, Tensor]:
    """LoRA matrices of every Linear of the blocks, with peft's and Wan's names."""
    generator = torch.Generator().manual_seed(seed)
    linears = {name: module for name, module in model.blocks.named_modules(prefix="blocks") if isinstance(module, torch.nn.Linear)}
    wan = to_wan("dit", [f"{name}.weight" for name in linears])
    tensors = {}
    for name, module in linears.items():
        layer = "base_model.model." + wan[f"{name}.weight"].removesuffix(".weight")
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, module.in_features, generator=generator) * module.in_features**-0.5
        tensors[f"{layer}.lora_B.weight"] = torch.randn(module.out_features, rank, generator=generator) * rank**-0.5
    return tensors


def adapt(model: Any, tensors: dict[str, Tensor], scale: float) -> None:
    """Adds the contribution of the adapters to the outputs of the layers; weights do not change."""
    for name, module in model.blocks.named_modules(prefix="blocks"):
        if isinstance(module, torch.nn.Linear):
            layer = "base_model.model." + to_wan("dit", [f"{name}.weight"])[f"{name}.weight"].removesuffix(".weight")
            a, b = tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]
            module.register_forward_hook(lambda _, x, y, a=a, b=b: y + scale * ((x[0] @ a.T) @ b.T))


@pytest.mark.parametrize(
    "group, config, scale",
    [
        ("generator_lora", None, 1.0),
        (None, None, 1.0),
        (None, {"lora_alpha": 3, "r": 6}, 0.5),
        (None, {"lora_alpha": 3, "use_rslora": True}, 3 / 6**0.5),
        (None, "alpha in the file", 2 / 6),
    ],
)
def test_a_merged_lora_equals_the_forward_with_adapters(group, config, scale, tmp_path):
    from diffusers import WanTransformer3DModel

    theirs = fill(WanTransformer3DModel(**DITS["as the 1.3B"]), seed=0)
    save(theirs, tmp_path / "transformer")
    tensors = adapters(theirs, rank=6, seed=1)
    adapt(theirs, tensors, scale)
    if isinstance(config, dict):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    elif config:
        alphas = {name.replace("lora_A.weight", "alpha"): torch.tensor(2.0) for name in tensors if "lora_A" in name}
        tensors = {**tensors, **alphas}
    torch.save({group: tensors} if group else tensors, tmp_path / "lora.pt")
    generator = torch.Generator().manual_seed(7)
    sample, prompt = torch.randn(3, 16, 4, 4, generator=generator), torch.randn(512, 96, generator=generator)
    with torch.inference_mode():
        expected = theirs(sample.transpose(0, 1)[None], torch.tensor([750.0]), prompt[None], return_dict=False)[0][0].transpose(0, 1)
    beside, named = lolrt.load_dit(tmp_path, torch.float32), lolrt.load_dit(tmp_path / "transformer", torch.float32, tmp_path / "lora.pt")
    assert relative(one_chunk(named, sample, 750.0, prompt), expected) <= FP32_MAX
    assert torch.equal(beside.blocks[0].ffn[0].weight, named.blocks[0].ffn[0].weight)


VAES = {
    "as Wan2.1": dict(base_dim=8, z_dim=16),
    "few stages": dict(base_dim=16, z_dim=16, dim_mult=[1, 3], num_res_blocks=1, temperal_downsample=[True]),
    "time last": dict(base_dim=4, z_dim=16, dim_mult=[1, 2, 2], num_res_blocks=3, temperal_downsample=[False, True]),
}


# The variants of a VAE's file: dtype, prefix of its names, suffix of its file name, and channels. LightVAE is Wan2.1's with a quarter of
# the channels.
PACKINGS = {
    "Wan2.1_VAE.pth": (torch.float32, "", ".pth", 8),
    "wan_2.1_vae of ComfyUI, fp16": (torch.float16, "", ".safetensors", 8),
    "Wan2_1_VAE_bf16 of Kijai": (torch.bfloat16, "model.", ".safetensors", 8),
    "lightvaew2_1": (torch.bfloat16, "", ".pth", 24),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_the_vae_of_every_packing_decodes_as_diffusers_makes_of_it(name, tmp_path):
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    dtype, prefix, end, dim = PACKINGS[name]
    tensors = layouts.as_wan("vae", fill(AutoencoderKLWan(base_dim=dim), seed=3).state_dict())
    stored = {prefix + name: tensor.to(dtype) for name, tensor in tensors.items()}
    path = tmp_path / f"vae{end}"
    (torch.save if end == ".pth" else save_file)(stored, path)
    theirs = AutoencoderKLWan(base_dim=dim).eval()
    theirs.load_state_dict(convert_wan_vae_to_diffusers({name: tensor.to(dtype).float() for name, tensor in tensors.items()}))
    ours = lolrt.load_vae(path, dtype=torch.float32)
    assert (ours.config.dim, ours.config.dim_mult) == (dim, (1, 2, 4, 4))
    assert tensors["decoder.conv1.bias"].shape == (4 * dim,), "96 in the published LightVAE"
    latents = torch.randn(1, 16, 2, 3, 4, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = theirs.decode(latents, return_dict=False)[0][0].transpose(0, 1)
    assert relative(ours.decode(ours.normalize(latents)[0].transpose(0, 1), {}), expected) <= FP32_MAX


@pytest.mark.parametrize("name", VAES)
def test_the_vae_equals_the_autoencoder(name, tmp_path):
    from diffusers import AutoencoderKLWan

    theirs = fill(AutoencoderKLWan(**VAES[name]), seed=1)
    ours = lolrt.load_vae(save(theirs, tmp_path / "vae"), dtype=torch.float32)
    factor = ours.config.spatial_factor
    generator = torch.Generator().manual_seed(2)
    video = torch.rand(1, 3, 1 + 2 * ours.config.temporal_factor, 3 * factor, 4 * factor, generator=generator) * 2 - 1
    with torch.inference_mode():
        latents = theirs.encode(video).latent_dist.mean
        assert relative(ours.encode_clip(video), latents) <= FP32_MAX
        assert relative(ours.encode(video[0].transpose(0, 1), {}), ours.normalize(latents)[0].transpose(0, 1)) <= FP32_MAX
        expected = theirs.decode(latents, return_dict=False)[0][0].transpose(0, 1)
        normalised = ours.normalize(latents)[0].transpose(0, 1)
        assert relative(ours.decode(normalised, {}), expected) <= FP32_MAX
