"""Numbers that are not finite end a stream with an error that says where, wherever they come from; they never become black video."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch

import lolrt
from lolrt import cli
from lolrt.models.pass_inputs import PassInputs
from lolrt.models.vae.codec import Codec
from lolrt.text.embeddings import write_embeddings

SAMPLER = lolrt.Sampler(timesteps=(1000, 750, 500))


def spoil(pipe: lolrt.Pipeline, call: int, value: float) -> None:
    """Makes one number in the result of one pass not finite."""
    calls, forward = itertools.count(), pipe.dit.forward

    def spoilt(inputs: PassInputs) -> torch.Tensor:
        out = forward(inputs)
        if next(calls) == call:
            out.view(-1)[-1] = value
        return out

    pipe.dit.forward = spoilt  # type: ignore[method-assign]


@pytest.fixture
def pipe() -> lolrt.Pipeline:
    return lolrt.load("tiny")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("spoilt", [0, 2, 3, 5])
def test_the_frames_and_the_pass_are_named(pipe, spoilt, value):
    """A single number of one pass is enough. The passes of the first two chunks are 1 to 3 and the cache pass."""
    stream = pipe.stream(pipe.example_prompts[0], sampler=SAMPLER)
    spoil(pipe, spoilt, value)
    chunk, number = divmod(spoilt, len(SAMPLER.timesteps) + 1)
    for _ in range(chunk):
        next(stream)
    told = f"latent frames {3 * chunk} to {3 * chunk + 2} are not finite from pass {number + 1} of {len(SAMPLER.timesteps) + 1} on"
    with pytest.raises(lolrt.Error, match=told):
        next(stream)
    assert stream.latent_stream.next_frame == 3 * chunk


class SpoiltCodec:
    """A VAE whose output has one pixel that is not finite."""

    def __init__(self, codec: Codec) -> None:
        self.config, self.description, self.memory_frames, self._codec = codec.config, codec.description, codec.memory_frames, codec

    def decode(self, latents: torch.Tensor, state: dict[str, torch.Tensor]) -> torch.Tensor:
        video = self._codec.decode(latents, state).clone()
        video[0, 0, 0, 0] = torch.nan
        return video


def test_frames_are_watched_as_well(pipe):
    stream = pipe.stream(pipe.example_prompts[0], sampler=SAMPLER)
    stream.vae = SpoiltCodec(stream.vae)
    with pytest.raises(lolrt.Error, match="latent frames 0 to 2 are not finite from their decoding on"):
        _ = next(stream).frames


def test_prompts_and_starts_are_looked_at_before_anything_is_made(pipe):
    text = pipe.encode_text(pipe.example_prompts[0])
    stream = pipe.latent_stream(pipe.example_prompts[0])
    start = torch.zeros(3, pipe.dit.config.in_dim, 8, 12)
    for value in (torch.nan, torch.inf):
        bad, bad_start = copy.deepcopy(text), start.clone()
        bad[-1, -1] = bad_start[-1, -1, -1, -1] = value
        with pytest.raises(lolrt.Error, match="prompt_embeds have values that are not finite"):
            stream.set_prompt(bad)
        with pytest.raises(lolrt.Error, match="prompt_embeds have values that are not finite"):
            lolrt.LatentStream(pipe.dit, bad, 8, 12)
        with pytest.raises(lolrt.Error, match="start has values that are not finite"):
            pipe.latent_stream(pipe.example_prompts[0], start=bad_start)


@pytest.mark.parametrize("shift", [float("inf"), float("nan"), 1e300])
def test_a_shift_without_noise_levels_is_refused(shift):
    with pytest.raises(lolrt.Error, match="shift is"):
        lolrt.Sampler(shift=shift)


def test_a_run_ends_and_keeps_the_video_so_far(pipe, tmp_path: Path, monkeypatch, capsys):
    load = lolrt.load

    def spoilt(*arguments: object, **options: object) -> lolrt.Pipeline:
        pipe = load(*arguments, **options)  # type: ignore[arg-type]
        spoil(pipe, 40, float("nan"))
        return pipe

    monkeypatch.setattr(lolrt, "load", spoilt)
    status = cli.main(["generate", pipe.example_prompts[0], "-o", str(tmp_path / "v.mp4"), "--frames", "60"])
    assert status == 2 and "are not finite from pass" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["v.partial.mp4"]


def test_embeddings_of_a_file_are_looked_at(pipe, tmp_path: Path, capsys):
    prompt = pipe.example_prompts[0]
    write_embeddings(tmp_path / "text.safetensors", {prompt: torch.full((3, pipe.dit.config.text_dim), torch.nan)})
    options = ["--text", str(tmp_path / "text.safetensors"), "-o", str(tmp_path / "v.mp4"), "--frames", "9"]
    assert cli.main(["generate", prompt, *options]) == 2
    assert "not finite" in capsys.readouterr().err and not (tmp_path / "v.mp4").exists()
