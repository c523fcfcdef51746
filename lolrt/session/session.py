"""The state of one endless video: its window, its prompt, its counters and the current sample, and the passes that make its next chunk."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lolrt.engine import finite
from lolrt.engine.engine import Engine
from lolrt.engine.kv_window import ChunkPages, KVWindow
from lolrt.engine.noise import Noise, NoiseSource
from lolrt.engine.page_skip import unread
from lolrt.errors import Error
from lolrt.models.dit import CausalDiT
from lolrt.models.pass_inputs import PassInputs
from lolrt.ops.device import finish, upload
from lolrt.positions.rope import rotation_tables
from lolrt.session.config import StreamConfig, differences, to_plain
from lolrt.session.prompt_switch import PromptSwitch, Recache, SwitchLatency
from lolrt.session.snapshot import Snapshot, SnapshotKind

# A generator that yields the inputs of each pass, receives its flow, and returns the chunk.
Passes = Generator[PassInputs, Tensor, "LatentChunk"]


@dataclass(frozen=True)
class LatentChunk:
    """A few latent frames that were denoised together, or that the caller gave as the start of a stream."""

    first_frame: int
    """The number of the first latent frame, counted from the start of the stream (or from `start_frame`)."""
    latents: Tensor
    """float32 [chunk_frames, channels, height, width], normalised."""
    page_frames: tuple[int, ...]
    """The latent frames that the chunk attended to: sinks, then recalled frames, then recent ones; its own frames are last."""
    sums: Tensor
    """float32 [passes]: the sum of each pass's output, the cache pass last (`lolrt.engine.finite`)."""
    sink_frames: int
    """How many of the attended frames are sinks."""
    recalled_frames: int = 0
    """How many of the attended frames were recalled from the memory bank."""
    mass: Tensor | None = None
    """With the probe on: float32 [layers, heads, chunk_frames, pages], the softmax weight that the last denoise pass put on each page,
    mean over a frame's queries. For given frames it is that of the cache pass. The pages are in the order of `page_frames`."""
    switch: SwitchLatency | None = None
    """The latency of a prompt switch; set on the first chunk that follows the new prompt alone."""

    @property
    def sink_mass(self) -> float | None:
        """The attention mass on the sinks, mean over layers, heads and frames; None without the probe."""
        return None if self.mass is None else self.mass[..., : self.sink_frames].sum(-1).mean().item()


class Session:
    """A session of an engine: a state machine. Each step is one pass of the model (`lolrt.engine.engine.Steps`).

    A chunk takes these passes: the re-cache passes of a prompt switch, a pass whose queries search the memory bank, the denoise passes,
    and the cache pass. Each session has its own positions, sampler, gate and prompt; the pages belong to the engine.

    prompt_embeds: [text_tokens, text_dim]. dit: the weights, of the sizes of the engine's model; by default that. noise: see
    `lolrt.engine.noise.NoiseSource`; by default the noise of the seed. start: normalised latents [frames, channels, height, width], used
    as the first chunks. Raises `lolrt.Error` when these do not fit the model, or the engine has no room.
    """

    def __init__(
        self,
        engine: Engine,
        prompt_embeds: Tensor,
        config: StreamConfig,
        *,
        dit: CausalDiT | None = None,
        noise: NoiseSource | None = None,
        start: Tensor | None = None,
    ) -> None:
        dit, rope, window = dit or engine.dit, config.rope, config.window
        dit.check_text(prompt_embeds)
        in_dim, sizes = dit.config.in_dim, (engine.height, engine.width)
        if start is not None and (not isinstance(start, Tensor) or start.shape[1:] != (in_dim, *sizes)):
            given = list(start.shape) if isinstance(start, Tensor) else repr(start)
            raise Error(f"start is {given}; expected latents [frames, {in_dim}, {sizes[0]}, {sizes[1]}]")
        if start is not None and not start.isfinite().all():
            raise Error("start has values that are not finite; expected the latents of frames, as encode_video gives them")
        self.engine, self.model, self.config = engine, engine.model(dit), config
        self.noise = noise or Noise(config.seed or 0, in_dim, *sizes)
        self.next_frame = config.start_frame
        self.increments = rope.increments(dit.config.num_layers, dit.config.num_heads, dit.config.temporal_pairs)
        self.modulations = self.model.modulations(config.sampler.model_timesteps)
        self.spatial_rotation = engine.spatial_rotation(rope.theta)
        # The rotation tables of every chunk are written to the same memory. A pass knows the position of its chunk only from them.
        attended = (window.pages + window.recall_frames) * window.chunk_frames
        pairs = dit.config.num_heads * dit.config.temporal_pairs
        self.rotation = torch.empty(len(self.increments) * attended * pairs * 2, dtype=torch.float32, device=dit.device)
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
        self.passes_done = 0
        """How many passes the chunk in progress has had."""

    # A session whose constructor failed counts as closed.
    _closed = True

    def close(self) -> None:
        """Gives the pages and the prompt's memory back to the engine. The session cannot go on."""
        if self._closed:
            return
        self._closed = True
        self._passes = self._pending = None
        self.window.close()
        self.engine.give_prompt(self.text)

    def __del__(self) -> None:
        self.close()

    def _check_open(self) -> None:
        """Raises `lolrt.Error` if the session is closed: another session may use its pages."""
        if self._closed:
            raise Error("the session is closed; save it before, and go on from that in a new one")

    def set_prompt(self, prompt_embeds: Tensor, *, recache: Recache = "window", over_chunks: int = 1) -> None:
        """Follows another text from the next chunk on; see `LatentStream.set_prompt`."""
        self._check_open()
        self.model.dit.check_text(prompt_embeds)
        self._switch = PromptSwitch(self._prompt_embeds, prompt_embeds.cpu(), over_chunks, recache)

    def use(self, dit: CausalDiT, recache: Recache = "window") -> None:
        """Uses another model of the same sizes from the next chunk on; see `LatentStream.set_lora`."""
        self.check_between_chunks()
        switch = self._switch if self._switch is not None and not self._switch.done else None
        target, chunks = (self._prompt_embeds, 1) if switch is None else (switch.target, switch.chunks - switch.chunks_done)
        again = PromptSwitch(self._prompt_embeds, target, chunks, recache)  # the new weights encode the text and run the past again
        model = self.engine.model(dit)
        self.modulations, self._switch, self.model = model.modulations(self.config.sampler.model_timesteps), again, model
        if self.engine.max_sessions == 1:
            self.engine.dit = dit  # the engine does not need the former one

    def check_between_chunks(self) -> None:
        """Raises `lolrt.Error` unless the model can be changed: the session must be open, and no chunk may be in progress."""
        self._check_open()
        if not self.between_chunks:
            raise Error("a chunk of this session is on its way; change the model between two chunks")

    @property
    def description(self) -> dict[str, Any]:
        """The properties of model and engine that the session depends on. A saved session can go on where they are the same."""
        engine = self.engine
        return {
            **self.model.description,
            "pages": str(engine.pool.pages.dtype).removeprefix("torch."),
            "device": engine.latents.device.type,
            "latent_size": [engine.height, engine.width],
        }

    @property
    def between_chunks(self) -> bool:
        """Whether no chunk is in progress, so that the session can be saved."""
        return self._passes is None

    @torch.inference_mode()
    def pending(self) -> PassInputs:
        """The inputs of the next pass; begins a chunk if none is in progress."""
        self._check_open()
        if self._pending is None:
            self._passes, self.passes_done = self._chunk(), 0
            begun = self._resume(None)
            assert isinstance(begun, PassInputs), "the last pass of a chunk is its cache pass"
            self._pending = begun
        return self._pending

    @torch.inference_mode()
    def passed(self, flow: Tensor) -> LatentChunk | None:
        """Takes the flow of the pending pass. Returns the chunk if that was its last pass."""
        following = self._resume(flow)
        self.passes_done += 1
        if isinstance(following, LatentChunk):
            self._passes = self._pending = None
            return following
        self._pending = following
        return None

    def _resume(self, flow: Tensor | None) -> PassInputs | LatentChunk:
        """Runs the generator up to its next pass. If this fails or is interrupted, the next pass starts the chunk again; that is safe,
        because its pages are written again and its noise depends only on its key."""
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
            modulations = self.model.modulations(sampler.model_timesteps)
        first_frame, n_frames = self.next_frame, self._next_chunk_frames()
        given = self._start[first_frame - self.config.start_frame :][:n_frames].float()
        pages = self.window.advance(first_frame, n_frames)
        if self.window.stored_frames and not len(given):
            pages = yield from self._recall(pages, first_frame, n_frames)
        rotation, bias = self.positions(pages)
        config, gate, passes = self.model.dit.config, window.gate, len(sampler.timesteps)
        mass = torch.empty(
            config.num_layers, 1, len(pages.frames), n_frames, config.num_heads, dtype=torch.float32, device=self.model.dit.device
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
            skips = k == 0 and window.skip > 0 and not len(given)
            probed = mass if skips or (self.config.probe and k == probed_pass) else None
            velocity = yield self.pass_inputs(sample, modulations[k], pages, rotation, bias, probed)
            sums.append(finite.total(velocity))
            if skips:
                left_out = unread(mass[:, 0], len(pages.frames) - n_frames, window.skip)[:, None]
                bias = left_out if bias is None else bias + left_out
            return velocity

        latents = given if len(given) else self._noise(first_frame, n_frames, 0).float()
        for k in range(0 if len(given) else passes):
            latents = sampler.step(latents, k, (yield from flow(latents, k)), self._noise, first_frame)
        # The cache pass: it writes the K and V of the clean chunk, which later chunks attend to.
        clean = sampler.context(latents, self._noise, first_frame)
        yield from flow(clean, passes)
        totals = torch.stack(sums)
        if totals.device.type == "cpu":  # on a GPU the check would wait for the pass
            finite.check(totals, first_frame, n_frames)
        self.engine.latents[pages.chunk_page_table.long()] = clean
        # These come last: a chunk that is interrupted is made again from the state at its beginning.
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
        """The latency of the prompt switch that this chunk completes; None if it completes none."""
        if switch is None or not switch.done:
            return None
        finish(self.model.dit.device)
        return switch.latency()

    def _noise(self, first_frame: int, n_frames: int, step: int) -> Tensor:
        return upload(self.noise(first_frame, n_frames, step), self.model.dit.device)

    def _next_chunk_frames(self) -> int:
        """The length of the next chunk. Of the chunks of given frames only the first may be shorter, so that denoised chunks follow in
        whole chunks."""
        given = len(self._start) - (self.next_frame - self.config.start_frame)
        size = self.config.window.chunk_frames
        return given % size or size if given > 0 else size

    def _recall(self, pages: ChunkPages, first_frame: int, n_frames: int) -> Generator[PassInputs, Tensor, ChunkPages]:
        """The pages of a chunk with recalled ones. The first denoise pass is run with the window alone, and its queries choose the pages
        of the memory bank."""
        config = self.model.dit.config
        query = torch.empty(config.num_layers, config.num_heads, config.head_dim, dtype=torch.float32, device=self.model.dit.device)
        sample = self._noise(first_frame, n_frames, 0)
        yield self.pass_inputs(sample, self.modulations[0], pages, *self.positions(pages), query=query)
        return self.window.recall(pages, query)

    def _sinks_behind(self, pages: ChunkPages) -> int:
        """How many of the pages before the chunk's own are sinks."""
        return min(self.config.window.sink_frames, len(pages.frames) - len(pages.chunk_page_table))

    def positions(self, pages: ChunkPages) -> tuple[Tensor, Tensor | None]:
        """The rotation tables of a chunk, and the attention bias, if the gate derives one from the positions."""
        rope, device = self.config.rope, self.model.dit.device
        sinks = self._sinks_behind(pages)
        offsets = rope.offsets(pages.frames, len(pages.chunk_page_table), sinks, pages.recalled)
        table = rotation_tables(self.increments, offsets)
        bias = self.config.window.gate.before(table, offsets, sinks)  # from the phases alone, without the amplitude
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
            # While the window fills, each chunk sees a different number of pages, which does not come again.
            steady=len(pages.frames) >= self.config.window.pages,
        )

    def _use_text(self, prompt_embeds: Tensor) -> None:
        self._prompt_embeds = prompt_embeds
        self.model.dit.encode_text(prompt_embeds, out=self.text)

    def _follow_switch(self) -> Generator[PassInputs, Tensor, PromptSwitch | None]:
        """Advances the current prompt switch by one chunk, if there is one, and returns it."""
        switch = self._switch
        if switch is None or switch.done:
            return None
        begin = time.perf_counter()
        self._use_text(switch.text())
        if switch.recache != "none":
            yield from self._recache(0 if switch.recache == "sinks" else self.config.window.sink_frames)
        finish(self.model.dit.device)
        switch.recache_seconds += time.perf_counter() - begin
        return switch

    def _recache(self, first: int, as_made: bool = False) -> Generator[PassInputs, Tensor, None]:
        """Writes the window's K and V again with the current text, from the window's frame `first` on, by the cache pass of each chunk.

        as_made: use the first chunk's own sampler for the stream's first chunk. The modulation of the same timestep may have other bits
        when it is computed together with other timesteps.
        """
        for pages in self.window.chunks(first):
            begins = as_made and self.config.sampler.first_timesteps and len(pages.frames) == len(pages.chunk_page_table)
            sampler = self.config.sampler.first if begins and pages.frames[0] == self.config.start_frame else self.config.sampler
            clean = self.engine.latents[pages.chunk_page_table.long()]
            yield self.pass_inputs(clean, self.model.modulations(sampler.model_timesteps)[-1], pages, *self.positions(pages))

    def snapshot(self, kind: SnapshotKind = "full") -> Snapshot:
        """The whole state, for a session of the same model and config. Raises `lolrt.Error` while a chunk is in progress, and for a light
        snapshot of a session with a memory bank, whose pages cannot be made again."""
        tensors = self.state_dict()
        if kind == "light":
            if self.config.window.recall_frames:
                raise Error("a light snapshot has no pages, and those of recalled frames cannot be made again: save a full one")
            tensors = {name: x for name, x in tensors.items() if name != "cache.pages"}
        return Snapshot(self.description, to_plain(self.config), tensors, kind)

    def restore(self, snapshot: Snapshot) -> None:
        """Goes on from a snapshot. After a full snapshot the chunks have the same bits as those of the saved session. For a light snapshot
        the pages are made again by the cache passes of the frames in the window, so the session knows nothing else of its past. Its bits
        are the same as long as no frame had left the window, no prompt was switched without running the sinks again, no "synchronised"
        gate was shut, and `Window.skip` left no page out.

        Raises `lolrt.Error` for a snapshot of another model, config or size, and says what differs. The session is then unchanged.
        """
        self._check_open()
        here = {"model": self.description, "config": to_plain(self.config)}
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
                self.model.dit(inputs)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors that a session of the same model and config needs to go on from here, bit for bit. They are copies, safe to keep.

        Raises `lolrt.Error` while a chunk is in progress.
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
        """Goes on from a saved state and its prompt.

        Raises `lolrt.Error` when the state belongs to another model or size. The session is then unchanged.
        """
        missing = {"next_frame", "prompt_embeds", "inputs", "cache.frames", "cache.pages", "cache.on_cuda"} - state.keys()
        if missing:
            raise Error(f"this is no saved stream: it lacks {', '.join(sorted(missing))}")
        latents = self.engine.latents
        self.model.dit.check_text(state["prompt_embeds"])
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
        self._start = state["start"].to(latents.device) if "start" in state else latents[:0]  # the saved start replaces its own
        self.next_frame = int(state["next_frame"])
