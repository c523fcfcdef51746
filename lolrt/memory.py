"""What a stream will allocate, before anything is: the code of a chunk run on tensors without memory, whose bytes are counted.

The plan counts tensors. What lies outside it: the process and its libraries (a few hundred MiB), and the packing buffers of the
matrix products inside them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lolrt import _core, ops
from lolrt.cache import KVCache, Window
from lolrt.checkpoint import read_component, unfilled
from lolrt.checkpoint.folder import WAN_SETTINGS
from lolrt.checkpoint.shapes import dit_config, vae_config
from lolrt.decoder import State
from lolrt.dit import CausalDiT, DiTConfig
from lolrt.errors import Error
from lolrt.pipeline import parts_of, sampler_of
from lolrt.vae import CausalVAE
from lolrt.vae_layers import VAEConfig
from lolrt.vae_stream import planned_for_cuda


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, each part by its name."""

    weights: dict[str, int]
    """As long as the model is loaded."""
    stream: dict[str, int]
    """As long as the stream goes on, from its first chunk on."""
    passing: dict[str, int]
    """At most, while something runs."""
    side_by_side: bool = False
    """Whether what passes can be there all at a time, as on CUDA, where a chunk is decoded while the next one is denoised; or one after the
    other."""

    @property
    def total(self) -> int:
        """The most that is allocated at any time."""
        passing = sum if self.side_by_side else max
        return sum(self.weights.values()) + sum(self.stream.values()) + passing(self.passing.values())


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made inside and are still there, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _storage(tensor) not in known:  # neither a view nor changed in place
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
        """Begins a new peak; returns what is there now."""
        self.peak = self.now
        return self.now


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def plan(
    dit: DiTConfig,
    vae: VAEConfig,
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    window: Window = Window(),
    passes: int = 4,
    device: str = "cpu",
) -> MemoryPlan:
    """Of a stream of video of height x width pixels. passes: of the sampler. device: "cpu", or "cuda", which need not be there.

    On CUDA it is the device's memory, with the probe on, without what CUDA and its libraries take for themselves.
    Raises `lolrt.Error` when the size does not fit the model.
    """
    rows, columns = height // vae.spatial_factor, width // vae.spatial_factor
    if height % vae.spatial_factor or width % vae.spatial_factor:
        raise Error(f"{height} x {width} pixels do not divide into latent pixels of {vae.spatial_factor} x {vae.spatial_factor}")
    with unfilled():
        model, decoder = CausalDiT(dit).to(dtype), CausalVAE(vae).to(dtype)
    tokens = model.tokens_per_frame(rows, columns)
    model.join()
    on_cuda = device == "cuda"

    def pages_of(tokens: int) -> int:
        return dit.num_layers * dtype.itemsize * ops.page_elements(dtype, tokens, dit.num_heads, dit.head_dim, torch.device(device))

    with torch.inference_mode(), torch.device("meta"), planned_for_cuda() if on_cuda else nullcontext(), LiveBytes() as live:
        stream: dict[str, int] = {}
        passing: dict[str, int] = {}

        def kept(name: str, before: int) -> None:
            stream[name] = live.now - before

        live.restart()
        text = model.encode_text(torch.empty(dit.text_len, dit.text_dim))
        stream["keys and values of the text"] = pages_of(dit.text_len)
        passing["text"] = live.peak - live.now

        before = live.restart()
        modulations = model.modulations(torch.empty(passes + 1))
        kept("modulations", before)

        before = live.restart()
        cache = KVCache(window, dit.num_layers, tokens, dit.num_heads, dit.head_dim, dtype, model.device)
        for first_frame in range(0, window.pages, window.chunk_frames):  # until the window is full
            pages = cache.advance(first_frame, window.chunk_frames)
        stream[f"{window.pool_pages} pages of {dit.num_layers} layers"] = window.pool_pages * pages_of(tokens)

        before = live.restart()
        attended = window.pages + window.recall_frames
        rotation = torch.empty(1, attended, window.chunk_frames, dit.num_heads, dit.temporal_pairs, 2)
        spatial = torch.empty(tokens, sum(dit.axes[1:]) // 2, 2)
        kept("rotation tables", before)

        sample = torch.empty(window.chunk_frames, dit.in_dim, rows, columns)
        before = live.restart()
        mass = torch.empty(dit.num_layers, attended, window.chunk_frames, dit.num_heads)
        model(sample, modulations[0], text, pages, rotation, spatial, mass)
        passing["a pass of the DiT"] = live.peak - before
        if on_cuda:  # a pool of memory for a pass, and what is copied into it and out of it
            stream["CUDA graphs' own memory"] = live.peak - before + _bytes((sample, modulations[0].rows, mass))
        del mass

        state: State = {}
        before = live.restart()
        for _ in range(2):  # the first chunk is another thing; both pack nothing anew
            video = decoder.decode(sample, state)
            video.add(1).mul_(127.5).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
            del video
        caches = _bytes(state.values())
        packed = live.now - before - caches
        passing["decoding of a chunk"] = live.peak - before - caches - packed
    stream["latents of the pages"] = 4 * window.pool_pages * dit.in_dim * rows * columns
    stream["VAE's past frames"] = caches
    stream["workspace of attention"] = (_cuda_workspace if on_cuda else _workspace)(dit, window, tokens, dtype)
    weights = {
        "DiT": _bytes(model.parameters()),
        "VAE": _bytes(decoder.parameters()),
        "VAE's decoder, packed": packed,
    }
    return MemoryPlan(weights, stream, passing, side_by_side=on_cuda)


def plan_model(
    model: str | Path, size: tuple[int, int] | None, dtype: torch.dtype, window: Window, device: str = "cpu"
) -> tuple[MemoryPlan, tuple[int, int]]:
    """Of a model that is not loaded, and the size that it is for: height and width in pixels, by default the model's own.

    model: as of `lolrt.load`; device: as of `plan`. Raises as `lolrt.load` does.
    """
    parts = parts_of(model, {"dit", "vae"})
    settings = {**WAN_SETTINGS, **parts.settings}
    height, width = size or (settings["height"], settings["width"])
    dit, vae = read_component(parts.source, "dit"), read_component(parts.source, "vae")
    passes = len(sampler_of(settings, parts.source).timesteps)
    memory = plan(dit_config(dit), vae_config(vae), height, width, dtype=dtype, window=window, passes=passes, device=device)
    return memory, (height, width)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _workspace(config: DiTConfig, window: Window, tokens: int, dtype: torch.dtype) -> int:
    """Asked of the kernels, with tensors whose memory is never touched."""
    shape = (window.chunk_frames, tokens, config.num_heads, config.head_dim)
    q = torch.empty(shape, dtype=dtype)
    attended = window.pages + window.recall_frames
    pages = torch.empty(attended, ops.page_elements(dtype, tokens, config.num_heads, config.head_dim), dtype=dtype)
    rotation = torch.zeros(attended, window.chunk_frames, config.num_heads, config.temporal_pairs, 2)
    table = torch.arange(attended, dtype=torch.int32)
    return _core.frame_attention_workspace(q, pages, table, tokens, rotation, None, torch.empty_like(q), None)


def _cuda_workspace(config: DiTConfig, window: Window, tokens: int, dtype: torch.dtype) -> int:
    """Of the probe: maximum and sum, float32, of each row of queries and head at the end of each page. Written down here because a machine
    that plans may have no CUDA half to ask."""
    return 8 * config.num_heads * (window.pages + window.recall_frames) * window.chunk_frames * tokens
