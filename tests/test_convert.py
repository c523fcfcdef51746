"""lolrt convert, synth and info --model."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import layouts
import pytest
import torch
from lolrt_in_process import refused, said
from safetensors import safe_open
from safetensors.torch import load_file

import lolrt
from lolrt.checkpoint import find_files, read_component, read_safetensors
from lolrt.checkpoint.convert import convert
from lolrt.checkpoint.folder import new_folder
from lolrt.checkpoint.synth import PRESETS, synth
from lolrt.memory_plan import plan_model
from lolrt.pipeline import MODELS, preferred_dtype

pytestmark = pytest.mark.whole

BYTES = preferred_dtype().itemsize


def test_a_converted_model_is_the_model(self_forcing, tmp_path, capsys):
    folder = tmp_path / "converted"
    assert said(capsys, "convert", self_forcing, folder) == f"{folder}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted", "downloads"]
    assert folder.stat().st_mode == (tmp_path / "downloads").stat().st_mode, "for all to read, as what is made by hand"
    dit, vae = lolrt.load_dit(folder, torch.float32), lolrt.load_vae(folder)
    assert (dit.config, vae.config) == (layouts.DIT, layouts.VAE)
    for name, tensor in layouts.dit_tensors().items():
        assert torch.equal(dit.state_dict()[name], tensor), name
    for name, tensor in layouts.vae_tensors().items():
        assert torch.equal(vae.state_dict()[name], tensor.bfloat16()), name
    text = read_component(folder, "text_encoder").tensors
    assert all(torch.equal(text[name], tensor.bfloat16()) for name, tensor in layouts.text_encoder_tensors().items())
    parts = find_files(folder)
    assert parts.tokenizer == folder / "tokenizer" and parts.taehv and parts.settings["height"] == 480
    assert {tensor.dtype for tensor in read_safetensors(folder / "diffusion_pytorch_model.safetensors").values()} == {torch.float32}


def test_the_reference_reader_reads_what_is_written(self_forcing, tmp_path):
    convert(self_forcing, tmp_path / "converted", torch.bfloat16)
    with safe_open(tmp_path / "converted" / "diffusion_pytorch_model.safetensors", "pt") as file:
        theirs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    assert theirs.keys() == layouts.dit_tensors().keys()
    assert all(torch.equal(theirs[name], tensor.bfloat16()) for name, tensor in layouts.dit_tensors().items())


def test_q_k_and_v_of_a_loaded_model_lie_side_by_side(self_forcing):
    for block in lolrt.load_dit(self_forcing, torch.float32).blocks:
        first, second, third = (layer.weight.data_ptr() for layer in (block.self_attn.q, block.self_attn.k, block.self_attn.v))
        assert second - first == third - second == block.self_attn.q.weight.nbytes


@pytest.mark.parametrize("change", ["overwritten", "cut"])
def test_what_becomes_of_a_file_does_not_change_a_loaded_model(change, self_forcing, tmp_path):
    folder = convert(self_forcing, tmp_path / "converted")
    shutil.copytree(MODELS / "tiny", tmp_path / "tiny")
    parts = lolrt.load_dit(folder, torch.float32), lolrt.load_vae(folder, dtype=torch.bfloat16), lolrt.load_taehv(folder)
    text = lolrt.load_text(tmp_path / "tiny")
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in parts], text("a red car").clone()
    for path in [*folder.glob("*.safetensors"), tmp_path / "tiny" / "text.safetensors"]:
        with open(path, "r+b") as file:
            if change == "cut":
                file.truncate(1000)
            else:
                file.write(bytes(path.stat().st_size))
    for part, weights in zip(parts, before[0], strict=True):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in part.state_dict().items())
    assert torch.equal(text("a red car"), before[1])


def test_what_else_lies_beside_a_tokenizer_is_not_copied(self_forcing, tmp_path):
    """Other files are weights, which the new folder would then hold twice, and targets of links."""
    tokenizer = self_forcing / "tokenizer"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "id_rsa").write_text("secret")
    (tokenizer / "key").symlink_to(tmp_path / "home" / "id_rsa")
    (tokenizer / "tokenizer_config.json").symlink_to(tmp_path / "home" / "id_rsa")
    (tokenizer / "all").symlink_to(tmp_path / "home")
    (self_forcing / "t5.pth").rename(tokenizer / "t5.pth")
    folder = convert(self_forcing, tmp_path / "converted")
    assert [path.name for path in (folder / "tokenizer").rglob("*")] == ["tokenizer.json"]
    assert lolrt.load_dit(folder).config == layouts.DIT


@pytest.mark.parametrize("link", ["tokenizer/tokenizer.json", "model.json", "text.json"])
def test_what_is_not_what_its_name_says_is_not_copied(link, self_forcing, tmp_path, capsys):
    (tmp_path / "secret.json").write_text('{"auths": "secret"}')
    (self_forcing / link).unlink(missing_ok=True)
    (self_forcing / link).symlink_to(tmp_path / "secret.json")
    refused(capsys, "convert", self_forcing, tmp_path / "converted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "secret.json"]


def test_a_model_is_not_converted_into_itself(self_forcing, capsys):
    there = sorted(self_forcing.rglob("*"))
    for place in ("new", "a/new"):
        assert "which would then hold two models" in refused(capsys, "convert", self_forcing, self_forcing / place)
    assert sorted(self_forcing.rglob("*")) == there


@pytest.mark.parametrize("command", ["convert", "synth"])
def test_folders_of_others_are_left_alone(command, self_forcing, tmp_path, capsys):
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "mine.txt").touch()
    said(capsys, *(["convert", self_forcing, tmp_path / "x"] if command == "convert" else ["synth", tmp_path / "x", "--config", "small"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["downloads", "x", "x.partial"]
    assert (tmp_path / "x.partial" / "mine.txt").exists()


def test_a_merged_lora_is_written_merged(tmp_path):
    layouts.save_wan(tmp_path / "model", layouts.dit_tensors())
    torch.save({"generator_lora": layouts.lora_tensors(rank=4)}, tmp_path / "model" / "lora.pt")
    convert(tmp_path / "model", tmp_path / "converted")
    assert find_files(tmp_path / "converted").lora is None
    merged, written = lolrt.load_dit(tmp_path / "model", torch.float32), lolrt.load_dit(tmp_path / "converted", torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(merged.state_dict().values(), written.state_dict().values(), strict=True))
    assert not torch.equal(merged.blocks[0].ffn[0].weight, layouts.dit_tensors()["blocks.0.ffn.0.weight"])


def test_a_conversion_that_fails_leaves_nothing(self_forcing, tmp_path, capsys):
    tensors = layouts.text_encoder_tensors()
    tensors["norm.weight"][0] = float("nan")
    torch.save(tensors, self_forcing / "t5.pth")
    assert "not finite, in norm.weight" in refused(capsys, "convert", self_forcing, tmp_path / "converted")
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]
    (tmp_path / "converted").mkdir()
    assert "is there already" in refused(capsys, "convert", self_forcing, tmp_path / "converted")
    assert list((tmp_path / "converted").iterdir()) == []


@pytest.mark.parametrize("command", ["convert", "synth"])
def test_a_folder_that_it_did_not_make_stays(command, small_model, tmp_path, capsys):
    """Whatever its name is. A folder that convert makes has the same permissions as any new folder."""
    mine = tmp_path / "made.partial" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    said(
        capsys,
        *(("convert", small_model, tmp_path / "made") if command == "convert" else ("synth", tmp_path / "made", "--config", "small")),
    )
    assert mine.read_text() == "precious"
    assert (tmp_path / "made").stat().st_mode == mine.parent.stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "made.partial"]


def test_of_two_that_make_one_folder_the_first_to_end_has_it(tmp_path):
    with pytest.raises(lolrt.OutputError, match=r"cannot write .*out"), new_folder(tmp_path / "out") as folder:
        (folder / "mine.txt").write_text("second")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs.txt").write_text("first")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs.txt"]


def test_text_with_a_byte_order_mark_is_read(tmp_path, capsys):
    """JSON and TOML as Windows editors write them."""
    shutil.copytree(MODELS / "tiny", tmp_path / "tiny")
    for path in (tmp_path / "tiny").glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (tmp_path / "model.toml").write_bytes(b'\xef\xbb\xbfdit = "tiny"\r\n')
    said(capsys, "inspect", tmp_path / "tiny")
    said(capsys, "inspect", tmp_path / "model.toml")
    assert lolrt.load(tmp_path / "tiny").fps == 16


def test_what_else_lies_in_a_tokenizers_folder_is_not_needed(self_forcing, tmp_path, capsys):
    (self_forcing / "tokenizer" / "spiece.model").symlink_to("nowhere")
    said(capsys, "convert", self_forcing, tmp_path / "converted")
    assert [path.name for path in (tmp_path / "converted" / "tokenizer").iterdir()] == ["tokenizer.json"]


def test_frames_that_a_model_denoises_together_are_its_windows(small_model, tmp_path, capsys):
    (tmp_path / "m.toml").write_text(f'dit = "{small_model}"\nvae = "{small_model}"\nvocabulary = "{small_model}"\nchunk_frames = 1\n')
    pipe = lolrt.load(tmp_path / "m.toml")
    assert pipe.window == lolrt.Window(chunk_frames=1)
    assert len(next(pipe.latent_stream("a red car")).latents) == 1
    assert len(next(pipe.stream("a red car")).frames) == 1
    assert len(next(pipe.latent_stream("a red car", window=lolrt.Window())).latents) == 3
    engine = pipe.engine(1)
    assert engine.open("a red car").latent_stream.session.config.window == pipe.window
    plans = {said(capsys, "info", "--model", tmp_path / "m.toml", *options).partition("\n")[2] for options in ((), ("--chunk-frames", 1))}
    assert len(plans) == 1
    assert plans != {said(capsys, "info", "--model", small_model).partition("\n")[2]}
    assert find_files(convert(tmp_path / "m.toml", tmp_path / "x")).settings["chunk_frames"] == 1
    (tmp_path / "m.toml").write_text(f'dit = "{small_model}"\nvae = "{small_model}"\nvocabulary = "{small_model}"\nchunk_frames = 10\n')
    with pytest.raises(lolrt.Error, match="recent frames at least as many as a chunk has"):
        lolrt.load(tmp_path / "m.toml")


def test_positions_that_a_model_names_are_its_streams(small_model, tmp_path, monkeypatch, capsys):
    toml, parts = tmp_path / "m.toml", f'dit = "{small_model}"\nvae = "{small_model}"\nvocabulary = "{small_model}"\n'
    toml.write_text(f'{parts}[rope]\nspread = "stratified"\nsigma = 0.5\n')
    pipe, named = lolrt.load(toml), lolrt.Rope(spread="stratified", sigma=0.5)
    assert pipe.rope == named
    opened = [pipe.latent_stream("a red car"), pipe.stream("a red car").latent_stream, pipe.engine(1).open("a red car").latent_stream]
    assert [stream.config.rope for stream in opened] == [named] * 3
    other = lolrt.Rope(sigma=0)
    opened = [pipe.latent_stream("a red car", rope=other), pipe.engine(1).open("a red car", rope=other).latent_stream]
    assert [stream.config.rope for stream in opened] == [other] * 2
    assert lolrt.load(small_model).rope == lolrt.Rope()
    assert lolrt.load(convert(toml, tmp_path / "x")).rope == named
    made = []
    monkeypatch.setattr(lolrt.Pipeline, "stream", lambda *_, rope, **__: made.append(rope) or refuse())
    for options in ([], ["--jitter-seed", "3"]):
        refused(capsys, "generate", "a red car", "-o", tmp_path / "v.mp4", "--model", toml, *options)
    assert made == [named, replace(named, jitter_seed=3)]
    shared = plan_model(toml, None, torch.float32, lolrt.Window())[0].stream["rotation tables"]
    toml.write_text(f'{parts}[rope]\nscope = "layer"\n')
    assert plan_model(toml, None, torch.float32, lolrt.Window())[0].stream["rotation tables"] > shared, "each layer has tables of its own"
    for wrong in ('sigma = "much"', "sigma = 2", "sigm = 0.5", "sigma = [1]"):
        toml.write_text(f"{parts}[rope]\n{wrong}\n")
        with pytest.raises(lolrt.Error, match=r"m\.toml: rope is .*, which makes no sense: "):
            lolrt.load(toml)


def refuse() -> None:
    raise lolrt.Error("seen")


def test_there_must_be_something_to_convert(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "holds no weights that are known here" in refused(capsys, "convert", tmp_path / "empty", tmp_path / "x")
    torch.save(layouts.lora_tensors(rank=4), tmp_path / "lora.pt")
    assert "not the DiT that they are for" in refused(capsys, "convert", tmp_path / "lora.pt", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_settings_are_converted_with_the_dit(tmp_path):
    layouts.save_wan(tmp_path / "wan", layouts.dit_tensors())
    (tmp_path / "m.toml").write_text('dit = "wan"\nfps = 24\n[sampler]\ntimesteps = [1000, 500]\n')
    parts = find_files(convert(tmp_path / "m.toml", tmp_path / "x"))
    assert parts.settings["fps"] == 24 and parts.settings["sampler"] == {"timesteps": [1000, 500]}


def test_a_synthetic_model_makes_video(small_model, tmp_path, capsys):
    told = said(capsys, "generate", "a red car by the sea", "-o", tmp_path / "v.mp4", "--frames", 3, "--model", small_model)
    assert "3 frames" in told
    assert "3 frames" in said(
        capsys, "generate", "a red car by the sea", "-o", tmp_path / "t.mp4", "--frames", 3, "--model", small_model, "--vae", "tiny"
    )
    dit = lolrt.load_dit(small_model)
    assert dit.config == PRESETS["small"].dit
    spread = torch.cat([parameter.flatten() for parameter in dit.parameters()]).float().std()
    assert 0.01 < spread < 1


def test_the_seed_makes_the_model(small_model, tmp_path):
    again, other = synth(tmp_path / "again", "small"), synth(tmp_path / "other", "small", seed=1)
    for name in ("diffusion_pytorch_model.safetensors", "vae.safetensors", "text.safetensors"):
        assert (again / name).read_bytes() == (small_model / name).read_bytes() != (other / name).read_bytes()


def test_a_config_of_ones_own(tmp_path, capsys):
    values = {"dim": 64, "num_heads": 2, "ffn_dim": 96, "num_layers": 1, "text_dim": 16, "vae": {"dim": 8}, "height": 64, "width": 128}
    (tmp_path / "config.json").write_text(json.dumps(values))
    folder = Path(said(capsys, "synth", tmp_path / "model", "--config", tmp_path / "config.json", "--dtype", "float32").strip())
    pipe = lolrt.load(folder, torch.float32)
    expected = replace(lolrt.DiTConfig(), dim=64, num_heads=2, ffn_dim=96, num_layers=1, text_dim=16)
    assert (pipe.dit.config, pipe.vae.config.dim, pipe.height, pipe.width) == (expected, 8, 64, 128)
    assert "neither one of 1.3b, small nor a file" in refused(capsys, "synth", tmp_path / "x", "--config", "13b")
    (tmp_path / "config.json").write_text('{"dim": "wide"}')
    assert "dim is 'wide'" in refused(capsys, "synth", tmp_path / "x", "--config", tmp_path / "config.json")


def test_info_plans_the_memory_of_a_model(capsys):
    told = said(capsys, "info", "--model", "tiny", "--size", "128x192", "--sinks", 1, "--recent", 5)
    assert "128 x 192 pixels" in told and "6 pages of 6 layers" in told and "in all" in told
    assert "do not divide" in refused(capsys, "info", "--model", "tiny", "--size", "64x97")
    told = said(capsys, "info", "--model", "tiny", "--device", "cuda")
    assert "bfloat16" in told and "CUDA graphs' own memory" in told and "predicted, not measured" in told
    assert "on CUDA models run in bfloat16" in refused(capsys, "info", "--model", "tiny", "--device", "cuda", "--dtype", "float32")
    assert "it lacks taehv" in refused(capsys, "info", "--model", "tiny", "--vae", "tiny")
    assert "tiles of 12 pixels" in refused(capsys, "info", "--model", "tiny", "--vae-tile", 12)


def test_info_counts_the_text_encoder_and_the_decoder_that_is_asked_for(self_forcing, capsys):
    full, tiny = (said(capsys, "info", "--model", self_forcing, "--size", "64x96", "--vae", vae) for vae in ("full", "tiny"))
    encoder = f"{2 * sum(t.numel() for t in layouts.text_encoder_tensors().values()) / 2**20:.1f} MiB"
    for told in (full, tiny):
        (line,) = [line for line in told.splitlines() if "text encoder" in line]
        assert line.startswith("before, if at all") and line.endswith(encoder)
    weights = [
        next(line.split()[-2] for line in told.splitlines() if line.startswith("weights") and " VAE " in line) for told in (full, tiny)
    ]
    assert float(weights[0]) == pytest.approx(sum(map(torch.numel, layouts.vae_tensors().values())) * BYTES / 2**20, abs=0.06)
    assert float(weights[1]) == pytest.approx(sum(map(torch.numel, layouts.taehv_tensors().values())) * BYTES / 2**20, abs=0.06)


@pytest.mark.parametrize("sampler", ['shift = "x"', 'timesteps = ["a"]', "timesteps = 5", "timesteps = [999.5]", "steps = 4"])
def test_wrong_settings_of_the_sampler_are_one_clear_line(sampler, small_model, tmp_path, capsys):
    (tmp_path / "m.toml").write_text(f'dit = "{small_model}"\nvae = "{small_model}"\nvocabulary = "{small_model}"\n[sampler]\n{sampler}\n')
    assert re.search("sampler|timesteps", refused(capsys, "info", "--model", tmp_path / "m.toml"))


def test_a_name_too_long_for_a_file_is_one_clear_line(capsys):
    assert "nor a path that exists" in refused(capsys, "info", "--model", "x" * 5000)


def test_the_embedded_model_survives_conversion(tmp_path):
    """Its config has settings that tensors do not show, and its text part is a vocabulary."""
    shutil.copytree(MODELS / "tiny", tmp_path / "tiny")
    converted, original = lolrt.load(convert(tmp_path / "tiny", tmp_path / "x")), lolrt.load("tiny")
    assert converted.dit.config == original.dit.config and converted.vae.config == original.vae.config
    assert (converted.sampler, converted.fps, converted.height) == (original.sampler, original.fps, original.height)
    assert torch.equal(converted.encode_text("a red car"), original.encode_text("a red car"))
    assert load_file(tmp_path / "x" / "vae.safetensors").keys() == load_file(MODELS / "tiny" / "vae.safetensors").keys()
