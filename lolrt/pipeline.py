"""Pipelines: a whole model, text encoder, DiT and VAE, loaded together to make streams."""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Iterable, Set
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lolrt import _core
from lolrt.checkpoint import ModelFiles, find_files, load_dit, load_taehv, load_vae
from lolrt.checkpoint.fit import check_parts
from lolrt.checkpoint.folder import WAN_SETTINGS
from lolrt.checkpoint.lora import LoRAFiles
from lolrt.engine.kv_window import Window
from lolrt.engine.sampler import Sampler
from lolrt.engine.scheduler import RoundRobin, Scheduler
from lolrt.errors import Error, check_pixels
from lolrt.models.dit import CausalDiT, DiTConfig, LinearChoice
from lolrt.models.vae.codec import Codec, CodecConfig, State
from lolrt.models.vae.tiles import Tiled
from lolrt.ops.device import upload, usable
from lolrt.ops.int8 import check_int8
from lolrt.positions.rope import Rope
from lolrt.session.config import StreamConfig, from_plain
from lolrt.session.snapshot import Snapshot
from lolrt.session.stream import LatentStream, Stream
from lolrt.session.stream_engine import StreamEngine
from lolrt.text.embeddings import cache_folder
from lolrt.text.encoder import TextEncoder, VocabularyEncoder
from lolrt.text.umt5 import CachedUMT5

# The fields of `Window` that a model's settings may set: values of its training.
WINDOW_SETTINGS = ("chunk_frames",)

VAEChoice = Literal["full", "tiny", "light"]

MODELS = Path(__file__).parent / "_embedded"


def embedded_models() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.parent.name for path in MODELS.glob("*/model.json"))


def load(
    model: str | Path | ModelFiles,
    dtype: torch.dtype | None = None,
    *,
    vae: VAEChoice = "full",
    vae_tile: int | None = None,
    text: TextEncoder | None = None,
    lora: LoRAFiles | None = None,
    group: str | None = None,
    device: str | torch.device = "cpu",
    linear: LinearChoice = "full",
    mapped: bool = False,
) -> Pipeline:
    """Loads a pipeline. model: the name of an embedded model; a folder, file or TOML file with a model's parts (docs/checkpoints.md); or
    the result of `files_of`.

    dtype: torch.bfloat16 or torch.float32, for all weights and activations. The default is bfloat16 on CUDA and on CPUs that can multiply
    it, and float32 on others, where it is several times as fast. vae: "full"; "tiny" for the model's TAEHV, which is many times as fast
    and less exact; or "light" if this TAEHV is LightX2V's LightTAE, which its tensors do not show. vae_tile: the side in pixels of the
    tiles that the VAE works on one after another; by default the whole picture at once. text: the text encoder, by default the model's
    own; it runs on the CPU. lora, group: as in `lolrt.load_dit`. device: the device of the DiT and the VAE, "cpu" or "cuda" ("cuda:1").
    linear: "int8" computes the linear layers of the DiT's blocks with weights and inputs of 8 bits, which is less exact, on
    CPUs with VNNI; docs/cpu.md has errors and times. mapped: use the DiT's weights in place, as they are in the file, where they are of
    `dtype`: nothing is copied, and processes share the memory; on the CPU. The file must not be written, or the stream ends with an error.
    Raises `lolrt.Error` when there is no such model, a part of it is missing, or the device cannot be used, and `lolrt.CheckpointError`
    when its files are invalid.
    """
    dtype = dtype or preferred_dtype(device)
    usable_device = usable(device, dtype)
    if linear == "int8":
        check_int8(usable_device)
    files = files_of(model, {"dit", "vae" if vae == "full" else "taehv", *(() if text else ("text_encoder",))}, group)
    text = text or load_text(files)
    codec: Codec
    if vae == "full":
        codec = load_vae(files, dtype=dtype, device=usable_device)
    else:
        codec = load_taehv(files, dtype, usable_device, raw_latents=vae == "light")
    for warning in files.warnings:
        warnings.warn(warning, stacklevel=2)
    settings = {**WAN_SETTINGS, **files.settings}
    dit = load_dit(files, dtype, lora, device=usable_device, linear=linear, mapped=mapped)
    check_size(settings["height"], settings["width"], codec.config, dit.config)
    return Pipeline(
        name=settings.get("name", files.source.stem),
        dit=dit,
        vae=codec if vae_tile is None else Tiled(codec, vae_tile),
        encode_text=text,
        sampler=sampler_of(settings, files.source),
        window=window_of(settings, files.source),
        rope=rope_of(settings, files.source),
        fps=settings["fps"],
        height=settings["height"],
        width=settings["width"],
        example_prompts=tuple(settings["example_prompts"]),
    )


def check_size(height: int, width: int, vae: CodecConfig, dit: DiTConfig) -> None:
    """Raises `lolrt.Error` unless video of height x width pixels divides into the VAE's latent pixels, and these into the DiT's patches."""
    sides = [vae.spatial_factor * patch for patch in dit.patch_size[1:]]
    if height % sides[0] or width % sides[1]:
        fits = " x ".join(str(max(pixels // side, 1) * side) for pixels, side in zip((height, width), sides, strict=True))
        raise Error(f"{height} x {width} pixels do not divide into patches of {sides[0]} x {sides[1]} pixels; {fits} would fit")


def preferred_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """The dtype in which models are fastest on the device, as far as it was measured: on ARM it was not."""
    return torch.bfloat16 if str(device) != "cpu" or _core.isa() in ("amx", "avx512bf16") else torch.float32


def load_text(model: str | Path | ModelFiles) -> TextEncoder:
    """A model's text encoder; errors as in `load`.

    UMT5 is loaded only while it encodes a prompt that is not in the cache. If you encode before the rest of the model is loaded, the two
    need not fit into memory together.
    """
    files = files_of(model, {"text_encoder"})
    if files.vocabulary is not None:
        return VocabularyEncoder(files.vocabulary)
    return CachedUMT5(files, files.tokenizer, cache_folder())


def files_of(model: str | Path | ModelFiles, needed: Set[str], group: str | None = None) -> ModelFiles:
    """The files of a model. Checks that the `needed` parts exist and belong together. model, group and errors: as in `load`."""
    if isinstance(model, ModelFiles):
        files = find_files(model, group)
    else:
        path = MODELS / model if model in embedded_models() else Path(model)
        if not os.path.exists(path):
            raise Error(f"no model {str(model)!r}: it is neither an embedded model ({', '.join(embedded_models())}) nor a path that exists")
        files = find_files(path, group)
    there = {"dit": files.dit, "vae": files.vae, "taehv": files.taehv, "text_encoder": files.text_encoder or files.vocabulary}
    missing = [name for name, file in there.items() if name in needed and file is None]
    if missing:
        raise Error(
            f"{files.source} is not a whole pipeline: it lacks {', '.join(missing)}; name the files in a .toml file, a line such as "
            f'{missing[0]} = "PATH" for each, or load its DiT with lolrt.load_dit(path) and stream with lolrt.LatentStream'
        )
    check_parts(files, needed)
    return files


def window_of(settings: dict[str, Any], source: Path) -> Window:
    """The window in a model's settings."""
    try:
        return replace(Window(), **{name: settings[name] for name in WINDOW_SETTINGS if name in settings})
    except Error as error:
        raise Error(f"{source}: {error}") from None


def rope_of(settings: dict[str, Any], source: Path) -> Rope:
    """The positions in a model's settings."""
    try:
        return from_plain(Rope, settings.get("rope", {}))
    except (Error, TypeError, ValueError) as error:
        raise Error(f"{source}: rope is {str(settings['rope'])[:200]}, which makes no sense: {error}") from None


def sampler_of(settings: dict[str, Any], source: Path) -> Sampler:
    """The sampler in a model's settings."""
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings["sampler"].items()}
    unknown = values.keys() - {field.name for field in fields(Sampler)}
    if unknown:
        raise Error(f"{source} has unknown sampler settings: {', '.join(sorted(unknown))}; a newer lolrt may know them")
    try:
        return Sampler(**values)
    except Error as error:
        raise Error(f"{source}: sampler: {error}") from None
    except TypeError:
        raise Error(f"{source}: sampler is {str(values)[:200]}, of which something is no number that should be one") from None


class Pipeline:
    """Makes streams from prompts. height, width: the size of the video, in pixels. fps: the frame rate that the model was trained at."""

    def __init__(
        self,
        *,
        name: str,
        dit: CausalDiT,
        vae: Codec,
        encode_text: TextEncoder,
        sampler: Sampler,
        fps: int,
        height: int,
        width: int,
        window: Window = Window(),
        rope: Rope = Rope(),
        example_prompts: tuple[str, ...] = (),
    ) -> None:
        self.name, self.dit, self.vae, self.encode_text = name, dit, vae, encode_text
        self.sampler, self.window, self.rope = sampler, window, rope
        self.fps, self.height, self.width, self.example_prompts = fps, height, width, example_prompts

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles with torch.save: weights of one file share one memory, which pickle alone would write again for each of them."""
        whole = io.BytesIO()
        torch.save(self.__dict__, whole)
        return _unpickled, (type(self), whole.getvalue())

    def stream(
        self,
        prompt: str,
        *,
        seed: int = 0,
        rope: Rope | None = None,
        window: Window | None = None,
        sampler: Sampler | None = None,
        probe: bool = False,
        start: Tensor | None = None,
        start_frame: int = 0,
        kv_dtype: torch.dtype | None = None,
    ) -> Stream:
        """An endless iterator of `lolrt.Chunk`; options and errors as in `latent_stream`."""
        latents = self.latent_stream(
            prompt, seed=seed, rope=rope, window=window, sampler=sampler, probe=probe, start=start, start_frame=start_frame,
            kv_dtype=kv_dtype,
        )  # fmt: skip
        return Stream(latents, self.vae, self.encode_text, prompt)

    def latent_stream(
        self,
        prompt: str,
        *,
        seed: int = 0,
        rope: Rope | None = None,
        window: Window | None = None,
        sampler: Sampler | None = None,
        probe: bool = False,
        start: Tensor | None = None,
        start_frame: int = 0,
        kv_dtype: torch.dtype | None = None,
    ) -> LatentStream:
        """An endless iterator of `lolrt.LatentChunk`, not decoded.

        seed: the seed of the noise, 0 .. 2^64 - 1. rope, window and sampler: by default the model's own. probe: whether to measure the
        attention mass of each chunk. start: latents that the stream begins with and goes on from, see `encode_video`. kv_dtype: the dtype
        of the KV cache's pages, by default the model's; torch.int8 on the CPU and torch.float8_e4m3fn on CUDA take half the memory of
        bfloat16 and are less exact. Raises `lolrt.PromptError` for a prompt that the text encoder cannot encode.
        """
        height, width = self.latent_size
        return LatentStream(
            self.dit, self.encode_text(prompt), height, width,
            seed=seed, rope=rope or self.rope, window=window or self.window, sampler=sampler or self.sampler,
            start=start, start_frame=start_frame, probe=probe, kv_dtype=kv_dtype,
        )  # fmt: skip

    @property
    def latent_size(self) -> tuple[int, int]:
        """The height and width of a latent frame."""
        factor = self.vae.config.spatial_factor
        return self.height // factor, self.width // factor

    def engine(
        self,
        max_sessions: int,
        *,
        memory: int | None = None,
        window: Window | None = None,
        scheduler: Scheduler = RoundRobin(),
        kv_dtype: torch.dtype | None = None,
        batch_invariant: bool = False,
    ) -> StreamEngine:
        """An engine for many streams at the same time: `engine.open(prompt, ...)`, then `for stream, chunk in engine`.

        max_sessions: the most streams that are open at once. window: the default window of a stream; by default the model's own. memory:
        the bytes for all pages and prompts; by default enough for `max_sessions` streams with `window`. scheduler: chooses the streams
        that take part in a pass. kv_dtype: as in `latent_stream`. batch_invariant: as in `lolrt.Engine`. Raises `lolrt.Error` when there
        is not enough memory for one stream.
        """
        return StreamEngine(
            self.dit, self.vae, self.encode_text, self.sampler, *self.latent_size, self.fps, max_sessions=max_sessions, memory=memory,
            window=window or self.window, rope=self.rope, scheduler=scheduler, kv_dtype=kv_dtype, batch_invariant=batch_invariant,
        )  # fmt: skip

    def resume(self, path: str | Path, *, lora: LoRAFiles | None = None) -> Stream:
        """Goes on from a snapshot that `Stream.save` wrote, with its prompt, seed and policies.

        lora: the adapters of a stream that was saved after `set_lora`, with the same names as there; by default those of this pipeline.
        Raises `lolrt.CheckpointError` when the file is not a snapshot or is damaged, and `lolrt.Error` for a snapshot with another model,
        adapters, dtype, device, size or VAE; the message says what differs.
        """
        snapshot = Snapshot.read(path)
        config = from_plain(StreamConfig, snapshot.config)
        height, width = self.latent_size
        kv_dtype = getattr(torch, snapshot.model.get("pages", ""), None)
        latents = LatentStream(
            self.dit, snapshot.tensors["prompt_embeds"], height, width,
            seed=config.seed or 0, rope=config.rope, window=config.window, sampler=config.sampler, start_frame=config.start_frame,
            probe=config.probe, kv_dtype=kv_dtype if kv_dtype in (torch.int8, torch.float8_e4m3fn) else None,
        )  # fmt: skip
        if lora is not None:
            latents.set_lora(lora)
        stream = Stream(latents, self.vae, self.encode_text)
        stream.restore(snapshot)
        return stream

    def encode_video(self, frames: Iterable[Tensor]) -> Tensor:
        """Encodes video frames, uint8 [height, width, 3] RGB each, to latents that a stream can start from: normalised, [n, channels, h,
        w].

        The first frame alone makes one latent frame (so an image makes one); after it, every `temporal_factor` frames make one. Remaining
        frames at the end are dropped. Frames are taken from the iterable as they are needed.
        """
        coming, size = iter(frames), 1
        state: State = {}
        latents = []
        while len(batch := list(itertools.islice(coming, size))) == size:
            for frame in batch:
                check_pixels(frame, self.height, self.width, 3)
            video = upload(torch.stack(batch), self.dit.device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            latents.append(self.vae.encode(video, state))
            size = self.vae.config.temporal_factor
        if not latents:
            raise Error("there is no frame to start from")
        return torch.cat(latents)


def _unpickled(kind: type[Pipeline], whole: bytes) -> Pipeline:
    pipe = kind.__new__(kind)
    pipe.__dict__ = torch.load(io.BytesIO(whole), weights_only=False)  # it is part of a pickle, which the caller must trust already
    return pipe
