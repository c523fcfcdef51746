"""Defaults of sampling that follow from the names under which weights are published, against the public configs."""

from __future__ import annotations

import json
from pathlib import Path

import layouts
import pytest
import torch
from safetensors.torch import save_file

import lolrt
from lolrt.checkpoint import find_files
from lolrt.checkpoint.recipes import RECIPES
from lolrt.checkpoint.synth import synth
from lolrt.cli import main
from lolrt.pipeline import sampler_of, window_of

FOUR = (1000, 750, 500, 250)
# Published paths, with frames per chunk, steps, steps of the first chunk, and the weights that are used, from Causal-Forcing's
# configs/*.yaml and its README, LongLive's inference.yaml and Self-Forcing's self_forcing_dmd.yaml. All have shift 5.
PUBLISHED = {
    "causal-forcing++/framewise-1step.pt": (1, (1000,), FOUR, "generator_ema"),
    "causal-forcing++/framewise-2step.pt": (1, (1000, 500), FOUR, "generator_ema"),
    "framewise/causal_forcing.pt": (1, FOUR, (), "generator_ema"),
    "chunkwise/causal_forcing.pt": (3, FOUR, (), "generator"),
    "chunkwise/longvideo.pt": (3, FOUR, (), "generator"),
    "checkpoints/self_forcing_dmd.pt": (3, FOUR, (), "generator_ema"),
    "Wan2.1-T2V-1.3B/self_forcing_sid.pt": (3, FOUR, (), "generator_ema"),
    "models/longlive_base.pt": (3, FOUR, (), "generator"),
    "models--someone--Framewise-2step/snapshots/0f3a/model.pt": (1, (1000, 500), FOUR, "generator_ema"),  # in the hub's cache
}


def save(folder: Path, name: str, groups: tuple[str, ...] = ("generator", "generator_ema")) -> Path:
    """Weights in each of these groups, all different."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({group: {f"model.{n}": t + i for n, t in layouts.dit_tensors().items()} for i, group in enumerate(groups)}, path)
    return path


def used(path: Path) -> tuple[int, tuple[int, ...], tuple[int, ...], float]:
    files = find_files(path)
    sampler, window = sampler_of({"sampler": {}, **files.settings}, path), window_of(files.settings, path)
    return window.chunk_frames, sampler.timesteps, sampler.first_timesteps, sampler.shift


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_are_sampled_as_their_configs_say(name, tmp_path, capsys):
    chunk, steps, first, group = PUBLISHED[name]
    path = save(tmp_path, name)
    assert used(path) == (chunk, steps, first, 5.0)
    bias = lolrt.load_dit(path, torch.float32).head.head.bias
    assert torch.equal(bias, layouts.dit_tensors()["head.head.bias"] + ("generator", "generator_ema").index(group))
    assert main(["inspect", str(path)]) == 0
    told = capsys.readouterr().out
    assert f"sampling   {chunk} frame" in told and "which its name says" in told and "warning" not in told
    assert f"timesteps {', '.join(map(str, steps))}{' (1000, 750, 500, 250 for the first chunk)' if first else ''}, shift 5" in told


def test_what_settings_and_toml_say_comes_first(tmp_path):
    save(tmp_path, "causal-forcing++/framewise-2step.pt")
    dit = 'dit = "causal-forcing++/framewise-2step.pt"\n'
    (tmp_path / "a.toml").write_text(dit)
    (tmp_path / "b.toml").write_text(f'{dit}weights = "generator"\nchunk_frames = 2\n[sampler]\ntimesteps = [1000]\n')
    assert used(tmp_path / "a.toml") == (1, (1000, 500), FOUR, 5.0)
    assert used(tmp_path / "b.toml") == (2, (1000,), FOUR, 5.0) and find_files(tmp_path / "b.toml").group == "generator"


# What a name of this list stands for is what the published weights of that recipe have.
NAMED = {
    "framewise-1step": "causal-forcing++/framewise-1step.pt",
    "framewise-2step": "causal-forcing++/framewise-2step.pt",
    "framewise-4step": "framewise/causal_forcing.pt",
    "chunkwise": "chunkwise/causal_forcing.pt",
    "longlive": "models/longlive_base.pt",
    "self-forcing": "checkpoints/self_forcing_dmd.pt",
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_where_no_file_says_it(name, tmp_path, capsys):
    """In a .toml file, also against the names of the files, and in model.json; what else they set comes first, and convert keeps it."""
    chunk, steps, first, group = PUBLISHED[NAMED[name]]
    save(tmp_path, "longlive/renamed.pt")
    (tmp_path / "m.toml").write_text(f'dit = "longlive/renamed.pt"\nrecipe = "{name}"\n')
    assert used(tmp_path / "m.toml") == (chunk, steps, first, 5.0)
    assert (find_files(tmp_path / "m.toml").group or "generator_ema") == group
    assert main(["inspect", str(tmp_path / "m.toml")]) == 0
    assert ", which its settings say" in capsys.readouterr().out
    (tmp_path / "m.toml").write_text(f'dit = "longlive/renamed.pt"\nrecipe = "{name}"\nchunk_frames = 2\n[sampler]\nshift = 3.0\n')
    assert used(tmp_path / "m.toml") == (2, steps, first, 3.0)
    assert main(["convert", str(tmp_path / "m.toml"), str(tmp_path / "made")]) == 0
    assert used(tmp_path / "made") == (2, steps, first, 3.0)
    (tmp_path / "made" / "model.json").write_text(json.dumps({"recipe": name}))
    assert used(tmp_path / "made") == (chunk, steps, first, 5.0)


def test_a_recipe_that_is_not_known_is_told_the_others(tmp_path):
    save(tmp_path, "a.pt")
    (tmp_path / "m.toml").write_text('dit = "a.pt"\nrecipe = "frame-wise"\n')
    with pytest.raises(lolrt.CheckpointError, match="recipe is 'frame-wise'; expected one of framewise-1step, "):
        find_files(tmp_path / "m.toml")


def test_weights_of_a_recipe_are_used_where_there_are_such(tmp_path):
    path = save(tmp_path, "chunkwise/causal_forcing.pt", ("generator_ema",))
    assert find_files(path).group is None and lolrt.load_dit(path).config == layouts.DIT


@pytest.mark.parametrize("name", ["weights.pt", "wan_causal_dmd_v2v/model.pt", "krea-realtime-video-14b.pt"])
def test_where_nothing_says_a_line_names_the_options(name, tmp_path, capsys):
    path = save(tmp_path, name)
    assert used(path) == (3, FOUR, (), 5.0)
    assert main(["inspect", str(path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sampling")]
    assert "nothing says how it was trained" in line and "--chunk-frames 1" in line and "--timesteps" in line


def pipeline(folder: Path, kind: str) -> Path:
    layouts.save_diffusers(folder, layouts.dit_tensors())
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, "transformer": ["diffusers", "WanTransformer3DModel"]}))
    return folder


BIDIRECTIONAL = {
    "Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors": None,
    "models--Wan-AI--Wan2.1-T2V-1.3B/snapshots/0f3a/diffusion_pytorch_model.safetensors": None,
    "diffusion_models/wan2.1_t2v_1.3B_bf16.safetensors": None,
    "FastWan2.1-T2V-1.3B-Diffusers": "WanDMDPipeline",
    "some folder": "WanPipeline",
    "FastWan-QAD-1.3B": "Unknown",
    "m/TurboWan2.1-T2V-1.3B-480P.safetensors": None,
}


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_weights_that_are_not_causal_are_warned_of_by_name(name, tmp_path, capsys):
    if kind := BIDIRECTIONAL[name]:
        path = pipeline(tmp_path / name, kind)
    else:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(layouts.dit_tensors(), path)
    assert main(["inspect", str(path)]) == 0
    told = capsys.readouterr().out
    whose = "FastWan" if "FastWan" in name else "TurboWan" if "Turbo" in name else "Wan"
    assert f": {whose} was trained on whole clips at once" in told
    assert f"That it is this model its {'model_index.json' if name == 'some folder' else 'name'} says; " in told
    assert "if the weights are causal ones, or a LoRA makes them so, say so with recipe" in told


def test_whoever_knows_that_weights_are_causal_can_say_so(tmp_path, capsys):
    """As the warning tells."""
    save_file(layouts.dit_tensors(), tmp_path / "wan2.1_t2v.safetensors")
    model = tmp_path / "model.toml"
    for line, warned in (("", True), ('recipe = "self-forcing"\n', False)):
        model.write_text(f'dit = "wan2.1_t2v.safetensors"\n{line}')
        assert main(["inspect", str(model)]) == 0
        assert ("whole clips" in capsys.readouterr().out) == warned


@pytest.mark.parametrize("kind", ["WanModel", "CausalWanModel", "CausalWanTransformer3DModel", ["a list"]])
def test_the_class_in_a_config_counts_more_than_a_name_only_where_it_is_of_causal_weights(kind, tmp_path, capsys):
    """Code that makes causal weights saves its own class with them; Wan's class is beside them as well as beside Wan's."""
    folder = layouts.save_wan(tmp_path / "Wan2.1-T2V-1.3B", layouts.dit_tensors())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": kind}))
    assert main(["inspect", str(folder)]) == 0
    assert ("whole clips" in capsys.readouterr().out) == (not str(kind).startswith("Causal"))


@pytest.mark.parametrize("kind, name", [("WanCausalDMDPipeline", "x"), ("WanPipeline", "self-forcing"), (["a list"], "x")])
def test_folders_of_causal_pipelines_are_not(kind, name, tmp_path, capsys):
    assert main(["inspect", str(pipeline(tmp_path / name, kind))]) == 0
    assert "whole clips" not in capsys.readouterr().out


def test_a_whole_model_says_what_it_is_sampled_with(tmp_path, capsys, monkeypatch):
    """`lolrt generate` shows it, unless options set it; and `lolrt.load` warns about weights that are not causal."""
    sizes = {"dim": 128, "num_heads": 1, "ffn_dim": 128, "num_layers": 1, "text_dim": 32, "vae": {"dim": 8}, "height": 64, "width": 64}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    made = synth(tmp_path / "made", str(tmp_path / "sizes.json"))
    parts = f'vae = "{made}"\nvocabulary = "{made}"\nheight = 64\nwidth = 64\n'
    for name in ("framewise-2step", "weights", "wan2.1_t2v"):
        (tmp_path / f"{name}.safetensors").write_bytes((made / "diffusion_pytorch_model.safetensors").read_bytes())
        (tmp_path / f"{name}.toml").write_text(f'dit = "{name}.safetensors"\n{parts}')

    def said(name: str, *options: str) -> str:
        run = ["generate", "a red car", "--model", str(tmp_path / f"{name}.toml"), "--frames", "2", "--threads", "1"]
        assert main([*run, "-o", str(tmp_path / "v.mp4"), *options]) == 0
        return capsys.readouterr().err

    assert "note: sampled with 1 frame a chunk, timesteps 1000, 500 (1000, 750, 500, 250 for the first chunk), shift 5" in said(
        "framewise-2step"
    )
    assert "nothing says how it was trained" in said("weights")
    assert "sampled with" not in said("weights", "--chunk-frames", "1") + said("framewise-2step", "--timesteps", "1000")
    with pytest.warns(UserWarning, match="Wan was trained on whole clips at once"):
        lolrt.load(tmp_path / "wan2.1_t2v.toml")
    monkeypatch.setattr("lolrt.serve.server.serve", lambda pipe, *_: None)
    model = ["--model", str(tmp_path / "wan2.1_t2v.toml")]
    for run in (
        ["generate", "a red car", "-o", str(tmp_path / "v.mp4"), "--frames", "2", "--threads", "1", *model],
        ["info", "--size", "64x64", *model],
        ["serve", *model],
        ["convert", model[1], str(tmp_path / "wan")],
    ):
        assert main(run) == 0
        told = [line for line in capsys.readouterr().err.splitlines() if "whole clips" in line]
        assert len(told) == 1 and told[0].startswith(f"note: {tmp_path}/wan2.1_t2v.safetensors: Wan was trained on whole clips"), run
    quiet = ["generate", "a red car", "-o", str(tmp_path / "v.mp4"), "--frames", "2", "--threads", "1", "--quiet", *model]
    assert main(quiet) == 0 and not capsys.readouterr().err
    made_of_it = tmp_path / "framewise-of-mine"
    assert main(["convert", str(tmp_path / "framewise-2step.toml"), str(made_of_it)]) == 0
    assert used(made_of_it) == (1, (1000, 500), FOUR, 5.0)
    assert main(["convert", str(tmp_path / "weights.toml"), str(tmp_path / "framewise-is-no-hint-here")]) == 0
    assert used(tmp_path / "framewise-is-no-hint-here") == (3, FOUR, (), 5.0), "its model.json says all"
