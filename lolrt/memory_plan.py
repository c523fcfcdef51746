"""Computes the memory that a stream will allocate, before it allocates anything: runs the code of a chunk on tensors without memory and
counts their bytes.

The plan counts tensors. It does not include the process and its libraries (a few hundred MiB), and the internal buffers of the libraries'
matrix products.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lolrt import _core, ops
from lolrt.checkpoint import ModelFiles, read_component, unfilled
from lolrt.checkpoint.folder import WAN_SETTINGS
from lolrt.checkpoint.shapes import dit_config, taehv_config, vae_config
from lolrt.engine.engine import Engine
from lolrt.engine.kv_window import Window
from lolrt.engine.sampler import Sampler
from lolrt.errors import Error
from lolrt.models.dit import CausalDiT, DiTConfig, LinearChoice
from lolrt.models.pass_inputs import PassInputs, join
from lolrt.models.vae.codec import Codec, State
from lolrt.models.vae.layers import VAEConfig
from lolrt.models.vae.taehv import TAEHV, TAEHVConfig
from lolrt.models.vae.tiles import Tiled
from lolrt.models.vae.wan import CausalVAE
from lolrt.ops import planned_for_cuda
from lolrt.pipeline import VAEChoice, check_size, files_of, rope_of, sampler_of
from lolrt.positions.rope import Rope
from lolrt.session.config import StreamConfig
from lolrt.session.session import Session
from lolrt.text.umt5 import encoder_dtype


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of a stream in bytes, by the names of the parts."""

    weights: dict[str, int]
    """Allocated as long as the model is loaded."""
    stream: dict[str, int]
    """Allocated as long as the stream exists, from its first chunk on."""
    transient: dict[str, int]
    """The peak of each stage while it runs."""
    before: dict[str, int] = field(default_factory=dict)
    """The peak of each stage before the stream. They run one after the other, and are freed when the stream begins."""
    at_a_time: bool = False
    """Whether all transient parts can exist at the same time, as on CUDA, where a chunk is decoded while the next one is denoised;
    otherwise they come one after the other."""

    @property
    def total(self) -> int:
        """The largest total at any time."""
        transient = (sum if self.at_a_time else max)(self.transient.values())
        return max(sum(self.weights.values()) + sum(self.stream.values()) + transient, *self.before.values(), 0)


class LiveBytes(TorchDispatchMode):
    """A context that counts the bytes of the tensors that are made inside and still exist, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _storage(tensor) not in known:  # not a view, and not changed in place
                self._count(tensor)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _storage(tensor)
        if key in self._counted:
            return
        self._counted.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, count: int) -> None:
        self._counted.discard(key)
        self.now -= count

    def restart(self) -> int:
        """Starts a new peak. Returns the bytes that exist now."""
        self.peak = self.now
        return self.now


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@dataclass(frozen=True)
class CodecMemory:
    """The memory of a codec on a stream in bytes, latent frame by latent frame, in one direction."""

    weights: int
    packed: int
    """A second copy of the weights, in the layout of the kernels."""
    carried: int
    """The state that is kept between calls."""
    remembered: int
    """The latents from which this state can be made again."""
    transient: int
    """The additional peak while a call runs."""


def codec_memory(
    config: VAEConfig | TAEHVConfig,
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    frames: int = 1,
    encoding: bool = False,
    tile: int | None = None,
) -> CodecMemory:
    """The memory for decoding `frames` latent frames per call to 8-bit video of height x width pixels; or for encoding the video of so
    many latent frames.

    tile: as in `lolrt.models.vae.tiles.Tiled`. Raises `lolrt.Error` when the size or the tile does not fit.
    """
    factor = config.spatial_factor
    rows, columns = height // factor, width // factor
    if height % factor or width % factor:
        raise Error(f"{height} x {width} pixels do not divide into latent pixels of {factor} x {factor}")
    with unfilled():
        whole: CausalVAE | TAEHV = CausalVAE(config) if isinstance(config, VAEConfig) else TAEHV(config)
    whole.to(dtype)
    codec: Codec = whole if tile is None else Tiled(whole, tile)
    state: State = {}
    with torch.inference_mode(), torch.device("meta"), LiveBytes() as live:
        if encoding:
            clips = [torch.empty(count, 3, height, width) for count in (1, frames * config.temporal_factor)]
        else:
            latents = torch.empty(frames, config.z_dim, rows, columns)
        before = live.restart()
        for call in range(3):  # the first call differs, the second is the first of its size, and the third packs nothing
            if encoding:
                codec.encode(clips[min(call, 1)], state)
            else:
                video = codec.decode(latents, state)
                video.add(1).mul_(127.5).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
                del video
        carried = _bytes(state.values())
        packed = live.now - before - carried
        remembered = 0 if encoding else -(-codec.memory_frames // frames) * _bytes([latents])
        return CodecMemory(_bytes(whole.parameters()), packed, carried, remembered, live.peak - before - carried - packed)


def plan(
    dit: DiTConfig,
    vae: VAEConfig | TAEHVConfig,
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    window: Window = Window(),
    passes: int = 4,
    vae_tile: int | None = None,
    text_encoder_bytes: int = 0,
    device: str = "cpu",
    kv_dtype: torch.dtype | None = None,
    rope: Rope = Rope(),
    sessions: int = 1,
    linear: LinearChoice = "full",
) -> MemoryPlan:
    """The plan for `sessions` streams of video of height x width pixels in one engine. passes: the number of passes of the sampler.
    vae_tile: as in `lolrt.load`. text_encoder_bytes: the size of the weights of an encoder that is freed before the model is loaded.
    device: "cpu" or "cuda"; the machine need not have a GPU. kv_dtype: as in `lolrt.LatentStream`. linear: as in `lolrt.load`.

    On CUDA it counts the memory of the device with the probe on, without the memory that CUDA and its libraries use themselves.
    Raises `lolrt.Error` when the size does not fit the model, or kv_dtype the device.
    """
    on_cuda = device == "cuda"
    check_size(height, width, vae, dit)
    with planned_for_cuda() if on_cuda else nullcontext():
        decoding = codec_memory(vae, height, width, dtype=dtype, frames=window.chunk_frames, tile=vae_tile)
        encoding = codec_memory(vae, height, width, dtype=dtype, encoding=True, tile=vae_tile)
    rows, columns = height // vae.spatial_factor, width // vae.spatial_factor
    with unfilled():
        model = CausalDiT(dit, linear).to(dtype)
    tokens = model.tokens_per_frame(rows, columns)
    with LiveBytes() as live:
        model.prepare()
        packed = live.now if linear == "int8" else 0  # otherwise they are moved, and there is no second copy
    stream: dict[str, int] = {}
    transient: dict[str, int] = {}
    # The engine and its sessions are made by the same code as for a real stream, with a model without memory. So the plan counts exactly
    # what is allocated.
    with planned_for_cuda() if on_cuda else nullcontext(), torch.inference_mode(), LiveBytes() as live:
        engine = Engine(model, rows, columns, pages=sessions * window.pool_pages, sessions=sessions, kv_dtype=kv_dtype)
        prompt = torch.empty(dit.text_len, dit.text_dim, device=model.device)
        config = StreamConfig(rope=rope, window=window, sampler=Sampler(timesteps=tuple(range(1000, 1000 - passes, -1))))
        opened = [Session(engine, torch.zeros(1, dit.text_dim), config) for _ in range(sessions)]
        session = opened[0]
        stream["keys and values of the text"] = sessions * engine.session_bytes
        stream["modulations"] = _bytes(session.model.modulations(config.sampler.model_timesteps))
        stream[f"{sessions * window.pool_pages} pages of {dit.num_layers} layers"] = engine.pool.pages.nbytes
        stream["rotation tables"] = sum(one.rotation.nbytes for one in opened) + engine.spatial_rotation(rope.theta).nbytes
        stream["latents of the pages"] = engine.latents.nbytes

        before = live.restart()
        model.encode_text(prompt, out=session.text)
        transient["a new prompt"] = live.peak - before

        size = window.chunk_frames
        samples = [torch.empty(size, dit.in_dim, rows, columns, device=model.device) for _ in opened]
        before = live.restart()
        joined = join([_pass_over_a_full_window(one, sample) for one, sample in zip(opened, samples, strict=True)])
        model(joined)
        transient["a pass of the DiT"] = live.peak - before
        if on_cuda and sessions == 1:  # the graphs' memory pool, and the buffers that are copied into it and out of it
            copied = [x for x in (joined.sample, joined.modulation, joined.mass) if x is not None]
            stream["CUDA graphs' own memory"] = live.peak - before + _bytes(copied)
    transient["decoding of a chunk"] = decoding.transient
    stream["VAE's past frames"] = sessions * decoding.carried
    stream["latents that were decoded"] = sessions * decoding.remembered
    stored = engine.pool.pages.dtype
    stream["workspace of attention"] = _cuda_workspace(dit, window, tokens) if on_cuda else _workspace(dit, window, tokens, dtype, stored)
    weights = {
        "DiT": _bytes(model.parameters()),
        "DiT's linear layers, packed": packed,
        "VAE": decoding.weights,
        "VAE's decoder, packed": decoding.packed,
    }
    loaded = weights["DiT"] + packed + encoding.weights
    before_stream = {
        "text encoder": text_encoder_bytes,
        "encoding of a start": loaded + encoding.packed + encoding.carried + encoding.transient,
    }
    return MemoryPlan(weights, stream, transient, before_stream, at_a_time=on_cuda)


def _pass_over_a_full_window(session: Session, sample: Tensor) -> PassInputs:
    """A pass with the probe, as soon as the window is full and no frame has left it."""
    window, config = session.config.window, session.model.dit.config
    size, first_frame = window.chunk_frames, 0
    for end in range(window.pages % size or size, window.pages + 1, size):
        pages = session.window.advance(first_frame, end - first_frame)
        first_frame = end
    mass = torch.empty(config.num_layers, 1, window.pages + window.recall_frames, size, config.num_heads, device=sample.device)
    return session.pass_inputs(sample, session.modulations[0], pages, *session.positions(pages), mass)


def plan_model(
    model: str | Path | ModelFiles,
    size: tuple[int, int] | None,
    dtype: torch.dtype,
    window: Window,
    *,
    vae: VAEChoice = "full",
    vae_tile: int | None = None,
    device: str = "cpu",
    kv_dtype: torch.dtype | None = None,
    linear: LinearChoice = "full",
) -> tuple[MemoryPlan, tuple[int, int]]:
    """The plan for a model that is not loaded, and the size that it applies to: height and width in pixels, by default the model's own.

    model, vae, vae_tile, linear: as in `lolrt.load`. device, kv_dtype: as in `plan`; a text encoder runs on the CPU. Raises the errors of
    `lolrt.load` and `plan`.
    """
    files = files_of(model, {"dit", "vae" if vae == "full" else "taehv"})
    settings = {**WAN_SETTINGS, **files.settings}
    height, width = size or (settings["height"], settings["width"])
    config: VAEConfig | TAEHVConfig = (
        vae_config(read_component(files, "vae")) if vae == "full" else taehv_config(read_component(files, "taehv"))
    )
    encoder = read_component(files, "text_encoder") if files.text_encoder and device == "cpu" else None
    encoder_bytes = encoder_dtype(encoder).itemsize * sum(found.numel() for found in encoder.tensors.values()) if encoder else 0
    memory = plan(
        dit_config(read_component(files, "dit")), config, height, width, dtype=dtype, window=window,
        passes=len(sampler_of(settings, files.source).timesteps), vae_tile=vae_tile, text_encoder_bytes=encoder_bytes, device=device,
        kv_dtype=kv_dtype, rope=rope_of(settings, files.source), linear=linear,
    )  # fmt: skip
    return memory, (height, width)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _workspace(config: DiTConfig, window: Window, tokens: int, dtype: torch.dtype, stored: torch.dtype) -> int:
    """The bytes of the kernels' workspace. The kernels compute it for tensors whose memory is never used."""
    shape = (window.chunk_frames, tokens, config.num_heads, config.head_dim)
    q = torch.empty(shape, dtype=dtype)
    attended = window.pages + window.recall_frames
    pages = torch.empty(attended, ops.page_elements(stored, tokens, config.num_heads, config.head_dim), dtype=stored)
    rotation = torch.zeros(attended, window.chunk_frames, config.num_heads, config.temporal_pairs, 2)
    table = torch.arange(attended, dtype=torch.int32)
    return _core.frame_attention_workspace(q, pages, table, tokens, rotation, None, torch.empty_like(q), None)


# More than any GPU has; the largest so far have 188.
MOST_MULTIPROCESSORS = 256


def _cuda_workspace(config: DiTConfig, window: Window, tokens: int) -> int:
    """The bytes of the workspace, by the formula of csrc/cuda/frame_attention.cu. It is repeated here because the planning machine may
    lack the CUDA part of the library.

    The probe needs the maximum and the sum, float32, for each row of queries, each head and each page. A tile of 128 rows that is split
    needs the same, and the output, for each part. The number of parts depends on the GPU's multiprocessors; without a GPU the largest
    number is assumed.
    """
    pages, rows = window.pages + window.recall_frames, window.chunk_frames * tokens
    there = torch.cuda.is_available()
    counts = [torch.cuda.get_device_properties().multi_processor_count] if there else range(1, MOST_MULTIPROCESSORS + 1)
    tiles = -(-rows // 128) * config.num_heads
    parts = max(_parts_of_tiles(tiles, pages, tokens, blocks * count) for count in counts for blocks in (1, 2))
    return 8 * config.num_heads * pages * rows + 4 * parts * 128 * (config.head_dim + 2)


def _parts_of_tiles(tiles: int, pages: int, page_tokens: int, slots: int) -> int:
    """Parts of all tiles that are cut where so many blocks run at once, as csrc/cuda/work_split.cuh deals them out."""
    cut = tiles % slots

    def most(part: int) -> int:
        """Pages of the slot that does most, when all parts but the last of a tile are so many."""
        rounds, busy = divmod(cut * (pages // part), slots)
        rest = pages % part
        small, beside = cut if rest else 0, (slots - busy) * (part // (rest or 1)) if busy else 0
        return (rounds + (busy > 0)) * part + -(-max(small - beside, 0) // slots) * rest

    best = min((part for part in range(pages, 0, -1) if part == pages or part * page_tokens >= 512), key=lambda part: (most(part), -part))
    return cut * -(-pages // best) if best < pages else 0
