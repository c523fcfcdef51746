"""Packages for the session library (csrc/session): a pipeline compiled by AOTInductor, which streams in a process without Python.

A package is a folder, for one window, policy and size of video. `pass.pt2`, `text.pt2`, `decode_first.pt2` and `decode.pt2` are the
functions of the model, each compiled for one set of shapes: a pass of the DiT over the whole window, in which -1 stands for pages that are
not there yet; the keys and values of a text; the decoder on a stream's first latent frame, and on a later one. `stream.pt` has what else a
stream needs and does not depend on it: the text's embedding, modulations, noise levels, phases, sizes, and the description in its
snapshots.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from lolrt.engine import finite
from lolrt.engine.kv_window import Window
from lolrt.engine.sampler import Sampler
from lolrt.errors import Error
from lolrt.models.dit import CausalDiT
from lolrt.models.pass_inputs import PassInputs
from lolrt.models.vae.codec import State
from lolrt.models.vae.decoder import StreamingDecoder
from lolrt.models.vae.wan import CausalVAE
from lolrt.pipeline import Pipeline
from lolrt.positions.rope import Rope
from lolrt.session.config import to_plain
from lolrt.session.session import Session
from lolrt.session.stream import LatentStream, pixels

# The version of the folder. The session library opens no other.
FORMAT = 1


def package(
    pipe: Pipeline, folder: str | Path, *, rope: Rope | None = None, window: Window | None = None, sampler: Sampler | None = None
) -> None:
    """Compiles a pipeline into a folder that `lolrt_session_open` opens. It takes a C++ compiler, and minutes.

    rope, window, sampler: those of its streams, by default the model's own. Raises `lolrt.Error` for what a package cannot hold: models on
    CUDA, on several ranks or in 8 bits, other decoders than Wan's, windows with a gate, recalled or skipped pages, and windows that are not
    whole chunks.
    """
    rope, window, sampler = rope or pipe.rope, window or pipe.window, sampler or pipe.sampler
    _check(pipe, window)
    assert isinstance(pipe.vae, CausalVAE)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stream.pt").unlink(missing_ok=True)  # it comes last: a folder without it is not whole
    height, width = pipe.latent_size
    text = torch.zeros(pipe.dit.config.text_len, pipe.dit.config.text_dim)
    stream = LatentStream(pipe.dit, text, height, width, rope=rope, window=window, sampler=sampler)
    session = stream.session
    with torch.no_grad():
        _compile(_Pass(pipe.dit, session), _pass_inputs(session), folder / "pass.pt2")
        embedded = torch.zeros(len(text), pipe.dit.config.dim, dtype=pipe.dit.dtype)
        _compile(_Text(pipe.dit), (embedded, list(session.text.pages.clone().unbind(0))), folder / "text.pt2")
        decoder, latent = StreamingDecoder(pipe.vae.decoder), torch.zeros(1, pipe.dit.config.in_dim, height, width)
        state: State = {}
        pipe.vae.decode_by(decoder, latent, state)
        names = sorted(state)
        _compile(_Decode(pipe.vae, decoder, names), (latent, []), folder / "decode_first.pt2")
        _compile(_Decode(pipe.vae, decoder, names), (latent, [state[name].clone() for name in names]), folder / "decode.pt2")
    torch.save(_stream(pipe, stream, names), folder / "stream.pt")


def _check(pipe: Pipeline, window: Window) -> None:
    dit = pipe.dit
    if dit.device.type != "cpu" or dit.ulysses is not None or dit.linear != "full":
        raise Error("a package is for one process on the CPU, and its linear layers are not in 8 bits: load the model so")
    if not isinstance(pipe.vae, CausalVAE):
        raise Error(f"a package has Wan's decoder, and this model was loaded with {pipe.vae.description}: load it with its full VAE")
    if window.gate.bias or window.recall_frames or window.skip:
        raise Error("the window has a gate, recalled frames or skipped pages, which no package can hold: give a window without them")
    if window.sink_frames % window.chunk_frames or window.recent_frames % window.chunk_frames:
        raise Error(
            f"the window has {window.sink_frames} sinks and {window.recent_frames} recent frames; in a package both are multiples of "
            f"chunk_frames, {window.chunk_frames}"
        )


class _Pass(nn.Module):
    """A pass of the DiT as a function of what changes from pass to pass."""

    spatial_rotation: Tensor
    text_table: Tensor

    def __init__(self, dit: CausalDiT, session: Session) -> None:
        super().__init__()
        self.dit = dit
        self.register_buffer("spatial_rotation", session.spatial_rotation.clone())
        self.register_buffer("text_table", torch.zeros(1, 1, dtype=torch.int32))

    def forward(
        self, sample: Tensor, modulation: Tensor, page_table: Tensor, write_table: Tensor, rotation: Tensor, text_pages: Tensor,
        layer_pages: Sequence[Tensor],
    ) -> Tensor:  # fmt: skip
        return self.dit(
            PassInputs(
                sample=sample, modulation=modulation, layer_pages=layer_pages, page_table=page_table, write_table=write_table,
                rotation=rotation, spatial_rotation=self.spatial_rotation, text_pages=text_pages, text_table=self.text_table,
            )
        )  # fmt: skip


def _pass_inputs(session: Session) -> tuple[Any, ...]:
    """Inputs of `_Pass` over a whole window, of the right shapes."""
    window, config, pool = session.config.window, session.model.dit.config, session.engine.pool
    frames, pages = window.chunk_frames, window.pages
    tables = len(session.increments), 1, pages, frames, config.num_heads, config.temporal_pairs, 2
    page_table = torch.arange(pages, dtype=torch.int32)
    return (
        torch.zeros(frames, *session.engine.latents.shape[1:]),
        session.modulations[0].clone(),
        page_table[None],
        page_table[pages - frames :].clone(),
        torch.zeros(tables),
        session.text.pages.clone(),
        [page.clone() for page in pool.layer_pages],
    )


class _Text(nn.Module):
    """`CausalDiT.write_text` for one prompt."""

    page_table: Tensor

    def __init__(self, dit: CausalDiT) -> None:
        super().__init__()
        self.dit = dit
        self.register_buffer("page_table", torch.zeros(1, dtype=torch.int32))

    def forward(self, text: Tensor, layer_pages: Sequence[Tensor]) -> None:
        self.dit.write_text(text, layer_pages, self.page_table)


class _Decode(nn.Module):
    """The video frames of the next latent frame, uint8 [1 or 4, height, width, 3], and the sum of the video. The state, by `names`, is
    updated in place; for a stream's first latent frame it is not given, and is returned."""

    def __init__(self, vae: CausalVAE, decoder: StreamingDecoder, names: Sequence[str]) -> None:
        super().__init__()
        self.vae, self.decoder, self.names = vae, decoder, names

    def forward(self, latent: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        carried: State = dict(zip(self.names, state, strict=False))
        video = self.vae.decode_by(self.decoder, latent, carried)
        made = [] if state else [carried[name] for name in self.names]
        return pixels(video), finite.total(video), *made


def _compile(module: nn.Module, inputs: tuple[Any, ...], path: Path) -> None:
    exported = torch.export.export(module, inputs, strict=False)
    torch._inductor.aoti_compile_and_package(exported, package_path=str(path))


def _stream(pipe: Pipeline, stream: LatentStream, vae_state: list[str]) -> dict[str, Any]:
    """What the session library reads: plain values and tensors."""
    session, config, engine = stream.session, stream.config, stream.engine
    sampler, rope, window = config.sampler, config.rope, config.window
    first = sampler.first if sampler.first_timesteps else sampler
    model = {**session.description, "vae": pipe.vae.description}
    return {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "description": json.dumps({"config": to_plain(config), "model": model}, sort_keys=True),
        "fps": pipe.fps,
        "dtype": str(pipe.dit.dtype).removeprefix("torch."),
        "latent_size": list(engine.latents.shape[1:]),
        "pages_size": list(engine.pool.pages.shape),
        "text_size": [pipe.dit.config.text_len, pipe.dit.config.text_dim],
        "text_pages_size": list(session.text.pages.shape),
        # This part is not compiled: a GELU that is has other bits than torch's.
        "text_embedding": [parameter.detach().clone() for parameter in pipe.dit.text_embedding.parameters()],
        "sink_frames": window.sink_frames,
        "recent_frames": window.recent_frames,
        "chunk_frames": window.chunk_frames,
        "positions": rope.positions,
        "anchor_frames": rope.anchor_frames,
        "amplitude": rope.amplitude,
        "increments": torch.from_numpy(session.increments.view("int64")),  # units of 2^-64 turns, unsigned
        "context_noise": sampler.context_noise,
        "first_steps": first.steps,
        "first_modulations": torch.stack(session.model.modulations(first.model_timesteps)),
        "steps": sampler.steps,
        "modulations": torch.stack(session.model.modulations(sampler.model_timesteps)),
        "vae_state": vae_state,
    }
