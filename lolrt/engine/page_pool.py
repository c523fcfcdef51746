"""The memory of all sessions of an engine: pages of the KV cache, and pages of their prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lolrt import _core, ops
from lolrt.errors import Error
from lolrt.models.ulysses import Ulysses


def page_dtype(asked: torch.dtype | None, dtype: torch.dtype, head_dim: int, device: torch.device) -> torch.dtype:
    """The element type of the pages of a model of `dtype`: the one asked for, by default `dtype`. Raises `lolrt.Error` if the kernels do
    not support it: int8 needs the CPU, float8_e4m3fn needs CUDA, bfloat16 and heads of 128 channels."""
    if asked is None or asked == dtype:
        return dtype
    try:
        fits = not ops.on_cuda(device) if asked == torch.int8 else asked == torch.float8_e4m3fn and dtype == torch.bfloat16
        if fits:
            ops.page_elements(asked, 1, 1, head_dim, device)
    except (_core.UnsupportedError, ValueError):
        fits = False
    if not fits:
        named = "cuda" if ops.on_cuda(device) else device.type  # also when a memory plan is made on a machine without one
        raise Error(
            f"pages of {asked} for a model of {dtype} with heads of {head_dim} channels on {named}; expected its own type, on the CPU "
            "torch.int8, or on CUDA torch.float8_e4m3fn, which goes with bfloat16 and heads of 128 channels"
        )
    return asked


class PagePool:
    """Pages of all layers, [layers, pages, page_elements]; allocated once, written in place, never moved.

    A page holds K and V of one latent frame for all heads of a layer, and has the same index in every layer. Windows take pages
    (`lolrt.engine.kv_window`) and give them back. A new window reserves the most pages that it can ever hold, so it never runs out.

    ulysses: the ranks, if several of them share the heads of a page; `heads` is then the number on this rank.
    """

    def __init__(
        self,
        pages: int,
        layers: int,
        tokens: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device = ops.CPU,
        ulysses: Ulysses | None = None,
    ) -> None:
        elements = ops.page_elements(dtype, tokens, heads, head_dim, device)
        self.pages = torch.empty(layers, pages, elements, dtype=dtype, device=device)
        self.layer_pages = self.pages.unbind(0)
        self.page_shape = tokens, heads, head_dim
        self.ulysses = ulysses
        self.bookkeeping = _core.Pool(pages)
        self.unreserved_pages = pages

    @property
    def device(self) -> torch.device:
        return self.pages.device

    @property
    def free_pages(self) -> int:
        """The number of pages that nobody holds."""
        return self.bookkeeping.free_pages

    @property
    def page_bytes(self) -> int:
        """The bytes of one page in all layers."""
        return self.pages[:, 0].numel() * self.pages.element_size()

    @property
    def saved_elements(self) -> int:
        """Elements of a page with the heads of all ranks, as snapshots have it."""
        return self.pages.shape[2] * (1 if self.ulysses is None else self.ulysses.ranks)

    def read(self, pages: Tensor | Sequence[int]) -> Tensor:
        """Copies of some pages with the heads of all ranks, [layers, n, saved_elements]. Every rank has to ask for the same ones."""
        own = self.pages[:, pages]
        if self.ulysses is None:
            return own
        keys, values = (self.ulysses.all_heads(part.contiguous(), 2) for part in self._halves(own, 1))
        return torch.cat([keys, values], 2)

    def write(self, pages: Tensor | Sequence[int], saved: Tensor) -> None:
        """Puts back what `read` gave."""
        if self.ulysses is not None:
            ranks, rank = self.ulysses.ranks, self.ulysses.rank
            saved = torch.cat([part.chunk(ranks, 2)[rank] for part in self._halves(saved, ranks)], 2)
        self.pages[:, pages] = saved.to(self.device)

    def _halves(self, pages: Tensor, ranks: int) -> tuple[Tensor, ...]:
        """The K part and the V part of pages [layers, n, elements] of the heads of so many ranks: each is head by head, without padding
        between (lolrt.h). Raises `lolrt.Error` for pages in 8 bits, where scales follow the parts."""
        tokens, heads, dim = self.page_shape
        if pages.dtype.itemsize == 1:
            raise Error("pages in 8 bits cannot be saved from several ranks, nor put back on them: keep them in the model's own type")
        rows = -(-tokens // 16) * 16 if not self.pages.is_cuda else tokens
        return pages.split([ranks * heads * rows * dim, pages.shape[2] - ranks * heads * rows * dim], 2)

    def reserve(self, pages: int) -> None:
        """Reserves pages. Raises `lolrt.Error` when fewer are left."""
        if pages > self.unreserved_pages:
            needed, free = (f"{count} ({count * self.page_bytes / 2**20:.1f} MiB)" for count in (pages, self.unreserved_pages))
            raise Error(
                f"the session needs {needed} pages of the KV cache, and {free} of {self.pages.shape[1]} are free: close another session, "
                "give it a smaller window, or make the engine for more sessions or memory"
            )
        self.unreserved_pages -= pages

    def unreserve(self, pages: int) -> None:
        self.unreserved_pages += pages

    def mean_key(self, page: int) -> Tensor:
        """The mean over the tokens of a page's keys, float32 [layers, heads, head_dim]."""
        return torch.stack([ops.mean_key(pages[page], *self.page_shape) for pages in self.layer_pages])
