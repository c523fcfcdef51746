"""The memory of all sessions of an engine: pages of the KV cache, and pages of their prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from lolrt import _core, ops
from lolrt.errors import Error


def page_dtype(asked: torch.dtype | None, dtype: torch.dtype, head_dim: int, device: torch.device) -> torch.dtype:
    """The element type of the pages of a model of `dtype`: what is asked for, by default its own. Raises `lolrt.Error` where the kernels
    have no such pages: those of float8_e4m3fn are CUDA's, for bfloat16 and heads of 128 channels."""
    if asked is None or asked == dtype:
        return dtype
    try:
        ops.page_elements(asked, 1, 1, head_dim, device)
        fits = asked == torch.float8_e4m3fn and dtype == torch.bfloat16
    except (_core.UnsupportedError, ValueError):
        fits = False
    if not fits:
        named = "cuda" if ops.on_cuda(device) else device.type  # also where a plan is made without one
        raise Error(
            f"pages of {asked} for a model of {dtype} with heads of {head_dim} channels on {named}; expected its own type, or "
            "on CUDA torch.float8_e4m3fn, which goes with bfloat16 and heads of 128 channels"
        )
    return asked


class PagePool:
    """Pages of all layers, [layers, pages, page_elements]; allocated once, written in place, never moved.

    A page holds K and V of one latent frame, of all heads of a layer, and has the same number in every layer. Windows take pages
    (`lolrt.engine.kv_window`) and give them back. A window that is opened reserves as many as it may ever hold, so that it never runs out.
    """

    def __init__(
        self, pages: int, layers: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device = ops.CPU
    ) -> None:
        elements = ops.page_elements(dtype, tokens, heads, head_dim, device)
        self.pages = torch.empty(layers, pages, elements, dtype=dtype, device=device)
        self.layer_pages = self.pages.unbind(0)
        self.page_shape = tokens, heads, head_dim
        self.bookkeeping = _core.Pool(pages)
        self.unreserved_pages = pages

    @property
    def device(self) -> torch.device:
        return self.pages.device

    @property
    def free_pages(self) -> int:
        """Pages that nobody holds now."""
        return self.bookkeeping.free_pages

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers."""
        return self.pages[:, 0].numel() * self.pages.element_size()

    def reserve(self, pages: int) -> None:
        """Raises `lolrt.Error` when fewer are left."""
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
        """Mean over the tokens of a page's keys, float32 [layers, heads, head_dim]."""
        return torch.stack([ops.mean_key(pages[page], *self.page_shape) for pages in self.layer_pages])
