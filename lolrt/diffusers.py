"""A pipeline with the calling conventions of diffusers, for programs written for its `WanPipeline`.

    from lolrt.diffusers import LolPipeline

    pipe = LolPipeline.from_pretrained("PATH", torch_dtype=torch.bfloat16)
    video = pipe("a red balloon over the hills", num_frames=161, generator=torch.Generator().manual_seed(7)).frames[0]

A video may have any length, but it is in memory as a whole when it is returned. `lolrt.load(...).stream(...)` returns it chunk by chunk.
Needs the package diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lolrt.engine.kv_window import Window
from lolrt.engine.noise import NoiseSource
from lolrt.engine.sampler import TRAIN_TIMESTEPS, Sampler
from lolrt.errors import Error
from lolrt.pipeline import Pipeline, check_size, load
from lolrt.positions.rope import Rope
from lolrt.session.stream import LatentStream, Stream

try:
    from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
except ImportError as error:
    raise ImportError("lolrt.diffusers needs the package diffusers: pip install diffusers") from error

OutputType = Literal["np", "pt", "pil", "latent"]
# (pipeline, step, timestep, {"latents": Tensor}) -> the dictionary, in which the callback may have replaced the latents
Callback = Callable[[Any, int, Any, dict[str, Tensor]], "dict[str, Tensor] | None"]


@dataclass(frozen=True)
class WatchedSampler(Sampler):
    """A sampler that passes the latents of each pass, [frames, channels, height, width], to `watch`, and goes on with the returned ones."""

    watch: Callable[[Tensor, float], Tensor] = lambda latents, timestep: latents

    def step(self, sample: Tensor, k: int, velocity: Tensor, noise: NoiseSource, first_frame: int) -> Tensor:
        latents = super().step(sample, k, velocity, noise, first_frame)
        return self.watch(latents, float(self.model_timesteps[k]))


class LolPipeline:
    """Makes whole videos. The attribute `pipeline` is the underlying `lolrt.Pipeline`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._interrupt = False

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, torch_dtype: torch.dtype | None = None, device: str = "cpu", **options: Any
    ) -> LolPipeline:
        """Loads every model that `lolrt.load` can load, also diffusers folders. Nothing is downloaded. options and errors: those of
        `lolrt.load`."""
        return cls(load(pretrained_model_name_or_path, torch_dtype, device=device, **options))

    @property
    def interrupt(self) -> bool:
        """Whether a callback has ended the video, with `pipe._interrupt = True`. The video then ends with the current chunk."""
        return self._interrupt

    def __call__(
        self,
        prompt: str | Sequence[str],
        height: int | None = None,
        width: int | None = None,
        num_frames: int = 81,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "np",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        *,
        rope: Rope | None = None,
        window: Window | None = None,
    ) -> WanPipelineOutput | tuple[Any]:
        """Makes videos of one or more prompts, one after another.

        height, width: pixels, by default the model's. num_frames: video frames. num_inference_steps: denoise passes of a chunk, evenly
        spaced, by default the model's own. guidance_scale: must be 1; the models are distilled, and have no guidance. generator: one, or
        one per prompt; the seed of the noise is drawn from it. By default torch's global generator. output_type: "np" float32 [prompts,
        frames, height, width, 3]
        in [0, 1]; "pt" the same as a tensor [prompts, frames, 3, height, width]; "pil" lists of images; "latent" the normalised latents
        [prompts, channels, latent frames, height, width], not decoded. callback_on_step_end: called after each denoise pass with the
        pipeline, the number of the pass in the video, its timestep and {"latents": [1, channels, frames, height, width]}, those of its
        chunk, and may return others in their place. rope, window: by default the model's.
        Raises `lolrt.Error` for what the model cannot do.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        generators = list(generator) if isinstance(generator, Sequence) else [generator] * len(prompts)
        if len(generators) != len(prompts):
            raise Error(f"{len(generators)} generators for {len(prompts)} prompts; expected one, or one a prompt")
        if guidance_scale != 1:
            raise Error(f"guidance_scale is {guidance_scale}; expected 1: causal Wan models are distilled, and run without guidance")
        if output_type not in ("np", "pt", "pil", "latent"):
            raise Error(f'output_type is {output_type!r}; expected "np", "pt", "pil" or "latent"')
        if num_frames < 1:
            raise Error(f"num_frames is {num_frames}; expected at least 1")
        self._interrupt = False
        videos = []
        for text, one in zip(prompts, generators, strict=True):
            stream = self._stream(text, (height, width), num_inference_steps, one, callback_on_step_end, rope, window)
            videos.append(self._latents(stream, num_frames) if output_type == "latent" else self._frames(stream, num_frames))
        whole = _as(output_type, videos)
        return WanPipelineOutput(frames=whole) if return_dict else (whole,)

    def _stream(
        self,
        prompt: str,
        size: tuple[int | None, int | None],
        steps: int | None,
        generator: torch.Generator | None,
        callback: Callback | None,
        rope: Rope | None,
        window: Window | None,
    ) -> Stream:
        pipe = self.pipeline
        height, width = size[0] or pipe.height, size[1] or pipe.width
        check_size(height, width, pipe.vae.config, pipe.dit.config)
        factor = pipe.vae.config.spatial_factor
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu" if generator is None else generator.device))
        latents = LatentStream(
            pipe.dit, pipe.encode_text(prompt), height // factor, width // factor,
            seed=seed, rope=rope or pipe.rope, window=window or pipe.window, sampler=self._sampler(steps, callback),
        )  # fmt: skip
        return Stream(latents, pipe.vae, pipe.encode_text, prompt)

    def _sampler(self, steps: int | None, callback: Callback | None) -> Sampler:
        settings = {field.name: getattr(self.pipeline.sampler, field.name) for field in fields(Sampler)}
        if steps is not None and steps != len(settings["timesteps"]):
            if not 1 <= steps <= TRAIN_TIMESTEPS:
                raise Error(f"num_inference_steps is {steps}; expected 1 to {TRAIN_TIMESTEPS}")
            settings |= {"timesteps": tuple(TRAIN_TIMESTEPS - TRAIN_TIMESTEPS * i // steps for i in range(steps)), "first_timesteps": ()}
        if callback is None:
            return Sampler(**settings)
        step = 0

        def watch(latents: Tensor, timestep: float) -> Tensor:
            nonlocal step
            answer = callback(self, step, timestep, {"latents": latents.transpose(0, 1)[None]})
            step += 1
            return latents if answer is None else answer["latents"][0].transpose(0, 1).contiguous()

        return WatchedSampler(**settings, watch=watch)

    def _latents(self, stream: Stream, frames: int) -> Tensor:
        """The latents [channels, latent frames, height, width] of these video frames."""
        wanted = 1 + -(-(frames - 1) // self.pipeline.vae.config.temporal_factor)
        return torch.cat(list(self._until(wanted, (chunk.latents for chunk in stream.latent_stream)))).transpose(0, 1).cpu()

    def _frames(self, stream: Stream, frames: int) -> Tensor:
        """The video frames, uint8 [frames, height, width, 3]."""
        return torch.cat(list(self._until(frames, (chunk.frames for chunk in stream))))

    def _until(self, wanted: int, coming: Iterator[Tensor]) -> Iterator[Tensor]:
        while wanted > 0 and not self._interrupt:
            piece = next(coming)[:wanted]
            wanted -= len(piece)
            yield piece


def _as(kind: OutputType, videos: list[Tensor]) -> Any:
    if kind == "latent":
        return torch.stack(videos)
    if kind == "pil":
        from PIL import Image

        return [[Image.fromarray(frame.numpy()) for frame in video] for video in videos]
    whole = torch.stack(videos).float() / 255
    return whole.numpy() if kind == "np" else whole.permute(0, 1, 4, 2, 3)
