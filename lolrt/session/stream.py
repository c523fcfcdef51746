"""Endless streams: the objects of `for chunk in stream`. A stream is a session, with an engine of its own or shared."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt.checkpoint.load import with_lora
from lolrt.checkpoint.lora import LoRAFiles
from lolrt.engine import finite
from lolrt.engine.engine import Engine
from lolrt.engine.kv_window import Window
from lolrt.engine.noise import NoiseSource
from lolrt.engine.sampler import Sampler
from lolrt.errors import Error
from lolrt.exclusive import Exclusive
from lolrt.models.dit import CausalDiT
from lolrt.models.vae.codec import Codec, State
from lolrt.ops.device import Coming, finish, on_side_stream, side_stream
from lolrt.positions.rope import Rope
from lolrt.session.config import StreamConfig
from lolrt.session.prompt_switch import Recache
from lolrt.session.saver import Saver
from lolrt.session.session import LatentChunk as LatentChunk
from lolrt.session.session import Session
from lolrt.session.snapshot import Snapshot, SnapshotKind, as_state, from_state
from lolrt.text.encoder import TextEncoder


@dataclass(frozen=True, kw_only=True)
class Chunk(LatentChunk):
    """A chunk and its video frames."""

    decoded: Coming
    """The frames, which may still be in transfer from a GPU."""

    @property
    def frames(self) -> Tensor:
        """The video frames, uint8 [n, height, width, 3] RGB, on the CPU; n is 9 for the first chunk of a stream and 12 for the others
        (Wan's VAE, chunks of 3), unless the stream starts from given frames. Waits until they are decoded. Raises `lolrt.Error` when the
        frames or the latents are not finite."""
        frames, sums = self.decoded.result()
        finite.check(sums, self.first_frame, len(self.latents), decoded=True)
        return frames

    @property
    def n_frames(self) -> int:
        """The number of video frames. Does not wait for them."""
        return len(self.decoded.tensors[0])


class LatentStream:
    """An endless iterator of `LatentChunk`.

    dit: the model. prompt_embeds: [text_tokens, text_dim]. height, width: of a latent frame, in latent pixels. noise: see
    `lolrt.engine.noise.NoiseSource`; by default `Noise(seed, ...)`. start: normalised latents [frames, channels, height, width] that the
    stream goes on from. They are its first chunks; only the first chunk may be shorter than the others. start_frame: the number of the
    first latent frame. kv_dtype: the dtype of the KV cache's pages, by default the model's; torch.int8, on the CPU, and
    torch.float8_e4m3fn, on CUDA, halve bfloat16's memory. Raises `lolrt.Error` when the sizes do not fit the model, and where such pages
    are not supported.
    """

    on_pass: Callable[[int, int], None] | None = None
    """Called after each pass of the model that does not complete its chunk, with the chunk's first latent frame and how many passes it has
    had. A chunk takes one more than its sampler has timesteps; a new prompt, a memory bank and a gate that probes take more. An error of
    the callback leaves the loop, and the next call goes on with that chunk. `StreamEngine.step` is one pass already, and does not call
    it."""

    def __init__(
        self,
        dit: CausalDiT,
        prompt_embeds: Tensor,
        height: int,
        width: int,
        *,
        seed: int = 0,
        noise: NoiseSource | None = None,
        rope: Rope = Rope(),
        window: Window = Window(),
        sampler: Sampler = Sampler(),
        start: Tensor | None = None,
        start_frame: int = 0,
        probe: bool = False,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        config = StreamConfig(
            rope=rope, window=window, sampler=sampler, seed=seed if noise is None else None, start_frame=start_frame, probe=probe
        )
        engine = Engine(dit, height, width, pages=window.pool_pages, kv_dtype=kv_dtype)
        self.session = Session(engine, prompt_embeds, config, noise=noise, start=start)

    @classmethod
    def of(
        cls, engine: Engine, prompt_embeds: Tensor, config: StreamConfig, *, dit: CausalDiT | None = None, start: Tensor | None = None
    ) -> LatentStream:
        """A stream that shares an engine with other streams. Raises `lolrt.Error` when the engine has no room."""
        stream = cls.__new__(cls)
        stream.session = Session(engine, prompt_embeds, config, dit=dit, start=start)
        return stream

    def __iter__(self) -> LatentStream:
        return self

    def __next__(self) -> LatentChunk:
        while True:
            (chunk,) = self.engine.step([self.session])
            if isinstance(chunk, Exception):
                raise chunk
            if chunk is not None:
                return chunk
            if self.on_pass is not None:
                self.on_pass(self.next_frame, self.session.passes_done)

    @property
    def engine(self) -> Engine:
        return self.session.engine

    @property
    def config(self) -> StreamConfig:
        return self.session.config

    @property
    def dit(self) -> CausalDiT:
        return self.session.model.dit

    @property
    def window(self) -> Window:
        return self.config.window

    @property
    def next_frame(self) -> int:
        """The number of the next chunk's first latent frame."""
        return self.session.next_frame

    def set_prompt(self, prompt_embeds: Tensor, *, recache: Recache = "window", over_chunks: int = 1) -> None:
        """Follows another text [text_tokens, text_dim] from the next chunk on.

        recache: which cached frames are run again with the new text: "window" (all but the sinks, as LongLive does), "sinks" (the sinks as
        well; the cache is then that of a stream of this text whose only past is the window's latents) or "none". over_chunks: the new text
        takes over in equal steps over so many chunks, each with its own re-caching. If another switch is still in progress, the new one
        starts from its current mixture.
        May be called from another thread. Raises `lolrt.Error` for a text that does not fit the model.
        """
        self.session.set_prompt(prompt_embeds, recache=recache, over_chunks=over_chunks)

    def set_lora(self, lora: LoRAFiles | None, *, recache: Recache = "window") -> None:
        """Replaces the adapters of the model from the next chunk on ("style.safetensors:0.8", or several; None: no adapters). A LoRA that
        is part of the model stays. Other streams keep their weights.

        The stream gets a model of its own. It shares all weights with the model before, except those that adapters change. The changed
        weights are read from the model's files again, and have the same bits as after `lolrt.load(..., lora=...)`. They take memory twice
        as long as another stream or the pipeline has the old ones. recache: as in `set_prompt`; the keys and values of the past come from
        the old weights.
        Raises `lolrt.Error` while a chunk is in progress, and for a model that was not loaded from files; `lolrt.CheckpointError`
        if the files have changed since, or the adapters do not fit. The stream is then unchanged.
        """
        with self.engine.at_work:
            self.session.check_between_chunks()
        dit = with_lora(self.dit, lora)  # takes long, and other streams of the engine go on meanwhile
        with self.engine.at_work:
            self.session.use(dit, recache)

    def snapshot(self, kind: SnapshotKind = "full") -> Snapshot:
        """See `Session.snapshot`."""
        with self.engine.at_work:
            finish(self.dit.device)
            return self.session.snapshot(kind)

    def restore(self, snapshot: Snapshot) -> None:
        """See `Session.restore`."""
        with self.engine.at_work:
            self.session.restore(snapshot)

    def state_dict(self) -> dict[str, Tensor]:
        """All that a stream made with the same arguments needs to go on from here, bit for bit, and a description of these arguments. The
        tensors are copies, safe to keep."""
        return as_state(self.snapshot())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a saved state and its prompt.

        Raises `lolrt.Error` when the state belongs to another model or size, or to a stream with other arguments, and says which. The
        stream is then unchanged.
        """
        self.restore(from_state(state))


class Stream:
    """An endless iterator of `Chunk`: a latent stream, the VAE that decodes it, and the encoder of its prompts.

    On CUDA a chunk is returned as soon as its work is queued, and is decoded on a separate CUDA stream. If you ask for the next chunk
    before the frames of this one, the GPU works on both at the same time.
    """

    def __init__(self, latent_stream: LatentStream, vae: Codec, encode_text: TextEncoder, prompt: str | None = None) -> None:
        """prompt: the text of the prompt, which is saved in snapshots."""
        self.latent_stream, self.vae, self.encode_text, self.prompt = latent_stream, vae, encode_text, prompt
        self._memory_frames = vae.memory_frames
        self._vae_state: State = {}
        self.undecoded: deque[LatentChunk] = deque()
        """Chunks that the engine has finished and the VAE has not decoded yet. It is not empty after decoding was interrupted or failed."""
        self._decoded: deque[Tensor] = deque()
        """The newest latents that were decoded. The state of the VAE can be made again from them."""
        self._from_start, self._half_decoded = True, False
        self._at_work = Exclusive("the stream")

    def __iter__(self) -> Stream:
        return self

    def set_prompt(self, prompt: str, *, recache: Recache = "window", over_chunks: int = 1) -> None:
        """Follows another prompt from the next chunk on; see `LatentStream.set_prompt`. Raises `lolrt.PromptError`."""
        self.latent_stream.set_prompt(self.encode_text(prompt), recache=recache, over_chunks=over_chunks)
        self.prompt = prompt

    def set_lora(self, lora: LoRAFiles | None, *, recache: Recache = "window") -> None:
        """See `LatentStream.set_lora`."""
        with self._at_work:
            self.latent_stream.set_lora(lora, recache=recache)

    def __next__(self) -> Chunk:
        with self._at_work:
            if not self.undecoded:
                self.undecoded.append(next(self.latent_stream))
            return self.decode_next()

    def decode_next(self) -> Chunk:
        """Decodes the first of the undecoded chunks. If this fails or is interrupted, the next call decodes the last `Codec.memory_frames`
        again, and then this chunk from its beginning."""
        chunk = self.undecoded[0]
        begin = time.perf_counter()
        if self._half_decoded:
            self._carry_anew()
        self._half_decoded = True
        decoded = on_side_stream(lambda latents, sums: decoded_frames(self.vae, latents, sums, self._vae_state), chunk.latents, chunk.sums)
        self._remember(chunk.latents)
        self._half_decoded = False
        if chunk.switch is not None:
            decoded.result()
            decode_ms = 1e3 * (time.perf_counter() - begin)
            chunk = replace(chunk, switch=replace(chunk.switch, total_ms=chunk.switch.total_ms + decode_ms))
        self.undecoded.popleft()
        return Chunk(**vars(chunk), decoded=decoded)

    def _remember(self, latents: Tensor) -> None:
        self._decoded.append(latents.clone())  # a copy: the caller may change the chunk's own latents
        while sum(map(len, self._decoded)) - len(self._decoded[0]) >= self._memory_frames:
            self._decoded.popleft()

    def _carry_anew(self) -> None:
        """Makes the state of the VAE before the first undecoded chunk again: an interrupted decoder has changed a part of it."""
        if not self._from_start and sum(map(len, self._decoded)) < self._memory_frames:
            raise Error("the decoder was stopped in the middle of a chunk soon after a state was restored: restore that state again")
        self._vae_state = {}
        with side_stream(self.latent_stream.dit.device):
            for latents in self._decoded:
                self.vae.decode(latents, self._vae_state)

    def snapshot(self, kind: SnapshotKind = "full") -> Snapshot:
        """See `Session.snapshot`; also holds the state of the VAE. Raises `lolrt.Error` while a chunk is still to be decoded."""
        with self._at_work:
            return self._snapshot(kind)

    def _snapshot(self, kind: SnapshotKind) -> Snapshot:
        if self.undecoded:
            raise Error("the stream's decoder was interrupted in a chunk: ask for that chunk first, or restore an earlier state")
        snapshot = self.latent_stream.snapshot(kind)
        carried = {f"vae.{slot}": frames.clone() for slot, frames in self._vae_state.items()}
        model = {**snapshot.model, "vae": self.vae.description}
        return replace(snapshot, model=model, tensors={**snapshot.tensors, **carried}, prompt=self.prompt)

    def restore(self, snapshot: Snapshot) -> None:
        """See `Session.restore`. Also refuses the snapshot of a stream with another kind of VAE, and that of a `LatentStream`, which has
        no decoder state: the decoder would start in the middle of the video."""
        with self._at_work:
            self._restore(snapshot)

    def _restore(self, snapshot: Snapshot) -> None:
        saved = snapshot.model.get("vae")
        if saved is None:
            raise Error("this is the state of a latent stream, without the frames that a VAE carries: load it into .latent_stream")
        if saved != self.vae.description:
            raise Error(f"the state was saved with {saved}, and this stream has {self.vae.description}: load the model with the same VAE")
        model = {name: value for name, value in snapshot.model.items() if name != "vae"}
        own = {name: x for name, x in snapshot.tensors.items() if not name.startswith("vae.")}
        self.latent_stream.restore(replace(snapshot, model=model, tensors=own))
        device = self.latent_stream.dit.device
        finish(device)
        with side_stream(device):
            carried = {name.removeprefix("vae."): frames for name, frames in snapshot.tensors.items() if name.startswith("vae.")}
            self._vae_state = {slot: frames.to(device, copy=True) for slot, frames in carried.items()}
        self.prompt = snapshot.prompt
        self.undecoded.clear()
        self._decoded.clear()
        self._from_start, self._half_decoded = False, False

    def save(self, path: str | Path, kind: SnapshotKind = "full", *, run: dict[str, Any] | None = None, saver: Saver | None = None) -> None:
        """Writes a snapshot of the stream to a file; `Pipeline.resume` goes on from it. Raises `lolrt.OutputError`.

        kind: "full", which goes on with the same bits, or "light", whose pages are made again (`Session.restore`). run: data that the
        program wants to keep in the snapshot, plain values for JSON. saver: writes the file while the stream goes on; by default the file
        is complete when the call returns.
        """
        if self.latent_stream.config.seed is None:
            raise Error("the noise of this stream is a function that was given, which no file can hold: give a seed instead")
        snapshot = replace(self.snapshot(kind), run=run or {})
        if saver is None:
            snapshot.write(path)
        else:
            saver.write(snapshot, path)

    def state_dict(self) -> dict[str, Tensor]:
        """See `LatentStream.state_dict`; also holds the state of the VAE."""
        return as_state(self.snapshot())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `LatentStream.load_state_dict` and `restore`."""
        self.restore(from_state(state))


def decoded_frames(vae: Codec, latents: Tensor, sums: Tensor, state: State) -> tuple[Tensor, Tensor]:
    """The video frames of a stream's next latents, uint8 [n, height, width, 3], and the sums of the passes followed by the frames' sum."""
    video = vae.decode(latents, state)
    return pixels(video), torch.cat([sums, finite.total(video)[None]])


def pixels(video: Tensor) -> Tensor:
    """Video frames [n, 3, height, width] in [-1, 1] as uint8 [n, height, width, 3]."""
    return video.add(1).mul_(127.5).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
