"""Nodes for ComfyUI: a model, a stream of it with its prompts, and a sampler that makes the stream's next chunks each time the graph runs.

ComfyUI finds them through a folder in its custom_nodes, examples/comfyui. A stream is a value that keeps its state: as long as the inputs
of its node are the same, ComfyUI keeps it, and the next run goes on where the last one ended, without an end and in constant memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import lolrt
from lolrt.errors import Error
from lolrt.lab.policy import Policy
from lolrt.ops.device import usable
from lolrt.pipeline import Pipeline
from lolrt.session.script import ScriptedStream, parse_script

try:
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar
except ImportError as error:
    raise ImportError("lolrt.comfyui is loaded by ComfyUI: link examples/comfyui into its folder custom_nodes") from error

PREVIEW_PIXELS = 512
SCHEDULE = "0 a red balloon over the hills at noon\n0:06 a red balloon over the hills at night"


@dataclass
class Reel:
    """A stream that follows a schedule, and what is left of a run that was interrupted."""

    chunks: ScriptedStream
    ready: deque[Tensor] = field(default_factory=deque)
    """The frames of chunks that no run has passed on yet."""


class LoadModel:
    CATEGORY, FUNCTION = "lolrt", "load"
    RETURN_TYPES, RETURN_NAMES = ("LOLRT_MODEL",), ("model",)
    DESCRIPTION = "Loads a causal video model for endless streams."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        path = {"default": "tiny", "tooltip": "an embedded model, or the path of a folder, a file or a .toml file with the parts of one"}
        return {
            "required": {
                "model": ("STRING", path),
                "vae": (["full", "tiny", "light"], {"tooltip": "tiny: the model's TAEHV, fast and less exact; light: LightX2V's"}),
                "device": (["cpu", "cuda"],),
            }
        }

    def load(self, model: str, vae: Any, device: str) -> tuple[Pipeline]:
        return (lolrt.load(model, vae=vae, device=usable(device)),)


class BeginStream:
    CATEGORY, FUNCTION = "lolrt", "begin"
    RETURN_TYPES, RETURN_NAMES = ("LOLRT_STREAM",), ("stream",)
    DESCRIPTION = "Begins an endless stream. It is begun anew when one of these inputs changes."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        lines = {"default": SCHEDULE, "multiline": True, "tooltip": "lines of a time and the prompt that the video follows from then on"}
        policy = {"default": "", "tooltip": "fields of Rope, Window and SinkGate: sigma=0.8,sinks=3; empty: the model's own"}
        return {
            "required": {
                "model": ("LOLRT_MODEL",),
                "schedule": ("STRING", lines),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
                "policy": ("STRING", policy),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, schedule: str | None, policy: str | None) -> bool | str:
        """Of inputs that another node makes there is nothing to check yet; they are None."""
        try:
            if schedule is not None:
                parse_script(schedule, "schedule")
            if policy is not None:
                Policy.parse(policy)
        except Error as error:
            return str(error)
        return True

    def begin(self, model: Pipeline, schedule: str, seed: int, policy: str) -> tuple[Reel]:
        cues = parse_script(schedule, "schedule")
        for cue in cues[1:]:
            model.encode_text(cue.prompt)  # an error of a later prompt is told now
        chosen = Policy.parse(policy, model.window) if policy else None
        options: dict[str, Any] = {"rope": chosen.rope, "window": chosen.window} if chosen else {}
        return (Reel(ScriptedStream(model.stream(cues[0].prompt, seed=seed, **options), cues[1:], model.fps)),)


class NextChunks:
    CATEGORY, FUNCTION = "lolrt", "sample"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "FLOAT"), ("frames", "fps")
    DESCRIPTION = "Makes and decodes the next chunks of a stream, and shows each as it is made. The next run goes on after them."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        chunks = {"default": 4, "min": 1, "tooltip": "of 12 frames with Wan's VAE, the first of 9; 1 shows and passes on each at once"}
        return {"required": {"stream": ("LOLRT_STREAM",), "chunks": ("INT", chunks)}}

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> float:
        return float("nan")  # which equals nothing: ComfyUI runs the node each time

    def sample(self, stream: Reel, chunks: int) -> tuple[Tensor, float]:
        latents, ready = stream.chunks.stream.latent_stream, stream.ready
        progress = ProgressBar(100 * chunks)

        def passed(first_frame: int, done: int) -> None:
            sampler, first = latents.config.sampler, first_frame == latents.config.start_frame
            passes = len((first and sampler.first_timesteps) or sampler.timesteps) + 1
            progress.update_absolute(100 * len(ready) + min(100 * done // passes, 99))
            throw_exception_if_processing_interrupted()  # the next run goes on with this chunk

        latents.on_pass = passed
        while len(ready) < chunks:
            ready.append(next(stream.chunks).frames)
            picture = Image.fromarray(ready[-1][-1].numpy())
            # ComfyUI enlarges a smaller one, and may interrupt the run here as well.
            progress.update_absolute(100 * len(ready), preview=("JPEG", picture, min(max(picture.size), PREVIEW_PIXELS)))
        frames = torch.cat(list(islice(ready, chunks))).float() / 255
        for _ in range(chunks):
            ready.popleft()
        return frames, float(stream.chunks.fps)


NODE_CLASS_MAPPINGS = {"LolrtLoadModel": LoadModel, "LolrtBeginStream": BeginStream, "LolrtNextChunks": NextChunks}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LolrtLoadModel": "Load lolrt model",
    "LolrtBeginStream": "Begin endless stream",
    "LolrtNextChunks": "Next chunks of a stream",
}
