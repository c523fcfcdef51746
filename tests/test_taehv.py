"""TAEHV against its definition, computed here on whole clips, and streamed against itself on the whole clip."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import lolrt
from lolrt.checkpoint.synth import synth
from lolrt.cli import main
from lolrt.models.vae.taehv import TAEHV, TAEHVConfig
from lolrt.pipeline import MODELS

CONFIG = TAEHVConfig(z_dim=5, encoder_width=6, decoder_widths=(12, 8, 6, 4))


def weights(config: TAEHVConfig, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in TAEHV(config).state_dict().items()}
    tensors = {name: torch.randn(shape, generator=generator) * max(1, shape[1:].numel()) ** -0.5 for name, shape in shapes.items()}
    scale = {name: 0.1 if ".conv.4." in name or name.startswith("decoder.22") or name.endswith("bias") else 1.0 for name in tensors}
    tensors = {name: scale[name] * tensor for name, tensor in tensors.items()}
    tensors["decoder.22.bias"] += 0.5  # most pixels are between black and white
    return tensors


def made(tensors: dict[str, Tensor], config: TAEHVConfig = CONFIG) -> TAEHV:
    model = TAEHV(config)
    model.load_state_dict(tensors)
    return model.requires_grad_(False)


def convolve(tensors: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = tensors[f"{name}.weight"]
    return F.conv2d(x, weight, tensors.get(f"{name}.bias"), stride, weight.shape[-1] // 2)


def memory_blocks(tensors: dict[str, Tensor], coder: str, first: int, x: Tensor) -> Tensor:
    """All frames at once; before the first there are zeros."""
    for i in range(first, first + 3):
        y = torch.cat([x, F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[:-1]], 1)
        y = convolve(tensors, f"{coder}.{i}.conv.0", y).relu()
        y = convolve(tensors, f"{coder}.{i}.conv.2", y).relu()
        x = (convolve(tensors, f"{coder}.{i}.conv.4", y) + x).relu()
    return x


def decode_whole(tensors: dict[str, Tensor], latents: Tensor) -> Tensor:
    """[frames, z, h, w] to [4 frames - 3, 3, 8 h, 8 w] in [0, 1]."""
    x = convolve(tensors, "decoder.1", 3 * torch.tanh(latents / 3)).relu()
    for level, stride in enumerate((1, 2, 2)):
        first = 3 + 6 * level
        x = memory_blocks(tensors, "decoder", first, x)
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        channels = x.shape[1]
        grown = convolve(tensors, f"decoder.{first + 4}.conv", x)[:, -stride * channels :]
        x = torch.stack(grown.split(channels, 1), 1).flatten(0, 1)
        x = convolve(tensors, f"decoder.{first + 5}", x)
    return convolve(tensors, "decoder.22", x.relu()).clamp(0, 1)[3:]


def encode_whole(tensors: dict[str, Tensor], frames: Tensor) -> Tensor:
    """[4 n, 3, 8 h, 8 w] in [0, 1] to [n, z, h, w]."""
    x = convolve(tensors, "encoder.0", frames).relu()
    for level, stride in enumerate((2, 2, 1)):
        first = 2 + 5 * level
        x = convolve(tensors, f"encoder.{first}.conv", torch.cat([x[i::stride] for i in range(stride)], 1))
        x = memory_blocks(tensors, "encoder", first + 2, convolve(tensors, f"encoder.{first + 1}", x, stride=2))
    return convolve(tensors, "encoder.17", x)


@pytest.mark.parametrize("growth", [(1, 2, 2), (2, 2, 2)])
def test_decoder_and_encoder_compute_their_definition(growth):
    config = TAEHVConfig(5, 6, (12, 8, 6, 4), growth)
    tensors = weights(config)
    model = made(tensors, config)
    latents = torch.randn(4, 5, 3, 5, generator=torch.Generator().manual_seed(1))
    video = model.decode(latents, {})
    assert video.shape == (13, 3, 24, 40) and video.dtype == torch.float32
    assert (video.add(1).div(2) - decode_whole(tensors, latents)).abs().max() <= 1e-5
    assert video.std() > 0.05 and (video.abs() < 1).float().mean() > 0.8
    frames = torch.rand(9, 3, 24, 40, generator=torch.Generator().manual_seed(2))
    expected = encode_whole(tensors, torch.cat([frames[:1]] * 3 + [frames]))
    encoded = model.encode(2 * frames - 1, {})
    assert encoded.shape == (3, 5, 3, 5)
    assert (encoded - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("split", [[1, 3, 2], [1] * 6, [5, 1]])
def test_streamed_equals_whole_bit_for_bit(split, dtype):
    model = made(weights(CONFIG)).to(dtype)
    latents = torch.randn(6, 5, 4, 3, generator=torch.Generator().manual_seed(3))
    state: dict[str, Tensor] = {}
    assert torch.equal(torch.cat([model.decode(part, state) for part in latents.split(split)]), model.decode(latents, {}))
    video = torch.rand(21, 3, 32, 24, generator=torch.Generator().manual_seed(4)) * 2 - 1
    frames = [4 * latents - 3 if i == 0 else 4 * latents for i, latents in enumerate(split)]
    state = {}
    assert torch.equal(torch.cat([model.encode(part, state) for part in video.split(frames)]), model.encode(video, {}))


# Of Wan2.1's latents, by channel; written down from its `wan/modules/vae.py`.
MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)


def test_lighttae_works_on_latents_before_they_are_normalised():
    """As LightX2V and Scope use it: z * std + mean on the way in, and back on the way out."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    config = TAEHVConfig(16, 6, (12, 8, 6, 4))
    tensors = weights(config)
    light = made(tensors, replace(config, raw_latents=True))
    latents = torch.randn(3, 16, 3, 4, generator=torch.Generator().manual_seed(1))
    assert (light.decode(latents, {}).add(1).div(2) - decode_whole(tensors, latents * std + mean)).abs().max() <= 1e-5
    frames = torch.rand(5, 3, 24, 32, generator=torch.Generator().manual_seed(2))
    expected = encode_whole(tensors, torch.cat([frames[:1]] * 3 + [frames]))
    assert (light.encode(2 * frames - 1, {}) - (expected - mean) / std).abs().max() <= 1e-5
    assert light.description != made(tensors, config).description, "a stream of the one does not go on with the other"
    with pytest.raises(lolrt.Error, match="of 5 latent channels is no LightTAE"):
        TAEHV(replace(CONFIG, raw_latents=True))


def test_frames_that_make_no_whole_latents_are_told():
    with pytest.raises(lolrt.Error, match="4 frames to encode; expected a multiple of 4 and one more"):
        made(weights(CONFIG)).encode(torch.zeros(4, 3, 16, 16), {})


def test_sizes_are_those_of_the_published_weights():
    """taew2_1: names and shapes as in the README of the checkpoints; 11.4 M parameters, 9.8 M of them the decoder's."""
    shapes = {name: tuple(tensor.shape) for name, tensor in TAEHV(TAEHVConfig()).state_dict().items()}
    assert shapes["encoder.0.weight"] == (64, 3, 3, 3) and shapes["encoder.17.weight"] == (16, 64, 3, 3)
    assert shapes["encoder.7.conv.weight"] == (64, 128, 1, 1) and shapes["encoder.12.conv.weight"] == (64, 64, 1, 1)
    assert shapes["decoder.1.weight"] == (256, 16, 3, 3) and shapes["decoder.22.weight"] == (3, 64, 3, 3)
    assert shapes["decoder.3.conv.0.weight"] == (256, 512, 3, 3)
    assert shapes["decoder.7.conv.weight"] == (256, 256, 1, 1) and shapes["decoder.13.conv.weight"] == (256, 128, 1, 1)


@pytest.mark.parametrize("growth", [(1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_are_read_with_the_sizes_that_they_have(growth, suffix, tmp_path):
    config = TAEHVConfig(5, 6, (12, 8, 6, 4), growth)
    tensors = weights(config)
    path = tmp_path / f"taew2_1{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    model = lolrt.load_taehv(path, torch.float32)
    assert model.config == config
    latents = torch.randn(2, 5, 2, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.decode(latents, {}), made(tensors, config).decode(latents, {}))
    del tensors["decoder.9.conv.2.bias"]
    save_file(tensors, tmp_path / "damaged.safetensors")
    with pytest.raises(lolrt.CheckpointError, match=r"missing: decoder\.9\.conv\.2\.bias"):
        lolrt.load_taehv(tmp_path / "damaged.safetensors")


@pytest.mark.whole
def test_a_pipeline_decodes_with_it_when_asked(tmp_path):
    config = TAEHVConfig(24, 4, (8, 6, 4, 4))
    save_file(weights(config), tmp_path / "taehv.safetensors")
    tiny = MODELS / "tiny"
    (tmp_path / "model.toml").write_text(
        f'dit = "{tiny}"\nvae = "{tiny}"\nvocabulary = "{tiny}"\ntaehv = "taehv.safetensors"\nheight = 64\nwidth = 96\n'
    )
    pipe = lolrt.load(tmp_path / "model.toml", torch.float32, vae="tiny")
    assert isinstance(pipe.vae, TAEHV)
    chunks = list(islice(pipe.stream("a red car by the sea at noon"), 2))
    assert [tuple(chunk.frames.shape) for chunk in chunks] == [(9, 64, 96, 3), (12, 64, 96, 3)]
    assert len(pipe.encode_video(chunk for chunk in chunks[1].frames)) == 3
    with pytest.raises(lolrt.Error, match="it lacks taehv; name the files"):
        lolrt.load("tiny", vae="tiny")


def test_inspect_names_the_option_for_lighttae_and_the_option_asks_for_it(tmp_path, capsys):
    config = TAEHVConfig(16, 6, (12, 8, 6, 4))
    torch.save(weights(config), tmp_path / "tae.pth")
    assert main(["inspect", str(tmp_path / "tae.pth")]) == 0
    told = capsys.readouterr().out
    assert "if it is LightX2V's LightTAE, which no tensor shows: by --vae light" in told and "raw_latents" not in told
    synth(tmp_path / "model", "small")
    for vae, raw in (("tiny", False), ("light", True)):
        pipe = lolrt.load(tmp_path / "model", torch.float32, vae=vae)
        assert isinstance(pipe.vae, TAEHV) and pipe.vae.config.raw_latents is raw
    assert main(["info", "--model", str(tmp_path / "model"), "--vae", "light"]) == 0
