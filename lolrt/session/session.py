"""One endless video as data: its window, prompt, counters and sample in hand, and the passes that make its next chunk."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from lolrt.engine import finite
from lolrt.engine.engine import Engine
from lolrt.engine.kv_window import ChunkPages, KVWindow
from lolrt.engine.noise import Noise, NoiseSource
from lolrt.errors import Error
from lolrt.models.dit import CausalDiT
from lolrt.models.pass_inputs import PassInputs
from lolrt.ops.device import finish, upload
from lolrt.positions.rope import rotation_tables
from lolrt.session.config import StreamConfig, differences, to_plain
from lolrt.session.prompt_switch import PromptSwitch, Recache, SwitchLatency
from lolrt.session.snapshot import Snapshot, SnapshotKind

# Asks for passes, and is sent the flow of each.
Passes = Generator[PassInputs, Tensor, "LatentChunk"]


@dataclass(frozen=True)
class LatentChunk:
    """A few latent frames that were denoised together, or given together as a stream's start."""

    first_frame: int
    """Number of the first latent frame, counted from the start of the stream (or from `start_frame`)."""
    latents: Tensor
    """float32 [chunk_frames, channels, height, width], normalised."""
    page_frames: tuple[int, ...]
    """Latent frames that the chunk attended to: sinks, then recalled frames, then recent ones, its own last."""
    sums: Tensor
    """float32 [passes]: the sum of what each pass gave, the cache pass last (`lolrt.engine.finite`)."""
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


class Session:
    """A session of an engine: a state machine whose step is one pass of the model (`lolrt.engine.engine.Steps`).

    A chunk is: re-cache passes of a prompt switch, a pass that asks the memory bank, denoise passes, and the cache pass. Positions,
    sampler, gate and prompt are its own; the pages that it holds are the engine's.

    prompt_embeds: [text_tokens, text_dim]. noise: see `lolrt.engine.noise.NoiseSource`; by default the seed's. start: normalised latents
    [frames, channels, height, width] that the first chunks are. Raises `lolrt.Error` when these do not fit the model, or the engine has
    no room.
    """

    def __init__(
        self,
        engine: Engine,
        prompt_embeds: Tensor,
        config: StreamConfig,
        *,
        noise: NoiseSource | None = None,
        start: Tensor | None = None,
    ) -> None:
        dit, rope, window = engine.dit, config.rope, config.window
        dit.check_text(prompt_embeds)
        in_dim, sizes = dit.config.in_dim, (engine.height, engine.width)
        if start is not None and (not isinstance(start, Tensor) or start.shape[1:] != (in_dim, *sizes)):
            given = list(start.shape) if isinstance(start, Tensor) else repr(start)
            raise Error(f"start is {given}; expected latents [frames, {in_dim}, {sizes[0]}, {sizes[1]}]")
        if start is not None and not start.isfinite().all():
            raise Error("start has values that are not finite; expected the latents of frames, as encode_video gives them")
        self.engine, self.config = engine, config
        self.noise = noise or Noise(config.seed or 0, in_dim, *sizes)
        self.next_frame = config.start_frame
        self._increments = rope.increments(dit.config.num_layers, dit.config.num_heads, dit.config.temporal_pairs)
        self.modulations = engine.modulations(config.sampler.model_timesteps)
        self.spatial_rotation = engine.spatial_rotation(rope.theta)
        # Each chunk's rotation tables: in one place, which is all that a pass knows of where the chunk is.
        attended = (window.pages + window.recall_frames) * window.chunk_frames
        pairs = dit.config.num_heads * dit.config.temporal_pairs
        self.rotation = torch.empty(len(self._increments) * attended * pairs * 2, dtype=torch.float32, device=dit.device)
        self._start = engine.latents[:0] if start is None else start.to(dit.device)
        self.window = KVWindow(window, engine.pool)
        try:
            self.text = engine.take_prompt()
        except Error:
            self.window.close()
            raise
        self._closed = False
        self._prompt_embeds = prompt_embeds.cpu()
        dit.encode_text(prompt_embeds, out=self.text)
        self._switch: PromptSwitch | None = None
        self._passes: Passes | None = None
        self._pending: PassInputs | None = None

    # What a session is that was never made whole.
    _closed = True

    def close(self) -> None:
        """Gives its pages and its prompt's memory back to the engine; it cannot go on."""
        if self._closed:
            return
        self._closed = True
        self._passes = self._pending = None
        self.window.close()
        self.engine.give_prompt(self.text)

    def __del__(self) -> None:
        self.close()

    def _check_open(self) -> None:
        """What it would read and write is another's by now."""
        if self._closed:
            raise Error("the session is closed; save it before, and go on from that in a new one")

    def set_prompt(self, prompt_embeds: Tensor, *, recache: Recache = "window", over_chunks: int = 1) -> None:
        """From the next chunk on, follows another text; see `LatentStream.set_prompt`."""
        self._check_open()
        self.engine.dit.check_text(prompt_embeds)
        self._switch = PromptSwitch(self._prompt_embeds, prompt_embeds.cpu(), over_chunks, recache)

    def check_alone(self) -> None:
        """Raises `lolrt.Error` unless its model can be changed: its engine is its own, and no chunk is on its way."""
        self._check_open()
        if self.engine.max_sessions > 1:
            raise Error(
                "this stream shares its engine with others, and a pass of the model is one for all of them: make a stream of its own, with "
                "pipe.stream, or load the model with lora="
            )
        if not self.between_chunks:
            raise Error("a chunk of this session is on its way; change the model between two chunks")

    def use(self, dit: CausalDiT, recache: Recache = "window") -> None:
        """From the next chunk on, is made with another model of the same sizes; see `LatentStream.set_lora`."""
        self.check_alone()
        switch = self._switch if self._switch is not None and not self._switch.done else None
        target, chunks = (self._prompt_embeds, 1) if switch is None else (switch.target, switch.chunks - switch.chunks_done)
        again = PromptSwitch(self._prompt_embeds, target, chunks, recache)  # the text is encoded, and the past run, by the new weights
        self.engine.use(dit)
        self.modulations, self._switch = self.engine.modulations(self.config.sampler.model_timesteps), again

    @property
    def between_chunks(self) -> bool:
        """Whether no chunk is on its way, so that the session can be saved."""
        return self._passes is None

    @torch.inference_mode()
    def pending(self) -> PassInputs:
        """The next pass; begins a chunk where none is on its way."""
        self._check_open()
        if self._pending is None:
            self._passes = self._chunk()
            begun = self._resume(None)
            assert isinstance(begun, PassInputs), "the last pass of a chunk is its cache pass"
            self._pending = begun
        return self._pending

    @torch.inference_mode()
    def passed(self, flow: Tensor) -> LatentChunk | None:
        """Takes the flow of the pending pass; returns the chunk when it was its last pass."""
        following = self._resume(flow)
        if isinstance(following, LatentChunk):
            self._passes = self._pending = None
            return following
        self._pending = following
        return None

    def _resume(self, flow: Tensor | None) -> PassInputs | LatentChunk:
        """What is interrupted here begins its chunk anew with the next pass: pages are written again, and noise is drawn by its key."""
        assert self._passes is not None
        try:
            return next(self._passes) if flow is None else self._passes.send(flow)
        except StopIteration as done:
            return done.value
        except BaseException:
            self._passes = self._pending = None
            raise

    def _chunk(self) -> Passes:
        switch = yield from self._follow_switch()
        window, sampler, modulations = self.config.window, self.config.sampler, self.modulations
        if sampler.first_timesteps and self.next_frame == self.config.start_frame:
            sampler = sampler.first
            modulations = self.engine.modulations(sampler.model_timesteps)
        first_frame, n_frames = self.next_frame, self._next_chunk_frames()
        given = self._start[first_frame - self.config.start_frame :][:n_frames].float()
        pages = self.window.advance(first_frame, n_frames)
        if self.window.stored_frames and not len(given):
            pages = yield from self._recall(pages, first_frame, n_frames)
        rotation, bias = self.positions(pages)
        config, gate, passes = self.engine.dit.config, window.gate, len(sampler.timesteps)
        mass = torch.empty(
            config.num_layers, 1, len(pages.frames), n_frames, config.num_heads, dtype=torch.float32, device=self.engine.dit.device
        )
        probed_pass = passes if len(given) else passes - 1
        sums = []

        def flow(sample: Tensor, k: int) -> Generator[PassInputs, Tensor, Tensor]:
            nonlocal bias
            if k == 0 and gate.probes:
                velocity = yield self.pass_inputs(sample, modulations[k], pages, rotation, bias, mass)
                shut = gate.after(mass[:, 0], self._sinks_behind(pages))
                if shut is None:
                    sums.append(finite.total(velocity))
                    return velocity
                bias = shut[:, None]
            probed = mass if self.config.probe and k == probed_pass else None
            velocity = yield self.pass_inputs(sample, modulations[k], pages, rotation, bias, probed)
            sums.append(finite.total(velocity))
            return velocity

        latents = given if len(given) else self._noise(first_frame, n_frames, 0).float()
        for k in range(0 if len(given) else passes):
            latents = sampler.step(latents, k, (yield from flow(latents, k)), self._noise, first_frame)
        # The cache pass: what later chunks see of this one is its clean K and V.
        clean = sampler.context(latents, self._noise, first_frame)
        yield from flow(clean, passes)
        totals = torch.stack(sums)
        if totals.device.type == "cpu":  # elsewhere it would be waited for
            finite.check(totals, first_frame, n_frames)
        self.engine.latents[pages.chunk_page_table.long()] = clean
        # Last: a chunk that is interrupted is made anew, from what was true at its beginning.
        self.next_frame += n_frames
        if switch is not None:
            switch.chunks_done += 1
        return LatentChunk(
            first_frame=first_frame,
            latents=latents,
            page_frames=tuple(pages.frames),
            sink_frames=min(window.sink_frames, len(pages.frames)),
            sums=totals,
            recalled_frames=pages.recalled,
            mass=mass[:, 0].permute(0, 3, 2, 1) if self.config.probe else None,
            switch=self._latency(switch),
        )

    def _latency(self, switch: PromptSwitch | None) -> SwitchLatency | None:
        """Latency of a switch that this chunk has completed."""
        if switch is None or not switch.done:
            return None
        finish(self.engine.dit.device)
        return switch.latency()

    def _noise(self, first_frame: int, n_frames: int, step: int) -> Tensor:
        return upload(self.noise(first_frame, n_frames, step), self.engine.dit.device)

    def _next_chunk_frames(self) -> int:
        """Given frames come in whole chunks after the first, so that those that are denoised can follow in whole chunks."""
        given = len(self._start) - (self.next_frame - self.config.start_frame)
        size = self.config.window.chunk_frames
        return given % size or size if given > 0 else size

    def _recall(self, pages: ChunkPages, first_frame: int, n_frames: int) -> Generator[PassInputs, Tensor, ChunkPages]:
        """A chunk's pages, with those of the memory bank that its first denoise pass asks for, run with the window alone."""
        config = self.engine.dit.config
        query = torch.empty(config.num_layers, config.num_heads, config.head_dim, dtype=torch.float32, device=self.engine.dit.device)
        sample = self._noise(first_frame, n_frames, 0)
        yield self.pass_inputs(sample, self.modulations[0], pages, *self.positions(pages), query=query)
        return self.window.recall(pages, query)

    def _sinks_behind(self, pages: ChunkPages) -> int:
        """How many of a chunk's pages are sinks, without its own."""
        return min(self.config.window.sink_frames, len(pages.frames) - len(pages.chunk_page_table))

    def positions(self, pages: ChunkPages) -> tuple[Tensor, Tensor | None]:
        """A chunk's rotation tables, and the bias that its positions decide."""
        rope, device = self.config.rope, self.engine.dit.device
        sinks = self._sinks_behind(pages)
        offsets = rope.offsets(pages.frames, len(pages.chunk_page_table), sinks, pages.recalled)
        table = rotation_tables(self._increments, offsets)
        bias = self.config.window.gate.before(table, offsets, sinks)  # by the phases, whatever their amplitude
        table = table.mul_(rope.amplitude)[:, None]
        rotation = self.rotation[: table.numel()].view_as(table).copy_(upload(table, device))
        return rotation, None if bias is None else upload(bias, device)[:, None]

    def pass_inputs(
        self, sample: Tensor, modulation: Tensor, pages: ChunkPages, rotation: Tensor, bias: Tensor | None,
        mass: Tensor | None = None, query: Tensor | None = None,
    ) -> PassInputs:  # fmt: skip
        return PassInputs(
            sample=sample,
            modulation=modulation,
            layer_pages=self.engine.pool.layer_pages,
            page_table=pages.page_table[None],
            write_table=pages.chunk_page_table,
            rotation=rotation,
            spatial_rotation=self.spatial_rotation,
            text_pages=self.text.pages,
            text_table=self.text.page_table[None],
            bias=bias,
            mass=mass,
            queries=() if query is None else [(slice(0, len(sample)), query)],
            # Until the window is full, each chunk sees another number of pages, and never again.
            steady=len(pages.frames) >= self.config.window.pages,
        )

    def _use_text(self, prompt_embeds: Tensor) -> None:
        self._prompt_embeds = prompt_embeds
        self.engine.dit.encode_text(prompt_embeds, out=self.text)

    def _follow_switch(self) -> Generator[PassInputs, Tensor, PromptSwitch | None]:
        """Goes one chunk further in the switch that is on its way, if any, and returns it."""
        switch = self._switch
        if switch is None or switch.done:
            return None
        begin = time.perf_counter()
        self._use_text(switch.text())
        if switch.recache != "none":
            yield from self._recache(0 if switch.recache == "sinks" else self.config.window.sink_frames)
        finish(self.engine.dit.device)
        switch.recache_seconds += time.perf_counter() - begin
        return switch

    def _recache(self, first: int, as_made: bool = False) -> Generator[PassInputs, Tensor, None]:
        """Writes the window's K and V again with the text of now, from its frame `first` on: the cache pass, chunk by chunk.

        as_made: the first chunk's with the sampler of its own, among whose timesteps the same one may have other bits.
        """
        for pages in self.window.chunks(first):
            begins = as_made and self.config.sampler.first_timesteps and len(pages.frames) == len(pages.chunk_page_table)
            sampler = self.config.sampler.first if begins and pages.frames[0] == self.config.start_frame else self.config.sampler
            clean = self.engine.latents[pages.chunk_page_table.long()]
            yield self.pass_inputs(clean, self.engine.modulations(sampler.model_timesteps)[-1], pages, *self.positions(pages))

    def snapshot(self, kind: SnapshotKind = "full") -> Snapshot:
        """All of it, for a session of the same model and config. Raises `lolrt.Error` while a chunk is on its way, and for a light one
        of a session with a memory bank, whose pages cannot be made again."""
        tensors = self.state_dict()
        if kind == "light":
            if self.config.window.recall_frames:
                raise Error("a light snapshot has no pages, and those of recalled frames cannot be made again: save a full one")
            tensors = {name: x for name, x in tensors.items() if name != "cache.pages"}
        return Snapshot(self.engine.description, to_plain(self.config), tensors, kind)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from a snapshot. A full one gives the bits of the session that was saved. The pages of a light one are made again by the
        cache passes of the frames in the window, which are then all that the session knows of its past: the same bits as long as no frame
        had left the window, no prompt was switched without running the sinks again, and no "synchronised" gate was shut.

        Raises `lolrt.Error`, with the session unchanged, for one of another model, config or size: it says what differs.
        """
        self._check_open()
        here = {"model": self.engine.description, "config": to_plain(self.config)}
        found = differences({"model": snapshot.model, "config": snapshot.config}, here)
        if found:
            raise Error(f"this is the state of another stream: {'; '.join(found)}")
        if snapshot.kind == "full":
            self.load_state_dict(snapshot.tensors)
            return
        frames = snapshot.tensors.get("cache.frames", torch.empty(0))
        pool = self.engine.pool
        pages = torch.zeros(len(pool.layer_pages), len(frames), pool.saved_elements, dtype=pool.pages.dtype)
        self.load_state_dict({**snapshot.tensors, "cache.pages": pages})
        with torch.inference_mode():
            for inputs in self._recache(0, as_made=True):
                self.engine.dit(inputs)

    def state_dict(self) -> dict[str, Tensor]:
        """All that a session of the same model and config needs to go on from here, bit for bit; copies, safe to keep.

        Raises `lolrt.Error` while a chunk is on its way.
        """
        self._check_open()
        if not self.between_chunks:
            raise Error("a chunk of this session is on its way; save between two chunks")
        state = {f"cache.{name}": tensor for name, tensor in self.window.state_dict().items()}
        if self._switch is not None and not self._switch.done:
            state |= {f"switch.{name}": tensor for name, tensor in self._switch.state_dict().items()}
        ahead = self._start[self.next_frame - self.config.start_frame :]
        if len(ahead):
            state["start"] = self._start.clone()
        inputs = self.engine.latents[self.window.page_table.long()]
        return {"next_frame": torch.tensor(self.next_frame), "prompt_embeds": self._prompt_embeds.clone(), "inputs": inputs, **state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state, also with the prompt that was followed then.

        Raises `lolrt.Error`, with the session unchanged, when the state belongs to another model or size.
        """
        missing = {"next_frame", "prompt_embeds", "inputs", "cache.frames", "cache.pages", "cache.on_cuda"} - state.keys()
        if missing:
            raise Error(f"this is no saved stream: it lacks {', '.join(sorted(missing))}")
        latents = self.engine.latents
        self.engine.dit.check_text(state["prompt_embeds"])
        if state["inputs"].shape[1:] != latents.shape[1:] or len(state["inputs"]) != len(state["cache.frames"]):
            raise Error(
                f"saved latents are {list(state['inputs'].shape)}, this stream's are {list(latents.shape[1:])} each: "
                "the state belongs to another model, frame size or dtype"
            )
        switch = {name.removeprefix("switch."): tensor for name, tensor in state.items() if name.startswith("switch.")}
        resumed = PromptSwitch.from_state_dict(switch) if switch else None
        self.window.load_state_dict({name.removeprefix("cache."): x for name, x in state.items() if name.startswith("cache.")})
        latents[self.window.page_table.long()] = state["inputs"].to(latents.device)
        self._passes = self._pending = None
        self._use_text(state["prompt_embeds"].cpu().clone())
        self._switch = resumed
        self._start = state["start"].to(latents.device) if "start" in state else latents[:0]  # not what this session was given
        self.next_frame = int(state["next_frame"])
