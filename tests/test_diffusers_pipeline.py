"""`lolrt.diffusers.LolPipeline` as a program for diffusers' `WanPipeline` calls it, against the streams of the same model."""

from __future__ import annotations

import inspect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lolrt

pytestmark = pytest.mark.whole  # diffusers alone takes seconds to import

PROMPT, SEED = "a red balloon over the hills", 5


@pytest.fixture(scope="module")
def pipe(quick_model: Path) -> Any:
    from lolrt.diffusers import LolPipeline

    return LolPipeline.from_pretrained(quick_model, torch_dtype=torch.float32)


def generator(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seed_of(seed: int = SEED) -> int:
    """The seed of the noise that is drawn first."""
    return int(torch.randint(2**63 - 1, (), generator=generator(seed)))


def expected(pipe: Any, frames: int, seed: int = SEED) -> Tensor:
    stream = pipe.pipeline.stream(PROMPT, seed=seed_of(seed))
    return torch.cat([chunk.frames for chunk in itertools.islice(stream, 3)])[:frames]


def test_its_arguments_are_those_of_diffusers() -> None:
    from diffusers import WanPipeline

    from lolrt.diffusers import LolPipeline

    theirs, ours = (inspect.signature(of.__call__).parameters for of in (WanPipeline, LolPipeline))
    shared = [name for name in ours if name in theirs]
    assert set(ours) - set(theirs) == {"rope", "window"}
    assert shared == [name for name in theirs if name in ours], "in their order"
    for name in ("num_frames", "generator", "output_type", "return_dict", "callback_on_step_end"):
        assert ours[name].default == theirs[name].default


def test_frames_are_those_of_the_stream(pipe: Any) -> None:
    video = expected(pipe, 17)
    output = pipe(prompt=PROMPT, num_frames=17, generator=generator())
    assert output.frames.shape == (1, 17, pipe.pipeline.height, pipe.pipeline.width, 3) and output.frames.dtype == np.float32
    assert (np.round(output.frames[0] * 255) == video.numpy()).all()
    (tensors,) = pipe(PROMPT, num_frames=17, generator=generator(), output_type="pt", return_dict=False)
    assert torch.equal((tensors[0] * 255).round().byte().permute(0, 2, 3, 1), video)
    images = pipe(PROMPT, num_frames=2, generator=generator(), output_type="pil").frames[0]
    assert [(np.asarray(image) == frame.numpy()).all() for image, frame in zip(images, video[:2], strict=True)] == [True, True]
    latents = pipe(PROMPT, num_frames=17, generator=generator(), output_type="latent").frames
    stream = pipe.pipeline.latent_stream(PROMPT, seed=seed_of())
    assert torch.equal(latents[0], torch.cat([next(stream).latents for _ in range(2)])[:5].transpose(0, 1))


def test_prompts_and_generators(pipe: Any) -> None:
    both = pipe([PROMPT, PROMPT], num_frames=3, generator=[generator(1), generator(2)]).frames
    for found, seed in zip(both, (1, 2), strict=True):
        assert (np.round(found * 255) == expected(pipe, 3, seed).numpy()).all()
    shared = generator()
    first, second = (pipe(PROMPT, num_frames=1, generator=shared).frames for _ in range(2))
    assert not np.array_equal(first, second), "a generator that was drawn from goes on"
    torch.manual_seed(3)
    drawn = pipe(PROMPT, num_frames=1).frames
    torch.manual_seed(3)
    assert np.array_equal(drawn, pipe(PROMPT, num_frames=1).frames)


def test_sizes_and_steps(pipe: Any) -> None:
    steps = []
    video = pipe(PROMPT, 32, 48, num_frames=1, num_inference_steps=4, callback_on_step_end=lambda *of: steps.append(of[2])).frames
    assert video.shape == (1, 1, 32, 48, 3)
    sampler = lolrt.Sampler(timesteps=(1000, 750, 500, 250), shift=pipe.pipeline.sampler.shift)
    assert steps == pytest.approx(sampler.model_timesteps[:-1].tolist())


def test_callbacks_see_each_pass_and_may_change_it(pipe: Any) -> None:
    seen = []

    def callback(of: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert of is pipe
        seen.append((step, tuple(tensors["latents"].shape)))
        return tensors

    plain = pipe(PROMPT, num_frames=17, generator=generator(), output_type="latent").frames
    watched = pipe(PROMPT, num_frames=17, generator=generator(), output_type="latent", callback_on_step_end=callback).frames
    assert torch.equal(plain, watched)
    _, channels, _, height, width = plain.shape
    assert seen == [(step, (1, channels, 3, height, width)) for step in range(4)], "two chunks of two passes"

    def zero(of: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])}

    changed = pipe(PROMPT, num_frames=9, generator=generator(), output_type="latent", callback_on_step_end=zero).frames
    assert (changed == 0).all()


def test_a_callback_may_end_the_video(pipe: Any) -> None:
    def stop(of: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> None:
        of._interrupt = of._interrupt or step == 2

    frames = pipe(PROMPT, num_frames=1000, generator=generator(), callback_on_step_end=stop).frames
    assert pipe.interrupt and (np.round(frames[0] * 255) == expected(pipe, 21).numpy()).all(), "the chunk in hand is finished"
    assert pipe(PROMPT, num_frames=10, generator=generator()).frames.shape[1] == 10, "the next video is whole"


def test_videos_are_exported_as_those_of_diffusers(pipe: Any, tmp_path: Path) -> None:
    from diffusers.utils import export_to_gif

    images = pipe(PROMPT, num_frames=3, output_type="pil").frames[0]
    export_to_gif(images, str(tmp_path / "video.gif"))
    assert (tmp_path / "video.gif").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 5.0}, "guidance_scale is 5.0; expected 1"),
        ({"output_type": "mp4"}, "output_type is 'mp4'"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"height": 33}, "33 x 96 pixels do not divide"),
        ({"generator": [generator(), generator()]}, "2 generators for 1 prompts"),
    ],
)
def test_what_it_cannot_do_is_refused(pipe: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(lolrt.Error, match=message):
        pipe(PROMPT, **{"num_frames": 1, **options})
