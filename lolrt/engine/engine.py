"""The engine: runs passes of the DiT on one device, for one session or for many at a time."""

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
    """What an engine steps: something that is made by passes, one after another."""

    def pending(self) -> PassInputs:
        """The next pass; the same one until `passed` is called."""

    def passed(self, flow: Tensor) -> Result | None:
        """Takes the flow of that pass; returns what is made when it was the last of its passes. The flow is valid during the call."""


class Modulations(list[Tensor]):
    """As of `CausalDiT.modulations`; sessions with the same timesteps share them."""


class Engine:
    """Passes of one model over frames of one size, and the memory of the sessions that they are of.

    It knows pages and passes, and neither prompts nor files nor clocks. Sessions join and leave between any two passes.

    dit: the model. height, width: of a latent frame, in latent pixels. pages: of the KV cache, for all sessions together; sessions: how
    many prompts it has room for. kv_dtype: of the pages, by default the model's; torch.float8_e4m3fn, on CUDA, halves them.
    batch_invariant: each session's matrix products are computed apart, so that on the CPU no bit depends on the other sessions even where
    torch's products depend on how many rows they multiply. Raises `lolrt.Error` when the sizes do not fit the model, and where there are
    no such pages.
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
        """What the cache pass read, by page: with it K and V can be made again."""
        elements = ops.page_elements(dit.dtype, config.text_len, config.num_heads, config.head_dim, device)
        self._text_pages = torch.empty(config.num_layers, sessions, elements, dtype=dit.dtype, device=device)
        self._free_prompts = list(reversed(range(sessions)))
        self._modulations: weakref.WeakValueDictionary[tuple[float, ...], Modulations] = weakref.WeakValueDictionary()
        self._spatial: weakref.WeakValueDictionary[float, Tensor] = weakref.WeakValueDictionary()
        self.at_work = Exclusive("the engine")
        """Held while it steps, and by whoever reads or changes what a step changes."""
        self._graphs = _graphs_of(dit)

    def use(self, dit: CausalDiT) -> None:
        """Runs another model of the same sizes from the next pass on. What sessions have from the one before (modulations, keys and values
        of their prompts, pages) stays that one's until they make it anew."""
        self.dit = dit
        self._modulations.clear()
        self.__dict__.pop("description", None)
        self._graphs = _graphs_of(dit)

    @property
    def max_sessions(self) -> int:
        """How many prompts it has room for."""
        return self._text_pages.shape[1]

    @cached_property
    def description(self) -> dict[str, Any]:
        """What a session depends on: one that was saved goes on in an engine of which the same is true."""
        return {
            **({"lora": list(self.dit.adapters)} if self.dit.adapters else {}),
            "fingerprint": fingerprint(self.dit.state_dict()).hexdigest(),
            "dtype": str(self.dit.dtype).removeprefix("torch."),
            "pages": str(self.pool.pages.dtype).removeprefix("torch."),
            "device": self.dit.device.type,
            "latent_size": [self.height, self.width],
        }

    @property
    def page_bytes(self) -> int:
        """What a page takes: K and V of all layers, and the latents that they were made of."""
        return self.pool.page_bytes + self.latents[0].nbytes

    @property
    def session_bytes(self) -> int:
        """What a session takes beside its pages: keys and values of its prompt."""
        return self._text_pages[:, 0].numel() * self._text_pages.element_size()

    def take_prompt(self) -> TextContext:
        """Memory for the keys and values of one prompt. Raises `lolrt.Error` when there is none left."""
        if not self._free_prompts:
            raise Error(f"the engine is full: it has room for {self.max_sessions} sessions; close one, or make it for more")
        index = self._free_prompts.pop()
        return TextContext(self._text_pages, torch.tensor([index], dtype=torch.int32, device=self.dit.device), index)

    def give_prompt(self, text: TextContext) -> None:
        self._free_prompts.append(text.index)

    def modulations(self, timesteps: Tensor) -> Modulations:
        """What the model is told of each timestep, once for all sessions that ask for the same ones."""
        key = tuple(timesteps.tolist())
        found = self._modulations.get(key)
        if found is None:
            found = self._modulations[key] = Modulations(self.dit.modulations(timesteps))
        return found

    def spatial_rotation(self, theta: float) -> Tensor:
        """The rotation of a frame's tokens by row and column, float32 [tokens, pairs, 2]; one tensor for all sessions of the same base."""
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
        """One pass of each of these sessions, together; of each what it has finished by it, the error that it failed with, or None.

        Whatever kind of pass comes next for a session, they run as one pass of the model, save where spatial rotations differ. When a
        session fails the others go on; it begins its chunk anew with the next step. Raises `lolrt.Error` for a session that is given
        twice, and while another thread steps.
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
        together: dict[int, list[int]] = {}
        for i, one in passes.items():
            together.setdefault(id(one.spatial_rotation), []).append(i)
        for members in together.values():
            joined = join([passes[i] for i in members], products_apart=self.batch_invariant)
            run = self._graphs if self._graphs is not None and joined.steady else self.dit
            flow = run(joined)
            share(joined, [passes[i] for i in members])
            for i, own in zip(members, flow.split([passes[i].frames for i in members]), strict=True):
                try:
                    results[i] = sessions[i].passed(own)
                except Exception as failure:
                    results[i] = failure
        return results


def _graphs_of(dit: CausalDiT) -> GraphedPasses | None:
    """CUDA graphs of its passes; none where ranks exchange parts of them."""
    return GraphedPasses(dit) if dit.device.type == "cuda" and dit.ulysses is None else None
