"""The inputs and outputs of one pass of the DiT, for one session or for several at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TextContext:
    """The keys and values of prompts: one page for each prompt and layer."""

    pages: Tensor
    """[layers, prompts, page_elements]"""
    page_table: Tensor
    """int32 [1]: the index of this prompt's page."""
    index: int = 0
    """The same index, on the host."""


@dataclass(frozen=True)
class PassInputs:
    """A pass over some latent frames, in `batch` groups of equal size; each group attends to its own row of the page table.

    The chunk of a single session is one group. With several sessions each frame is a group of its own, so that chunks of any sizes can be
    joined (`join`).
    """

    sample: Tensor
    """[frames, in_dim, height, width], any float dtype."""
    modulation: Tensor
    """float32 [1 or frames, 6 * layers + 2, dim], see `CausalDiT.modulations`."""
    layer_pages: Sequence[Tensor]
    """[pool pages, page_elements] of each layer."""
    page_table: Tensor
    """int32 [batch, pages]: the pages that a group attends to; -1 is an absent page."""
    write_table: Tensor
    """int32 [frames]: the page that each frame's K and V are written to."""
    rotation: Tensor
    """float32 [1 or layers, batch, pages, frames / batch, heads, pairs, 2]"""
    spatial_rotation: Tensor
    """float32 [tokens, pairs, 2]"""
    text_pages: Tensor
    """[layers, prompts, page_elements]"""
    text_table: Tensor
    """int32 [batch, 1]: each group's prompt."""
    bias: Tensor | None = None
    """float32 [1 or layers, batch, pages, heads], added to the scores of self-attention."""
    mass: Tensor | None = None
    """float32 [layers, batch, pages, frames / batch, heads], filled with the attention mass."""
    queries: Sequence[tuple[slice, Tensor]] = ()
    """Pairs of frames and a tensor, float32 [layers, heads, head_dim], that is filled with the mean query of their tokens, not rotated by
    time."""
    product_frames: Sequence[int] = ()
    """The sizes of the pieces of `sample` whose matrix products are computed separately; by default `sample` is one piece."""
    steady: bool = False
    """Whether later passes have the same shapes and the same memory, so that they can replay a CUDA graph of this one."""

    @property
    def frames(self) -> int:
        return len(self.sample)


def join(passes: Sequence[PassInputs], *, products_apart: bool = False) -> PassInputs:
    """Joins passes of one pool and one spatial rotation to one pass; `share` distributes its results. A single pass is returned as it is.

    products_apart: each pass has its own matrix products, so that no result depends on the number of rows that a library multiplies at
    once.
    """
    if len(passes) == 1:
        return passes[0]
    first = passes[0]
    pages = max(one.page_table.shape[1] for one in passes)
    layers = max(len(one.rotation) for one in passes)

    def filled(x: Tensor, layers: int) -> Tensor:
        """[1 or layers, 1, pages, ...] padded to [layers, 1, all pages, ...]; the padding belongs to absent pages."""
        grown = F.pad(x, (0, 0) * (x.ndim - 3) + (0, pages - x.shape[2]))
        return grown.expand(layers, *grown.shape[1:])

    tables = [F.pad(one.page_table, (0, pages - one.page_table.shape[1]), value=-1).expand(one.frames, -1) for one in passes]
    rotation = [filled(one.rotation, layers).transpose(1, 3) for one in passes]
    bias = None
    if any(one.bias is not None for one in passes):
        deep = max(len(one.bias) for one in passes if one.bias is not None)
        heads = first.rotation.shape[4]
        zeros = first.rotation.new_zeros(1, 1, 1, heads)
        biases = [filled(zeros if one.bias is None else one.bias, deep).expand(-1, one.frames, -1, -1) for one in passes]
        bias = torch.cat(biases, dim=1)
    frames = sum(one.frames for one in passes)
    mass = None
    if any(one.mass is not None for one in passes):
        mass = first.rotation.new_empty(len(first.layer_pages), frames, pages, 1, first.rotation.shape[4])
    alike = all(one.modulation is first.modulation for one in passes)
    starts = [sum(one.frames for one in passes[:i]) for i in range(len(passes))]
    return PassInputs(
        sample=torch.cat([one.sample for one in passes]),
        modulation=first.modulation if alike else torch.cat([one.modulation.expand(one.frames, -1, -1) for one in passes]),
        layer_pages=first.layer_pages,
        page_table=torch.cat(tables),
        write_table=torch.cat([one.write_table for one in passes]),
        rotation=torch.cat(rotation, dim=1),
        spatial_rotation=first.spatial_rotation,
        text_pages=first.text_pages,
        text_table=torch.cat([one.text_table.expand(one.frames, -1) for one in passes]),
        bias=bias,
        mass=mass,
        queries=[
            (slice(start + frames.start, start + frames.stop), query)
            for start, one in zip(starts, passes, strict=True)
            for frames, query in one.queries
        ],
        product_frames=[one.frames for one in passes] if products_apart else (),
    )


def share(joined: PassInputs, passes: Sequence[PassInputs]) -> None:
    """Copies the attention mass that the joined pass has measured to each of its passes."""
    if joined.mass is None or len(passes) == 1:
        return
    start = 0
    for one in passes:
        if one.mass is not None:
            one.mass.copy_(joined.mass[:, start : start + one.frames, : one.page_table.shape[1]].transpose(1, 3))
        start += one.frames
