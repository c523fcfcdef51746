"""Endless streams: noise in, chunks of latents (and of video frames) out, in constant memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lolrt.engine.graph import GraphedPasses
from lolrt.engine.kv_window import ChunkPages, KVCache, Window, page_dtype
from lolrt.engine.noise import Noise, NoiseSource
from lolrt.engine.sampler import Sampler
from lolrt.errors import Error
from lolrt.models.dit import CausalDiT, Modulation
from lolrt.models.vae.codec import Codec, State
from lolrt.ops.device import Coming, beside, finish, lane, upload
from lolrt.positions.rope import Rope, rotation_tables, spatial_rotation
from lolrt.session.prompt_switch import PromptSwitch, Recache, SwitchLatency
from lolrt.text.encoder import TextEncoder


@dataclass(frozen=True)
class LatentChunk:
    """A few latent frames that were denoised together, or given together as a stream's start."""

    first_frame: int
    """Number of the first latent frame, counted from the start of the stream (or from `start_frame`)."""
    latents: Tensor
    """float32 [chunk_frames, channels, height, width], normalised."""
    page_frames: tuple[int, ...]
    """Latent frames that the chunk attended to: sinks, then recalled frames, then recent ones, its own last."""
    sink_frames: int
    """How many of them are sinks."""
    recalled_frames: int = 0
    """How many of them were recalled."""
    mass: Tensor | None = None
    """With the probe on: float32 [layers, heads, chunk_frames, pages], the softmax weight that the last denoise pass spent on each
    page (of frames that were given, the cache pass), mean over a frame's queries; pages as in `page_frames`."""
    switch: SwitchLatency | None = None
    """Set on the first chunk that follows a new prompt alone."""

    @property
    def sink_mass(self) -> float | None:
        """Attention mass on the sinks, mean over layers, heads and frames; None without the probe."""
        return None if self.mass is None else self.mass[..., : self.sink_frames].sum(-1).mean().item()


@dataclass(frozen=True, kw_only=True)
class Chunk(LatentChunk):
    """A chunk and its video frames."""

    decoded: Coming
    """The frames, which may still be on their way from a GPU."""

    @property
    def frames(self) -> Tensor:
        """uint8 [n, height, width, 3] RGB, on the CPU; n is 9 for the first chunk of a stream and 12 for the others (Wan's VAE, chunks
        of 3), unless the stream starts from given frames. Waits until they are decoded."""
        return self.decoded.result()


class LatentStream:
    """An endless iterator of `LatentChunk`.

    dit: the model. prompt_embeds: [text_tokens, text_dim]. height, width: of a latent frame, in latent pixels. noise: see
    `lolrt.engine.noise.NoiseSource`; by default `Noise(seed=0, ...)`. start: normalised latents [frames, channels, height, width] that the
    stream goes on from: its first chunks are these, and only the first of them may be shorter than others. start_frame: the number of the
    first latent frame. kv_dtype: of the KV cache's pages, by default the model's; torch.float8_e4m3fn, on CUDA, halves them. Raises
    `lolrt.Error` when the sizes do not fit the model, and where there are no such pages.
    """

    def __init__(
        self,
        dit: CausalDiT,
        prompt_embeds: Tensor,
        height: int,
        width: int,
        *,
        noise: NoiseSource | None = None,
        rope: Rope = Rope(),
        window: Window = Window(),
        sampler: Sampler = Sampler(),
        start: Tensor | None = None,
        start_frame: int = 0,
        probe: bool = False,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        config = dit.config
        self.dit, self.rope, self.window, self.sampler, self.probe = dit, rope, window, sampler, probe
        self.next_frame = start_frame
        self.noise = noise or Noise(0, config.in_dim, height, width)
        self._prompt_embeds, self._text = prompt_embeds.cpu(), dit.encode_text(prompt_embeds)
        self._switch: PromptSwitch | None = None
        self._modulations = dit.modulations(sampler.model_timesteps)
        self._increments = rope.increments(config.num_layers, config.num_heads, config.temporal_pairs)
        _, patch_height, patch_width = config.patch_size
        tokens = dit.tokens_per_frame(height, width)
        row_pairs, column_pairs = (channels // 2 for channels in config.axes[1:])
        spatial = spatial_rotation(height // patch_height, width // patch_width, row_pairs, column_pairs, rope.theta)
        self._spatial_rotation = upload(spatial, dit.device)
        stored = page_dtype(kv_dtype, dit.dtype, config.head_dim, dit.device)
        self._cache = KVCache(window, config.num_layers, tokens, config.num_heads, config.head_dim, stored, dit.device)
        # Each chunk's rotation tables: in one place, which is all that a pass knows of where the chunk is.
        frames = (window.pages + window.recall_frames) * window.chunk_frames
        self._rotation = torch.empty(len(self._increments) * frames * config.num_heads * config.temporal_pairs * 2, device=dit.device)
        # What the cache pass read, by page: with it the window's K and V can be made again.
        self._inputs = torch.zeros(window.pool_pages, config.in_dim, height, width, device=dit.device)
        self._graphs = GraphedPasses(dit) if dit.device.type == "cuda" else None
        self._start = self._inputs[:0] if start is None else start.to(dit.device)
        self._start_frame = start_frame
        if self._start.shape[1:] != self._inputs.shape[1:]:
            raise Error(f"start is {list(self._start.shape)}; expected latents [frames, {config.in_dim}, {height}, {width}]")

    def __iter__(self) -> LatentStream:
        return self

    def set_prompt(self, prompt_embeds: Tensor, *, recache: Recache = "window", over_chunks: int = 1) -> None:
        """From the next chunk on, follows another text [text_tokens, text_dim].

        recache: which cached frames are run again with the new text: "window" (all but the sinks, as LongLive does), "sinks" (these as
        well: the cache is then that of a stream of this text whose whole past are the window's latents) or "none". over_chunks: the new
        text takes over by equal steps in so many chunks, each with its own re-caching. A switch that is still on its way is overtaken
        from where it is.
        May be called from another thread. Raises `lolrt.Error` for a text that does not fit the model.
        """
        self.dit.check_text(prompt_embeds)
        self._switch = PromptSwitch(self._prompt_embeds, prompt_embeds.cpu(), over_chunks, recache)

    @torch.inference_mode()
    def __next__(self) -> LatentChunk:
        switch = self._follow_switch()
        sampler, modulations = self.sampler, self._modulations
        if sampler.first_timesteps and not self._cache.frames:
            sampler = sampler.first
            modulations = self.dit.modulations(sampler.model_timesteps)
        first_frame, n_frames = self.next_frame, self._next_chunk_frames()
        given = self._start[first_frame - self._start_frame :][:n_frames].float()
        pages = self._cache.advance(first_frame, n_frames)
        if self._cache.stored_frames and not len(given):
            pages = self._recall(pages, first_frame, n_frames)
        rotation, bias = self._positions(pages)
        config, gate, passes = self.dit.config, self.window.gate, len(sampler.timesteps)
        mass = torch.empty(config.num_layers, len(pages.frames), n_frames, config.num_heads, device=self.dit.device)
        probed_pass = passes if len(given) else passes - 1

        def flow(sample: Tensor, k: int) -> Tensor:
            nonlocal bias
            if k == 0 and gate.probes:
                velocity = self._run(sample, modulations[k], pages, rotation, bias, mass)
                bias = gate.after(mass, self._sinks_behind(pages))
                if bias is None:
                    return velocity
            return self._run(sample, modulations[k], pages, rotation, bias, mass if self.probe and k == probed_pass else None)

        latents = given if len(given) else sampler.denoise(flow, self._noise, first_frame, n_frames)
        # The cache pass: what later chunks see of this one is its clean K and V.
        clean = sampler.context(latents, self._noise, first_frame)
        flow(clean, passes)
        self._inputs[pages.chunk_page_table.long()] = clean
        self.next_frame += n_frames
        return LatentChunk(
            first_frame=first_frame,
            latents=latents,
            page_frames=tuple(pages.frames),
            sink_frames=min(self.window.sink_frames, len(pages.frames)),
            recalled_frames=pages.recalled,
            mass=mass.permute(0, 3, 2, 1) if self.probe else None,
            switch=self._latency(switch),
        )

    def _latency(self, switch: PromptSwitch | None) -> SwitchLatency | None:
        """Of a switch that this chunk has completed."""
        if switch is None or not switch.done:
            return None
        finish(self.dit.device)
        return switch.latency()

    def _noise(self, first_frame: int, n_frames: int, step: int) -> Tensor:
        return upload(self.noise(first_frame, n_frames, step), self.dit.device)

    def _next_chunk_frames(self) -> int:
        """Given frames come in whole chunks after the first, so that those that are denoised can follow in whole chunks."""
        given = len(self._start) - (self.next_frame - self._start_frame)
        size = self.window.chunk_frames
        return given % size or size if given > 0 else size

    def _recall(self, pages: ChunkPages, first_frame: int, n_frames: int) -> ChunkPages:
        """A chunk's pages, with those of the store that its first denoise pass asks for, run with the window alone."""
        config = self.dit.config
        query = torch.empty(config.num_layers, config.num_heads, config.head_dim, device=self.dit.device)
        sample = self._noise(first_frame, n_frames, 0)
        self._run(sample, self._modulations[0], pages, *self._positions(pages), query=query)
        return self._cache.recall(pages, query)

    def _sinks_behind(self, pages: ChunkPages) -> int:
        """How many of a chunk's pages are sinks, without its own."""
        return min(self.window.sink_frames, len(pages.frames) - len(pages.chunk_page_table))

    def _positions(self, pages: ChunkPages) -> tuple[Tensor, Tensor | None]:
        """A chunk's rotation tables, and the bias that its positions decide."""
        sinks = self._sinks_behind(pages)
        offsets = self.rope.offsets(pages.frames, len(pages.chunk_page_table), sinks, pages.recalled)
        table = rotation_tables(self._increments, offsets)
        bias = self.window.gate.before(table, offsets, sinks)  # by the phases, whatever their amplitude
        table.mul_(self.rope.amplitude)
        rotation = self._rotation[: table.numel()].view_as(table).copy_(upload(table, self.dit.device))
        return rotation, None if bias is None else upload(bias, self.dit.device)

    def _run(
        self, sample: Tensor, modulation: Modulation, pages: ChunkPages, rotation: Tensor, bias: Tensor | None,
        mass: Tensor | None = None, query: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        # Until the window is full, each chunk sees another number of pages, and never again.
        graphed = self._graphs is not None and len(pages.frames) >= self.window.pages
        run = self._graphs if self._graphs is not None and graphed else self.dit
        return run(sample, modulation, self._text, pages, rotation, self._spatial_rotation, mass, bias, query)

    def _use_text(self, prompt_embeds: Tensor) -> None:
        self._prompt_embeds = prompt_embeds
        self.dit.encode_text(prompt_embeds, out=self._text)

    def _follow_switch(self) -> PromptSwitch | None:
        """Goes one chunk further in the switch that is on its way, if any, and returns it."""
        switch = self._switch
        if switch is None or switch.done:
            return None
        begin = time.perf_counter()
        self._use_text(switch.text())
        if switch.recache != "none":
            self._recache(0 if switch.recache == "sinks" else self.window.sink_frames)
        finish(self.dit.device)
        switch.recache_seconds += time.perf_counter() - begin
        switch.chunks_done += 1  # last: what is interrupted is done again
        return switch

    def _recache(self, first: int) -> None:
        """Writes the window's K and V again with the text of now, from its frame `first` on: the cache pass, chunk by chunk."""
        for pages in self._cache.chunks(first):
            self._run(self._inputs[pages.chunk_page_table.long()], self._modulations[-1], pages, *self._positions(pages))

    def state_dict(self) -> dict[str, Tensor]:
        """All that a stream made with the same arguments needs to go on from here, bit for bit; copies, safe to keep."""
        state = {f"cache.{name}": tensor for name, tensor in self._cache.state_dict().items()}
        if self._switch is not None and not self._switch.done:
            state |= {f"switch.{name}": tensor for name, tensor in self._switch.state_dict().items()}
        inputs = self._inputs[self._cache.page_table.long()]
        return {"next_frame": torch.tensor(self.next_frame), "prompt_embeds": self._prompt_embeds.clone(), "inputs": inputs, **state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state, also with the prompt that was followed then.

        Raises `lolrt.Error`, with the stream unchanged, when the state belongs to another model or size.
        """
        missing = {"next_frame", "prompt_embeds", "inputs", "cache.frames", "cache.pages"} - state.keys()
        if missing:
            raise Error(f"this is no saved stream: it lacks {', '.join(sorted(missing))}")
        self.dit.check_text(state["prompt_embeds"])
        if state["inputs"].shape[1:] != self._inputs.shape[1:]:
            raise Error(
                f"saved latents are {list(state['inputs'].shape[1:])}, this stream's are {list(self._inputs.shape[1:])}: "
                "the state belongs to another model, frame size or dtype"
            )
        switch = {name.removeprefix("switch."): tensor for name, tensor in state.items() if name.startswith("switch.")}
        resumed = PromptSwitch.from_state_dict(switch) if switch else None
        self._cache.load_state_dict({name.removeprefix("cache."): x for name, x in state.items() if name.startswith("cache.")})
        self._inputs[self._cache.page_table.long()] = state["inputs"].to(self.dit.device)
        self._use_text(state["prompt_embeds"].cpu().clone())
        self._switch = resumed
        self.next_frame = int(state["next_frame"])


class Stream:
    """An endless iterator of `Chunk`: a latent stream, the VAE that decodes it, and the encoder of its prompts.

    On CUDA a chunk comes when its work is queued, and is decoded on a CUDA stream of its own: whoever asks for the next chunk before this
    one's frames has both in work at a time.
    """

    def __init__(self, latent_stream: LatentStream, vae: Codec, encode_text: TextEncoder) -> None:
        self.latent_stream, self.vae, self.encode_text = latent_stream, vae, encode_text
        self._vae_state: State = {}

    def __iter__(self) -> Stream:
        return self

    def set_prompt(self, prompt: str, *, recache: Recache = "window", over_chunks: int = 1) -> None:
        """From the next chunk on, follows another prompt; see `LatentStream.set_prompt`. Raises `lolrt.PromptError`."""
        self.latent_stream.set_prompt(self.encode_text(prompt), recache=recache, over_chunks=over_chunks)

    def __next__(self) -> Chunk:
        chunk = next(self.latent_stream)
        begin = time.perf_counter()
        decoded = beside(self._decode, chunk.latents)
        if chunk.switch is not None:
            decoded.result()
            decode_ms = 1e3 * (time.perf_counter() - begin)
            chunk = replace(chunk, switch=replace(chunk.switch, total_ms=chunk.switch.total_ms + decode_ms))
        return Chunk(**vars(chunk), decoded=decoded)

    def _decode(self, latents: Tensor) -> Tensor:
        video = self.vae.decode(latents, self._vae_state)
        return video.add(1).mul_(127.5).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def state_dict(self) -> dict[str, Tensor]:
        """See `LatentStream.state_dict`; with the frames that the VAE carries."""
        finish(self.latent_stream.dit.device)
        codec = torch.tensor(list(self.vae.description.encode()), dtype=torch.uint8)
        carried = {f"vae.{slot}": frames.clone() for slot, frames in self._vae_state.items()}
        return {**self.latent_stream.state_dict(), "codec": codec, **carried}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `LatentStream.load_state_dict`; also refuses what a stream with another kind of VAE saved, or a `LatentStream`, whose decoder
        would begin anew in the middle."""
        if "codec" not in state:
            raise Error("this is the state of a latent stream, without the frames that a VAE carries: load it into .latent_stream")
        saved = bytes(state["codec"].tolist()).decode()
        if saved != self.vae.description:
            raise Error(f"the state was saved with {saved}, and this stream has {self.vae.description}: load the model with the same VAE")
        self.latent_stream.load_state_dict(state)
        device = self.latent_stream.dit.device
        finish(device)
        with lane(device):
            carried = {name.removeprefix("vae."): frames for name, frames in state.items() if name.startswith("vae.")}
            self._vae_state = {slot: frames.to(device, copy=True) for slot, frames in carried.items()}
