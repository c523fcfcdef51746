"""Weights in 8 bits, in every form in which they are published: each value is what the form defines, and nothing is guessed."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import layouts
import packings
import pytest
import torch
from packings import E4M3, KITCHEN, PACKINGS
from safetensors.torch import load_file, save_file

import lolrt
from lolrt.checkpoint import read_component
from lolrt.checkpoint.assembly import MOST_CONFIG_BYTES
from lolrt.checkpoint.convert import convert
from lolrt.checkpoint.packed import Packed
from lolrt.checkpoint.quantise import FORMS
from lolrt.checkpoint.synth import synth
from lolrt.cli import main
from lolrt.cli.convert import FORMS as OFFERED

# ComfyUI's library alone takes seconds to import.
with_kitchen = [pytest.mark.whole, pytest.mark.skipif(not find_spec("comfy_kitchen"), reason="no comfy_kitchen")]
WRITERS = {**PACKINGS, **KITCHEN}
NAMES = [*PACKINGS, *(pytest.param(name, marks=with_kitchen) for name in KITCHEN)]
LAYER = "blocks.1.ffn.2"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_what_the_form_says(name, tmp_path):
    tensors = packings.dit_tensors()
    packed = WRITERS[name](tensors)
    path = packings.save(tmp_path / "wan2.1_t2v_1.3B.safetensors", packed)
    _, _, meaning = packed
    exact, rounded = lolrt.load_dit(path, torch.float32), lolrt.load_dit(path)
    assert exact.config == packings.DIT
    for weight, value in meaning.items():
        assert torch.equal(exact.state_dict()[weight], value), weight
        assert torch.equal(rounded.state_dict()[weight], value.bfloat16()), weight
        far = (value - tensors[weight]).abs() - tensors[weight].abs() / 8
        assert (far <= max(tensors[weight].abs().max() / 254, 2**-10)).all(), "within the form's own step"


def test_what_torch_saves_in_8_bits_is_read(tmp_path):
    """LightX2V's text encoders are .pth files."""
    file, _, meaning = PACKINGS["LightX2V, fp8"](packings.dit_tensors())
    torch.save({"generator": file}, tmp_path / "x.pt")
    dit = lolrt.load_dit(tmp_path / "x.pt", torch.float32)
    assert all(torch.equal(tensor, meaning[name]) for name, tensor in dit.state_dict().items())


def test_bytes_stand_for_fp8_where_the_form_says_so(tmp_path):
    """As tools wrote fp8 before safetensors had this dtype."""
    file, _, meaning = PACKINGS["fp8_scaled"](packings.dit_tensors())
    config = torch.tensor(list(b'{"format": "float8_e4m3fn", "full_precision_matrix_mult": true}'), dtype=torch.uint8)
    for name in [name for name in file if name.endswith("scale_weight")]:
        layer = name.removesuffix("scale_weight")
        file |= {f"{layer}weight": file[f"{layer}weight"].view(torch.uint8), f"{layer}comfy_quant": config.clone()}
        file[f"{layer}weight_scale"] = file.pop(name)
    save_file(file, tmp_path / "x.safetensors")
    dit = lolrt.load_dit(tmp_path / "x.safetensors", torch.float32)
    assert all(torch.equal(tensor, meaning[name]) for name, tensor in dit.state_dict().items())


def test_diffusers_names_and_shards_are_read_in_8_bits(tmp_path):
    file, _, meaning = PACKINGS["fp8_scaled"](packings.dit_tensors())
    names = layouts.to_diffusers("dit", packings.dit_tensors())
    renamed = {}
    for name, tensor in file.items():
        layer, _, part = name.rpartition(".")
        other = names[name][0] if name in names else f"{names[f'{layer}.weight'][0].removesuffix('.weight')}.{part}" if layer else name
        renamed[other] = tensor
    layouts.save_sharded(tmp_path / "transformer", renamed)
    dit = lolrt.load_dit(tmp_path, torch.float32)
    assert all(torch.equal(tensor, meaning[name]) for name, tensor in dit.state_dict().items())


def test_layers_that_the_header_names_without_their_wrapper_are_found(tmp_path):
    file, _, meaning = packings.scaled_fp8((), packings.COMFY, mark=False)(packings.dit_tensors())
    file = {name.replace("scale_weight", "weight_scale"): tensor for name, tensor in file.items()}
    layers = {name.removesuffix(".weight"): "float8_e4m3fn" for name, w in packings.dit_tensors().items() if packings.is_linear(name, w)}
    save_file(file, tmp_path / "x.safetensors", {"_quantization_metadata": json.dumps({"layers": layers})})
    dit = lolrt.load_dit(tmp_path / "x.safetensors", torch.float32)
    assert all(torch.equal(tensor, meaning[name]) for name, tensor in dit.state_dict().items())


def test_adapters_are_added_to_what_8_bits_stand_for(tmp_path):
    file, _, meaning = PACKINGS["LightX2V, int8"](layouts.dit_tensors())
    save_file(file, tmp_path / "x.safetensors")
    torch.save(layouts.lora_tensors(rank=4), tmp_path / "lora.pt")
    layouts.save_wan(tmp_path / "float", meaning)
    packed = lolrt.load_dit(tmp_path / "x.safetensors", torch.bfloat16, tmp_path / "lora.pt")
    floats = lolrt.load_dit(tmp_path / "float", torch.bfloat16, tmp_path / "lora.pt")
    assert all(torch.equal(a, b) for a, b in zip(packed.state_dict().values(), floats.state_dict().values(), strict=True))


def test_a_vae_in_8_bits_is_read(tmp_path):
    tensors = layouts.vae_tensors()
    save_file({f"vae.{name}": tensor.to(E4M3) for name, tensor in tensors.items()}, tmp_path / "vae.safetensors")
    vae = lolrt.load_vae(tmp_path, dtype=torch.float32)
    assert vae.config == layouts.VAE
    assert all(torch.equal(tensor, tensors[name].to(E4M3).float()) for name, tensor in vae.state_dict().items())


def kijai(tensors: packings.Tensors) -> tuple[packings.Tensors, packings.Tensors]:
    """umt5-xxl-enc-fp8_e4m3fn: Wan's names, all matrices cast, the table too."""
    file = {name: tensor.to(E4M3 if tensor.ndim > 1 else torch.bfloat16) for name, tensor in tensors.items()}
    return file, {name: tensor.float() for name, tensor in file.items()}


def comfy(tensors: packings.Tensors) -> tuple[packings.Tensors, packings.Tensors]:
    """umt5_xxl_fp8_e4m3fn_scaled: transformers' names, linear layers with a scale, the rest in fp16."""
    file, meaning = {"scaled_fp8": torch.zeros(2).to(E4M3)}, {}
    for name, tensor in tensors.items():
        (theirs,) = [other for other in layouts.to_diffusers("text_encoder", tensors)[name] if "embed_tokens" not in other]
        if ".attn." in name or ".ffn." in name:
            scale = tensor.abs().max() / 448
            file |= {theirs: (tensor / scale).to(E4M3), f"{theirs.removesuffix('weight')}scale_weight": scale}
            meaning[name] = packings.product(file[theirs], scale)
        else:
            file[theirs], meaning[name] = tensor.half(), tensor.half().float()
    return file, meaning


def lightx2v(tensors: packings.Tensors) -> tuple[packings.Tensors, packings.Tensors]:
    """models_t5_umt5-xxl-enc-int8.pth: Wan's names, one scale per row."""
    file, meaning = {}, {}
    for name, tensor in tensors.items():
        if ".attn." in name or ".ffn." in name:
            scale = tensor.abs().amax(1, keepdim=True) / 127
            file |= {name: (tensor / scale).round().to(torch.int8), f"{name}_scale": scale}
            meaning[name] = packings.product(file[name], scale)
        else:
            file[name], meaning[name] = tensor.bfloat16(), tensor.bfloat16().float()
    return file, meaning


@pytest.mark.parametrize("write", [kijai, comfy, lightx2v])
def test_a_text_encoder_in_8_bits_is_read_in_every_packing(write, tmp_path):
    tensors = layouts.text_encoder_tensors()
    file, meaning = write(tensors)
    path = tmp_path / ("x.pth" if write is lightx2v else "x.safetensors")
    torch.save(file, path) if write is lightx2v else save_file(file, path)
    read = {n: w.unpack(torch.float32) if isinstance(w, Packed) else w for n, w in read_component(path, "text_encoder").tensors.items()}
    assert read.keys() == tensors.keys()
    for name, value in meaning.items():
        assert torch.equal(read[name].float(), value), name
        assert ((value - tensors[name]).abs() <= tensors[name].abs() / 8 + 2**-9).all(), "within the form's own step"
    assert main(["inspect", str(path)]) == 0


def test_inspect_says_how_weights_are_packed(tmp_path, capsys):
    packings.save(tmp_path / "x.safetensors", PACKINGS["LightX2V, int8"](packings.dit_tensors()))
    assert main(["inspect", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "packed     20 in int8 with a scale for each row" in told and "complete   every tensor is there" in told
    assert "DiT with Wan's names, wrappers removed" in told


Change = "dict[str, torch.Tensor]"


def without(part: str):
    return lambda file: file.pop(f"{LAYER}.{part}")


def with_part(part: str, value: torch.Tensor):
    return lambda file: file.update({f"{LAYER}.{part}": value})


def config(text: bytes):
    return with_part("comfy_quant", torch.tensor(list(text), dtype=torch.uint8))


ROWS = packings.DIT.dim
CONVROT = config(b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256}')
MALFORMED = {
    "no scale": ("fp8_scaled", without("scale_weight"), f"packed, with no scale, while others have one: {LAYER}.weight"),
    "no scale of int8": ("TurboDiffusion, int8", without("scale"), f"packed, with int8 and no scale: {LAYER}.weight"),
    "a scale without values": ("fp8_scaled", without("weight"), f"missing: {LAYER}.weight; unexpected: {LAYER}.scale_weight"),
    "a scale of floats": ("fp8_scaled", with_part("weight", torch.zeros(ROWS, 160)), f"unexpected: {LAYER}.scale_weight"),
    "as many scales as columns": ("fp8_scaled", with_part("scale_weight", torch.ones(160)), r"scales \[160\] for \[128, 160\]"),
    "blocks that do not divide": ("TurboDiffusion, int8", with_part("scale", torch.ones(2, 3)), r"scales \[2, 3\] for \[128, 160\]"),
    "groups of columns": ("fp8_scaled", with_part("scale_weight", torch.ones(ROWS, 10)), r"scales \[128, 10\] for \[128, 160\]"),
    "scales of integers": ("fp8_scaled", with_part("scale_weight", torch.ones((), dtype=torch.int32)), "with scales of int32"),
    "NaN": ("fp8_scaled", with_part("scale_weight", torch.tensor(float("nan"))), f"scales of {LAYER}.weight are not above 0 and finite"),
    "zero": ("fp8_scaled", with_part("scale_weight", torch.tensor(0.0)), f"scales of {LAYER}.weight are not above 0 and finite"),
    "negative": ("TurboDiffusion, int8", with_part("scale", -torch.ones(1, 2)), f"scales of {LAYER}.weight are not above 0 and finite"),
    "infinity": ("fp8_scaled", with_part("scale_weight", torch.tensor(float("inf"))), "not above 0 and finite"),
    "two scales": ("fp8_scaled", with_part("weight_scale", torch.ones(())), f"packed, with two scales: {LAYER}.weight"),
    "NaN in values": ("fp8_scaled", with_part("weight", torch.full((ROWS, 160), torch.nan).to(E4M3)), "not finite, in blocks.1.ffn.2"),
    "too large for float32": ("fp8_scaled", with_part("scale_weight", torch.tensor(3e38)), f"not finite, in {LAYER}.weight"),
    "another shape": ("fp8_scaled", with_part("weight", torch.zeros(8, 8).to(E4M3)), rf"{LAYER}.weight \[8, 8\] instead of \[128, 160\]"),
    "no JSON": ("fp8_scaled", config(b"\xff{"), "comfy_quant is no JSON object, or longer than 64 KiB"),
    "no object": ("fp8_scaled", config(b"[]"), "comfy_quant is no JSON object"),
    "deep JSON": ("fp8_scaled", config(b"[" * 60_000), "comfy_quant is no JSON object"),
    "long JSON": ("fp8_scaled", config(b'{"format": "float8_e4m3fn"}' + b" " * MOST_CONFIG_BYTES), "comfy_quant is no JSON object"),
    "empty": ("fp8_scaled", config(b""), "comfy_quant is no JSON object"),
    "JSON in floats": ("fp8_scaled", with_part("comfy_quant", torch.zeros(3)), "comfy_quant is no JSON object"),
    "another dtype": ("fp8_scaled", config(b'{"format": "int8_tensorwise"}'), "float8_e4m3fn, while comfy_quant says int8_tensorwise"),
    "a field that is not understood": (
        "fp8_scaled", config(b'{"format": "float8_e4m3fn", "zero_point": 3}'), "comfy_quant says zero_point = 3, which is not understood"
    ),
    "a format of text alone": ("fp8_scaled", config(b'{"format": ["float8_e4m3fn"]}'), "a format that is not known here"),
    "no format": ("fp8_scaled", config(b"{}"), "weights in a format that is not known here, 'None'"),
    "a format that commands the terminal": ("fp8_scaled", config(b'{"format": "\\u001b[2J"}'), r"not known here, '\\x1b\[2J'"),
    "an unknown format": ("fp8_scaled", config(b'{"format": "int3_spiral"}'), "weights in a format that is not known here, 'int3_spiral'"),
    "NVFP4 of ComfyUI": ("fp8_scaled", config(b'{"format": "nvfp4"}'), r"weights in NVFP4 \(4 bits\).*has blocks.1.ffn.2.comfy_quant"),
    "MXFP8": ("fp8_scaled", config(b'{"format": "mxfp8"}'), "weights in MXFP8"),
    "convrot": ("LightX2V, int8", CONVROT, r"convrot \(rotated int8\)"),
    "convrot, said inside": ("LightX2V, int8", config(b'{"format": "int8_tensorwise", "params": {"convrot": true}}'), "convrot"),
    "AWQ": ("fp8_scaled", with_part("pre_quant_scale", torch.ones(160)), "weights in AWQ, with scales of the activations"),
    "4 bits": ("fp8_scaled", with_part("weight", torch.zeros(ROWS, 80, dtype=torch.uint8)), "weights in 4 bits"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_damaged_or_not_known_is_one_clear_line(name, tmp_path, capsys):
    form, change, hint = MALFORMED[name]
    file, _, _ = PACKINGS[form](packings.dit_tensors())
    file = {key.removeprefix("model."): value for key, value in file.items()}
    change(file)
    save_file(file, tmp_path / "x.safetensors")
    with pytest.raises(lolrt.CheckpointError, match=hint) as error:
        lolrt.load_dit(tmp_path)
    assert str(tmp_path) in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 600
    assert main(["convert", str(tmp_path), str(tmp_path.with_name("out"))]) == 2
    assert str(error.value) in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert all(line.isprintable() for line in told.splitlines())
    if "finite" not in hint:  # values are not looked at
        assert "wrong      " in told and "complete" not in told


@pytest.mark.parametrize("text", ["{", "[]", '{"layers": []}', '{"layers": {"a": 3}}', "[" * 100_000])
def test_a_header_whose_formats_are_damaged_is_told(text, tmp_path):
    save_file(packings.dit_tensors(), tmp_path / "x.safetensors", {"_quantization_metadata": text})
    with pytest.raises(lolrt.CheckpointError, match="_quantization_metadata that list no layers in JSON"):
        lolrt.load_dit(tmp_path)


def nvfp4(folder: Path) -> None:
    """Self-Forcing-NVFP4 of LightX2V: two values per byte, an fp8 scale for each 16, one float32 scale for all, and the scales of
    activations."""
    file = {}
    for name, tensor in packings.dit_tensors().items():
        if packings.is_linear(name, tensor):
            out, inner = tensor.shape
            file |= {
                f"model.{name}": torch.zeros(out, inner // 2, dtype=torch.uint8),
                f"model.{name}_scale": torch.ones(out, inner // 16).to(E4M3),
            }
            layer = f"model.{name.removesuffix('.weight')}"
            file |= {f"{layer}.{part}": torch.ones(1) for part in ("weight_global_scale", "input_global_scale", "alpha")}
        else:
            file[f"model.{name}"] = tensor
    save_file(file, folder / "x.safetensors")


def fouroversix(folder: Path) -> None:
    """model_4o6.pt of LongLive 2."""
    file = {}
    for name, tensor in packings.dit_tensors().items():
        parts = [f"{name.removesuffix('weight')}quantized_weight_{part}" for part in ("values", "scale_factors", "amax", "metadata")]
        file |= {part: torch.zeros(4, dtype=torch.uint8) for part in parts} if packings.is_linear(name, tensor) else {name: tensor}
    torch.save({"generator": file}, folder / "model_4o6.pt")


def sla(folder: Path) -> None:
    """TurboWan2.1-T2V-1.3B-480P-quant.pth of TurboDiffusion."""
    file, _, _ = PACKINGS["TurboDiffusion, int8"](packings.dit_tensors())
    extras = {f"blocks.{i}.self_attn.attn_op.local_attn.proj_l.{leaf}": torch.zeros(128) for i in range(2) for leaf in ("weight", "bias")}
    torch.save({**file, **extras}, folder / "x.pth")


@pytest.mark.parametrize(
    "write, hint",
    [
        (nvfp4, r"weights in NVFP4 \(4 bits\) as of LightX2V; .* \(it has model\.blocks\.0\.cross_attn\.k\.input_global_scale\)"),
        (fouroversix, r"weights in 4o6 \(4 bits\) as of fouroversix"),
        (sla, "a DiT of TurboDiffusion.*both directions"),
    ],
)
def test_what_cannot_run_is_called_by_its_name(write, hint, tmp_path, capsys):
    write(tmp_path)
    with pytest.raises(lolrt.CheckpointError, match=hint) as error:
        lolrt.load_dit(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    assert f"wrong      {error.value}" in capsys.readouterr().out


def test_what_is_packed_is_read_from_the_file_and_nothing_else(tmp_path):
    """Values and scales stay in the file until they are asked for."""
    path = packings.save(tmp_path / "x.safetensors", PACKINGS["LightX2V, int8"](packings.dit_tensors()))
    weight = read_component(path, "dit").tensors[f"{LAYER}.weight"]
    assert weight.shape == (128, 160) and weight.numel() == 128 * 160
    assert [tensor.dtype for tensor in weight.stored] == [torch.int8, torch.float32]
    assert torch.equal(weight.stored[0], load_file(path)[f"model.{LAYER}.weight"])


@pytest.mark.whole
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", ["ComfyUI, bf16", "LightX2V, fp8", "TurboDiffusion, int8"])
def test_what_convert_quantises_is_the_model_within_the_forms_step(source, form, tmp_path, capsys):
    """From any source. The layers that the public converters leave in floats do not change."""
    path = packings.save(tmp_path / "x.safetensors", PACKINGS[source](packings.dit_tensors()))
    assert main(["convert", str(path), str(tmp_path / "out"), "--dtype", form]) == 0
    before, after = (lolrt.load_dit(place, torch.float32).state_dict() for place in (path, tmp_path / "out"))
    quantised = 0
    for name, weight in before.items():
        if not packings.is_linear(name, weight):
            assert torch.equal(after[name], weight.bfloat16().float()), name
        elif form == "int8":
            quantised += 1
            assert ((after[name] - weight).abs() <= 0.501 * weight.abs().amax(1, keepdim=True) / 127).all(), name
        else:
            quantised += 1
            least = weight.abs().max() / 448 * 2**-10  # half of e4m3's smallest step
            assert ((after[name] - weight).abs() <= (weight.abs() * 2**-4).clamp(min=least) * 1.001).all(), name
    assert quantised == 20
    assert main(["inspect", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert f"packed     20 in {'int8 with a scale for each row' if form == 'int8' else 'fp8 (e4m3) with a scale for each weight'}" in told
    assert "complete   every tensor" in told


@pytest.mark.parametrize("form", FORMS)
def test_what_convert_writes_is_what_public_tools_write(form, tmp_path):
    """The same values as by the public rule, bit for bit."""
    tensors = packings.dit_tensors()
    tensors["blocks.1.ffn.2.weight"][3] = 0  # has no scale of its own
    layouts.save_safetensors(tmp_path / "in", tensors)
    convert(tmp_path / "in", tmp_path / "out", form=form)
    ours = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    if form == "fp8_scaled":
        theirs, _, _ = packings.scaled_fp8(())(tensors)
        theirs["scaled_fp8"] = theirs["scaled_fp8"][:0]
    else:
        theirs, _, _ = packings.lightx2v(torch.int8)(tensors)
        theirs = {name.removeprefix("model."): tensor for name, tensor in theirs.items()}
        theirs["blocks.1.ffn.2.weight_scale"][3] = ours["blocks.1.ffn.2.weight_scale"][3]  # LightX2V gives a row of zeros another scale
        assert bytes(ours["blocks.0.ffn.0.comfy_quant"].tolist()) == b'{"format": "int8_tensorwise"}'
        ours = {name: tensor for name, tensor in ours.items() if not name.endswith("comfy_quant")}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        if packings.is_linear(name, tensor) or "scale" in name:
            assert ours[name].dtype == tensor.dtype and torch.equal(ours[name].float(), tensor.float()), name


@pytest.mark.whole
@pytest.mark.skipif(not find_spec("comfy_kitchen"), reason="no comfy_kitchen")
@pytest.mark.parametrize("form", FORMS)
def test_comfyuis_library_makes_the_same_of_what_convert_writes(form, tmp_path):
    from comfy_kitchen.tensor import QuantizedTensor
    from comfy_kitchen.tensor.fp8 import TensorCoreFP8Layout
    from comfy_kitchen.tensor.int8 import TensorWiseINT8Layout

    layouts.save_safetensors(tmp_path / "in", packings.dit_tensors())
    convert(tmp_path / "in", tmp_path / "out", form=form)
    file = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    layout, scale = (TensorWiseINT8Layout, "weight_scale") if form == "int8" else (TensorCoreFP8Layout, "scale_weight")
    read = lolrt.load_dit(tmp_path / "out", torch.float32).state_dict()
    for name in ("blocks.0.self_attn.q.weight", f"{LAYER}.weight"):
        values, scales = file[name], file[name.removesuffix("weight") + scale]
        params = layout.Params(scale=scales, orig_dtype=torch.float32, orig_shape=tuple(values.shape))
        assert torch.equal(QuantizedTensor(values, layout.__name__, params).dequantize(), read[name])
        if form == "int8":
            theirs = QuantizedTensor.from_float(packings.dit_tensors()[name], "TensorWiseINT8Layout", per_channel=True)
            assert torch.equal(theirs.state_dict("x")["x"], values)


@pytest.mark.whole
@pytest.mark.parametrize("form", FORMS)
def test_a_whole_model_in_8_bits_makes_video(form, tmp_path, capsys):
    model = synth(tmp_path / "small", "small")
    assert main(["convert", str(model), str(tmp_path / "out"), "--dtype", form]) == 0
    written = load_file(tmp_path / "out" / "vae.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}, "the VAE is left as it is"
    sizes = [(folder / "diffusion_pytorch_model.safetensors").stat().st_size for folder in (tmp_path / "out", model)]
    assert sizes[0] < 0.75 * sizes[1]
    made = ["generate", "a red car by the sea", "-o", str(tmp_path / "v.mp4"), "--frames", "3", "--threads", "1", "--quiet"]
    assert main([*made, "--model", str(tmp_path / "out")]) == 0
    assert (tmp_path / "v.mp4").stat().st_size > 0


@pytest.mark.parametrize("form", FORMS)
def test_a_text_encoder_is_written_in_8_bits_too(form, tmp_path):
    tensors = layouts.text_encoder_tensors()
    torch.save(tensors, tmp_path / "t5.pth")
    convert(tmp_path / "t5.pth", tmp_path / "out", form=form)
    found = read_component(tmp_path / "out", "text_encoder").tensors
    packed = {name for name, weight in found.items() if isinstance(weight, Packed)}
    assert packed == {name for name in tensors if ".attn." in name or ".ffn." in name}
    for name, tensor in tensors.items():
        weight = found[name]
        step = tensor.abs().max() / 16
        assert ((weight.unpack(torch.float32) if isinstance(weight, Packed) else weight) - tensor).abs().max() <= step, name


def test_the_command_offers_every_form():
    assert OFFERED == FORMS


def test_adapters_are_merged_before_weights_are_quantised(tmp_path):
    layouts.save_wan(tmp_path / "in", layouts.dit_tensors())
    torch.save(layouts.lora_tensors(rank=4), tmp_path / "in" / "lora.pt")
    convert(tmp_path / "in", tmp_path / "out", form="int8")
    merged, read = (lolrt.load_dit(tmp_path / name, torch.float32).state_dict() for name in ("in", "out"))
    weight = merged["blocks.0.ffn.0.weight"]
    assert ((read["blocks.0.ffn.0.weight"] - weight).abs() <= 0.501 * weight.abs().amax(1, keepdim=True) / 127).all()
