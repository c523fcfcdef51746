"""Adapters that change while a stream goes on: its bits are those of a model that was loaded with them, and no other stream is affected."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import layouts
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import lolrt
from lolrt.checkpoint.load import with_lora
from lolrt.checkpoint.synth import synth
from lolrt.cli import main

WEIGHTS = layouts.dit_tensors()
WINDOW = lolrt.Window(3, 9)
SAMPLER = lolrt.Sampler(timesteps=(1000, 500))


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def adapters(seed: int) -> dict[str, Tensor]:
    """Adapters of some layers of every kind: of q but not of k and v, of the text's keys, and of the timestep's layers."""
    layers = ("blocks.0.self_attn.q", "blocks.1.ffn.2", "blocks.1.cross_attn.k", "time_projection.1", "text_embedding.0")
    tensors = {}
    for i, layer in enumerate(layers):
        out, inputs = layouts.DIT_SHAPES[f"{layer}.weight"]
        tensors[f"diffusion_model.{layer}.lora_down.weight"] = drawn(2, inputs, seed=10 * seed + i)
        tensors[f"diffusion_model.{layer}.lora_up.weight"] = drawn(out, 2, seed=100 * seed + i)
    return {**tensors, "diffusion_model.blocks.0.diff_m": drawn(1, 6, 256, seed=seed)}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A DiT in model/ whose weights are float32, and two LoRAs, a and b."""
    folder = tmp_path_factory.mktemp("lora")
    layouts.save_wan(folder / "model", WEIGHTS)
    for seed, name in enumerate("ab", 1):
        save_file(adapters(seed), folder / f"{name}.safetensors")
    return folder


def same(a: lolrt.CausalDiT, b: lolrt.CausalDiT) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


PROMPT, OTHER = drawn(7, 48, seed=1), drawn(5, 48, seed=2)


def stream(dit: lolrt.CausalDiT, **options) -> lolrt.LatentStream:
    return lolrt.LatentStream(dit, PROMPT, 8, 8, window=WINDOW, sampler=SAMPLER, **options)


def latents(chunks: Iterator[lolrt.LatentChunk], count: int) -> Tensor:
    return torch.cat([chunk.latents for chunk in islice(chunks, count)])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_bits_of_a_model_loaded_with_the_adapters(dtype, files):
    """Rounded once, from the files, whatever was merged before."""
    plain = lolrt.load_dit(files / "model", dtype)
    a, b = f"{files}/a.safetensors:0.7", files / "b.safetensors"
    with_a, with_both = lolrt.load_dit(files / "model", dtype, a), lolrt.load_dit(files / "model", dtype, [a, b])
    assert not same(plain, with_a) and not same(with_a, with_both)
    assert same(with_lora(plain, a), with_a)
    assert same(with_lora(with_a, [a, b]), with_both)
    assert same(with_lora(with_both, None), plain) and same(with_lora(with_lora(plain, b), []), plain)
    assert with_both.adapters == ("a.safetensors:0.7", "b.safetensors:1") and with_lora(with_both, None).adapters == ()


def test_weights_that_adapters_leave_alone_are_shared(files):
    plain = lolrt.load_dit(files / "model", torch.float32)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    changed = with_lora(plain, files / "a.safetensors")
    own = {name for name, tensor in changed.state_dict().items() if tensor.data_ptr() != plain.state_dict()[name].data_ptr()}
    beside = {f"blocks.0.self_attn.{name}.weight" for name in "kv"}  # q, k and v are one matrix
    beside |= {f"blocks.1.cross_attn.{name}.weight" for name in "qv"}
    assert own - beside == changed.origin.changed and own >= changed.origin.changed
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_the_lora_that_is_part_of_the_model_stays(files, tmp_path):
    layouts.save_wan(tmp_path, WEIGHTS)
    torch.save({"generator_lora": layouts.lora_tensors(4)}, tmp_path / "own.pt")
    own = lolrt.load_dit(tmp_path, torch.float32)
    both = lolrt.load_dit(tmp_path, torch.float32, files / "a.safetensors")
    assert own.adapters == ("own.pt:1",) and same(with_lora(own, files / "a.safetensors"), both)
    assert same(with_lora(both, None), own)


def test_a_stream_changes_its_adapters_and_no_other_stream_sees_it(files):
    dit = lolrt.load_dit(files / "model", torch.float32)
    expected = latents(stream(dit, seed=1), 6)
    other, changed = stream(dit, seed=1), stream(dit, seed=2)
    seen = [latents(other, 2)]
    latents(changed, 2)
    changed.set_lora(files / "a.safetensors")
    seen.append(latents(other, 2))
    latents(changed, 2)
    changed.set_lora(None)
    seen.append(latents(other, 2))
    assert torch.equal(torch.cat(seen), expected)
    assert other.dit is dit and changed.dit is not dit


def test_from_its_first_chunk_on_it_is_a_stream_of_the_other_model(files):
    changed = stream(lolrt.load_dit(files / "model", torch.float32), seed=5)
    changed.set_lora([files / "b.safetensors", f"{files}/a.safetensors:0.5"])
    whole = lolrt.load_dit(files / "model", torch.float32, [files / "b.safetensors", f"{files}/a.safetensors:0.5"])
    assert torch.equal(latents(changed, 4), latents(stream(whole, seed=5), 4))


def test_the_past_is_run_again_by_the_new_weights(files):
    """With its sinks, the whole past: the cache equals, bit for bit, that of a stream of the other model that began with the same
    frames."""
    dit, a = lolrt.load_dit(files / "model", torch.float32), files / "a.safetensors"
    with_a = lolrt.load_dit(files / "model", torch.float32, a)
    made: dict[str, Tensor] = {}
    for recache in ("sinks", "window", "none"):
        changed = stream(dit, seed=3)
        past = latents(changed, 2)
        changed.set_lora(a, recache=recache)
        (chunk,) = islice(changed, 1)
        made[recache] = chunk.latents
        assert chunk.switch is not None and chunk.switch.recache == recache
    given = stream(with_a, seed=3, start=past)
    assert torch.equal(latents(given, 3)[6:], made["sinks"])
    assert not torch.equal(made["sinks"], made["window"]) and not torch.equal(made["window"], made["none"])


def test_a_prompt_switch_on_its_way_goes_on(files):
    a = files / "a.safetensors"
    changed = stream(lolrt.load_dit(files / "model", torch.float32), seed=3)
    latents(changed, 1)
    changed.set_prompt(OTHER, over_chunks=3)
    latents(changed, 1)
    changed.set_lora(a, recache="none")
    reached = [chunk.switch is not None for chunk in islice(changed, 3)]
    assert reached == [False, True, False], "of three chunks, two were left"
    assert torch.equal(changed.session._prompt_embeds[: len(OTHER)], OTHER)


def test_files_that_have_changed_since_are_told_and_the_stream_goes_on_as_it_was(files, tmp_path):
    folder = layouts.save_wan(tmp_path / "model", WEIGHTS)
    weights = folder / "diffusion_pytorch_model.safetensors"
    changed, expected = stream(lolrt.load_dit(folder, torch.float32)), stream(lolrt.load_dit(folder, torch.float32))
    latents(changed, 1)
    faults = [lambda: save_file({**WEIGHTS, "head.head.bias": torch.zeros(64)}, weights), weights.unlink]
    for fault in faults:
        fault()
        with pytest.raises(lolrt.CheckpointError, match="has changed since the model was loaded from it, or is gone: load the model anew"):
            changed.set_lora(files / "a.safetensors")
    save_file({"blocks.7.ffn.0.diff": torch.zeros(1)}, tmp_path / "stranger.safetensors")
    fresh = stream(lolrt.load_dit(files / "model", torch.float32))
    latents(fresh, 1)
    for wrong in (tmp_path / "stranger.safetensors", tmp_path / "nowhere.safetensors", f"{files}/a.safetensors:inf"):
        with pytest.raises(lolrt.Error, match=r"the model has no blocks\.7\.ffn\.0\.weight|does not exist|finite number"):
            fresh.set_lora(wrong)
    expected = latents(expected, 3)[3:]
    assert torch.equal(latents(changed, 2), expected) and torch.equal(latents(fresh, 2), expected)


def test_streams_of_one_engine_have_adapters_of_their_own(files):
    """Each has the bits of a stream that is alone with them, from its first chunk or from a later one on, and goes on from its snapshot."""
    dit, a, b = lolrt.load_dit(files / "model", torch.float32), files / "a.safetensors", files / "b.safetensors"
    engine = lolrt.Engine(dit, 8, 8, pages=5 * WINDOW.pool_pages, sessions=5, batch_invariant=True)
    with_a = with_lora(dit, a)

    def opened(seed: int, own: lolrt.CausalDiT) -> lolrt.LatentStream:
        return lolrt.LatentStream.of(engine, PROMPT, stream(dit, seed=seed).config, dit=own)

    shared = [opened(seed, own) for seed, own in enumerate((dit, dit, with_a, with_a))]
    alone = [stream(dit, seed=i) for i in range(4)]
    for i in (2, 3):
        alone[i].set_lora(a)
    made: list[list[Tensor]] = [[] for _ in shared]
    saved = None
    for number in range(5):
        if number == 2:
            shared[1].set_lora(b)
            saved = shared[2].snapshot()
        left = set(range(4))
        while left:
            ready = sorted(left)
            for i, chunk in zip(ready, engine.step([shared[i].session for i in ready]), strict=True):
                assert not isinstance(chunk, Exception)
                if chunk is not None:
                    made[i].append(chunk.latents)
                    left.remove(i)
    expected = [latents(alone[0], 5), latents(alone[1], 2), latents(alone[2], 5), latents(alone[3], 5)]
    alone[1].set_lora(b)
    expected[1] = torch.cat([expected[1], latents(alone[1], 3)])
    assert all(torch.equal(torch.cat(own), other) for own, other in zip(made, expected, strict=True))
    assert shared[2].session.model is shared[3].session.model and shared[0].dit is dit and shared[1].dit is not dit
    assert saved is not None and saved.model["lora"] == ["a.safetensors:1"]
    with pytest.raises(lolrt.Error, match="lora"):
        opened(2, dit).restore(saved)
    again = opened(2, with_a)
    again.restore(saved)
    assert torch.equal(latents(again, 3), torch.cat(made[2][2:]))


def test_what_cannot_change_is_told(files):
    dit = lolrt.load_dit(files / "model", torch.float32)
    alone = stream(dit)
    alone.engine.step([alone.session])
    with pytest.raises(lolrt.Error, match="a chunk of this session is on its way"):
        alone.set_lora(files / "a.safetensors")
    made = lolrt.CausalDiT(layouts.DIT).requires_grad_(False)
    with pytest.raises(lolrt.Error, match="was not loaded from files"):
        stream(made).set_lora(None)


SIZES = '{"dim": 128, "num_heads": 1, "ffn_dim": 192, "num_layers": 1, "text_dim": 32, "vae": {"dim": 8}, "height": 64, "width": 64}'
TEXT = "a red car by the sea at noon"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A whole model, with style.safetensors and motion.safetensors beside it."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "sizes.json").write_text(SIZES)
    made = synth(folder / "model", str(folder / "sizes.json"))
    for i, name in enumerate(("style", "motion")):
        save_file({"diffusion_model.blocks.0.ffn.0.diff": drawn(192, 128, seed=i)}, folder / f"{name}.safetensors")
    return made


def test_snapshots_know_the_adapters_and_are_resumed_with_the_same_ones_alone(model, tmp_path):
    style, motion = f"{model.parent}/style.safetensors:0.5", model.parent / "motion.safetensors"
    pipe = lolrt.load(model, torch.float32)
    changed = pipe.stream(TEXT)
    next(changed)
    changed.set_lora([style, motion])
    next(changed)
    changed.save(tmp_path / "s.safetensors")
    expected = next(changed).frames
    assert lolrt.Snapshot.read(tmp_path / "s.safetensors").model["lora"] == ["style.safetensors:0.5", "motion.safetensors:1"]
    assert torch.equal(next(pipe.resume(tmp_path / "s.safetensors", lora=[style, motion])).frames, expected)
    loaded = lolrt.load(model, torch.float32, lora=[style, motion])
    assert torch.equal(next(loaded.resume(tmp_path / "s.safetensors")).frames, expected)
    with pytest.raises(
        lolrt.Error, match=r"model\.lora is \['style\.safetensors:0\.5', 'motion\.safetensors:1'\] in the saved one and None"
    ):
        pipe.resume(tmp_path / "s.safetensors")
    with pytest.raises(lolrt.Error, match=r"'motion\.safetensors:1'\] in the saved one and \['style\.safetensors:0\.5'\] here"):
        pipe.resume(tmp_path / "s.safetensors", lora=style)


def test_a_stream_that_is_opened_later_has_the_pipelines_weights(model):
    pipe = lolrt.load(model, torch.float32)
    engine = pipe.engine(max_sessions=1)
    changed = engine.open(TEXT)
    changed.set_lora(f"{model.parent}/style.safetensors:0.5")
    engine.close(changed)
    assert engine.open(TEXT).latent_stream.dit is pipe.dit


def test_generate_takes_adapters_and_resumes_with_them(model, tmp_path, capsys, monkeypatch):
    style, motion = f"{model.parent}/style.safetensors:0.5", f"{model.parent}/motion.safetensors"
    plain = ["generate", TEXT, "--model", str(model), "--threads", "1", "--quiet", "--frames", "33", "--save-every", "9"]
    begin = [*plain, "--lora", style, "--lora", motion]
    assert main([*begin, "-o", str(tmp_path / "whole.mp4")]) == main([*plain, "-o", str(tmp_path / "plain.mp4")]) == 0
    assert (tmp_path / "whole.mp4").read_bytes() != (tmp_path / "plain.mp4").read_bytes()
    write, calls = lolrt.VideoWriter.write, 0

    def fails(self, frames):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise lolrt.OutputError("the disk is full")
        write(self, frames)

    with monkeypatch.context() as patched:
        patched.setattr(lolrt.VideoWriter, "write", fails)
        assert main([*begin, "-o", str(tmp_path / "x.mp4")]) == 2
    snapshot = str(tmp_path / "x.snapshot.safetensors")
    assert main(["generate", "--resume", snapshot, "--lora", style]) == 2
    assert "lora is [" in capsys.readouterr().err
    assert main(["generate", "--resume", snapshot, "--quiet", "--threads", "1", "--lora", style, "--lora", motion]) == 0
    assert (tmp_path / "x.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_generate_refuses_adapters_before_it_encodes_and_loads(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lolrt, "load_text", lambda *_: pytest.fail("a text encoder was asked for"), raising=False)
    begin = ["generate", TEXT, "--model", str(model), "-o", str(tmp_path / "x.mp4"), "--lora"]
    assert main([*begin, f"{model}/nowhere.safetensors:0.5"]) == 2
    assert "nowhere.safetensors does not exist" in capsys.readouterr().err
    save_file({f"head.head.lora_{side}": torch.zeros(3, 3) for side in "AB"}, tmp_path / "unfit.safetensors")
    assert main([*begin, str(tmp_path / "unfit.safetensors")]) == 2
    assert "unfit.safetensors, a LoRA, does not fit the model: head.head has A [3, 3]" in capsys.readouterr().err
