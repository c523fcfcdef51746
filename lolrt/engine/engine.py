"""The engine: runs passes of the DiT on one device, for one session or for many at the same time."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lolrt import ops
from lolrt.engine.graph import GraphedPasses
from lolrt.engine.page_pool import PagePool, page_dtype
from lolrt.errors import Error
from lolrt.exclusive import Exclusive
from lolrt.models.dit import CausalDiT
from lolrt.models.fingerprint import fingerprint
from lolrt.models.pass_inputs import PassInputs, TextContext, join, share
from lolrt.ops.device import upload
from lolrt.positions.rope import spatial_rotation

Result = TypeVar("Result", covariant=True)


class Steps(Protocol[Result]):
    """The interface that an engine steps: a result that is made by several passes, one after another."""

    def pending(self) -> PassInputs:
        """The inputs of the next pass; the same ones until `passed` is called."""

    def passed(self, flow: Tensor) -> Result | None:
        """Takes the flow of that pass. Returns the result if it was the last pass. The flow is valid only during the call."""

    @property
    def model(self) -> Model:
        """The model whose passes these are."""


class Modulations(list[Tensor]):
    """The tensors of `CausalDiT.modulations`. Sessions with the same timesteps share them."""


class Model:
    """The weights of one or more sessions, and what these sessions share."""

    def __init__(self, dit: CausalDiT) -> None:
        self.dit = dit
        self._modulations: weakref.WeakValueDictionary[tuple[float, ...], Modulations] = weakref.WeakValueDictionary()
        # CUDA graphs cannot have the exchanges between ranks.
        self._graphs = GraphedPasses(dit) if dit.device.type == "cuda" and dit.ulysses is None else None

    def run(self, inputs: PassInputs) -> Tensor:
        """Runs a pass; see `CausalDiT.forward`. Raises `lolrt.CheckpointError` if a file has been written that the weights are mapped
        from."""
        flow = (self._graphs if self._graphs is not None and inputs.steady else self.dit)(inputs)
        if self.dit.watched_files is not None:
            self.dit.watched_files.check()
        return flow

    def modulations(self, timesteps: Tensor) -> Modulations:
        """The modulations of timesteps, computed once for all sessions with the same timesteps."""
        key = tuple(timesteps.tolist())
        found = self._modulations.get(key)
        if found is None:
            found = self._modulations[key] = Modulations(self.dit.modulations(timesteps))
        return found

    @cached_property
    def description(self) -> dict[str, Any]:
        """The properties of the weights that a session depends on."""
        return {
            **({"lora": list(self.dit.adapters)} if self.dit.adapters else {}),
            "fingerprint": fingerprint(self.dit.state_dict()).hexdigest(),
            "dtype": str(self.dit.dtype).removeprefix("torch."),
            **({"linear": self.dit.linear} if self.dit.linear != "full" else {}),
        }


class Engine:
    """Runs the passes of models of one architecture on frames of one size, and holds the memory of all its sessions.

    It deals with pages and passes, not with prompts, files or clocks. Sessions can join and leave between any two passes. Sessions with
    adapters have weights of their own.

    dit: the model of sessions that have no other. height, width: the size of a latent frame, in latent pixels. pages: the number of pages
    of the KV cache, for all sessions together. sessions: the number of prompts that it has room for. kv_dtype: the dtype of the pages, by
    default the model's; torch.int8, on the CPU, and torch.float8_e4m3fn, on CUDA, halve bfloat16's memory. batch_invariant: the matrix
    products of each session are computed separately, so that on the CPU no bit depends on the other sessions, even where torch's products
    depend on the number of rows.
    Raises `lolrt.Error` when the sizes do not fit the model, and where such pages are not supported.
    """

    def __init__(
        self,
        dit: CausalDiT,
        height: int,
        width: int,
        *,
        pages: int,
        sessions: int = 1,
        kv_dtype: torch.dtype | None = None,
        batch_invariant: bool = False,
    ) -> None:
        config, device = dit.config, dit.device
        self.dit, self.height, self.width, self.batch_invariant = dit, height, width, batch_invariant
        tokens = dit.tokens_per_frame(height, width)
        stored = page_dtype(kv_dtype, dit.dtype, config.head_dim, device)
        self.pool = PagePool(pages, config.num_layers, tokens, dit.page_heads, config.head_dim, stored, device, dit.ulysses)
        self.latents = torch.zeros(pages, config.in_dim, height, width, dtype=torch.float32, device=device)
        """The inputs of the cache pass, by page. K and V can be made again from them."""
        elements = ops.page_elements(dit.dtype, config.text_len, config.num_heads, config.head_dim, device)
        self._text_pages = torch.empty(config.num_layers, sessions, elements, dtype=dit.dtype, device=device)
        self._free_prompts = list(reversed(range(sessions)))
        self._models: weakref.WeakValueDictionary[int, Model] = weakref.WeakValueDictionary()
        self._spatial: weakref.WeakValueDictionary[float, Tensor] = weakref.WeakValueDictionary()
        self.at_work = Exclusive("the engine")
        """Held during a step, and by other code that reads or changes the same state."""

    def model(self, dit: CausalDiT) -> Model:
        """What all sessions with these weights share."""
        found = self._models.get(id(dit))
        if found is None:
            found = self._models[id(dit)] = Model(dit)
        return found

    @property
    def max_sessions(self) -> int:
        """The number of prompts that it has room for."""
        return self._text_pages.shape[1]

    @property
    def page_bytes(self) -> int:
        """The size of a page in bytes: K and V of all layers, and the latents that they were made from."""
        return self.pool.page_bytes + self.latents[0].nbytes

    @property
    def session_bytes(self) -> int:
        """The bytes that a session takes besides its pages: the keys and values of its prompt."""
        return self._text_pages[:, 0].numel() * self._text_pages.element_size()

    def take_prompt(self) -> TextContext:
        """Memory for the keys and values of one prompt. Raises `lolrt.Error` when there is none left."""
        if not self._free_prompts:
            raise Error(f"the engine is full: it has room for {self.max_sessions} sessions; close one, or make it for more")
        index = self._free_prompts.pop()
        return TextContext(self._text_pages, torch.tensor([index], dtype=torch.int32, device=self.dit.device), index)

    def give_prompt(self, text: TextContext) -> None:
        self._free_prompts.append(text.index)

    def spatial_rotation(self, theta: float) -> Tensor:
        """The rotation of a frame's tokens by row and column, float32 [tokens, pairs, 2]; one tensor for all sessions with the same
        base."""
        found = self._spatial.get(theta)
        if found is None:
            _, patch_height, patch_width = self.dit.config.patch_size
            rows, columns = self.height // patch_height, self.width // patch_width
            row_pairs, column_pairs = (channels // 2 for channels in self.dit.config.axes[1:])
            found = upload(spatial_rotation(rows, columns, row_pairs, column_pairs, theta), self.dit.device)
            self._spatial[theta] = found
        return found

    @torch.inference_mode()
    def step(self, sessions: Sequence[Steps[Result]]) -> list[Result | Exception | None]:
        """Runs one pass of each of these sessions, together. Returns for each session its finished result, the error that it failed with,
        or None.

        The passes run as one pass of the model, whatever kind of pass each session needs; only sessions with different weights or spatial
        rotations run separately. When a session fails, the others go on; it starts its chunk again with the next step. Raises
        `lolrt.Error` if a session is given twice, or while another thread steps.
        """
        if len({id(session) for session in sessions}) < len(sessions):
            raise Error("a session is given twice: a step is one pass of each")
        with self.at_work:
            return self._step(sessions)

    def _step(self, sessions: Sequence[Steps[Result]]) -> list[Result | Exception | None]:
        results: list[Result | Exception | None] = [None] * len(sessions)
        passes: dict[int, PassInputs] = {}
        for i, session in enumerate(sessions):
            try:
                passes[i] = session.pending()
            except Exception as failure:
                results[i] = failure
        together: dict[tuple[Model, int], list[int]] = {}
        for i, one in passes.items():
            together.setdefault((sessions[i].model, id(one.spatial_rotation)), []).append(i)
        for (model, _), members in together.items():
            joined = join([passes[i] for i in members], products_apart=self.batch_invariant)
            flow = model.run(joined)
            share(joined, [passes[i] for i in members])
            for i, own in zip(members, flow.split([passes[i].frames for i in members]), strict=True):
                try:
                    results[i] = sessions[i].passed(own)
                except Exception as failure:
                    results[i] = failure
        return results
