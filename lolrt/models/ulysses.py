"""Runs one DiT on several devices by sequence parallelism: the linear layers divide the tokens, attention divides the heads.

Every rank runs the same stream. Between linear layers and attention the ranks exchange their parts, twice per layer: from some tokens with
all heads to all tokens with some heads, and back. So a rank keeps only the pages of its own heads, and the KV memory is divided. Source:
DeepSpeed
Ulysses (arXiv 2309.14509). The norm over all heads of a token and the spatial rotation come before the exchange, while a rank has all
heads of its tokens. So attention has the same bits as on one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from lolrt import ops
from lolrt.errors import Error


class Ulysses:
    """The part of one rank in a model of `heads` heads. group: a group of torch.distributed; by default all ranks.

    Raises `lolrt.Error` when the number of ranks does not divide the heads, or torch.distributed is not initialised.
    """

    def __init__(self, heads: int, group: dist.ProcessGroup | None = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise Error(
                'torch.distributed is not initialised: call torch.distributed.init_process_group("gloo"), or "nccl" for GPUs, first'
            )
        self.group, self.rank, self.ranks = group, dist.get_rank(group), dist.get_world_size(group)
        if heads % self.ranks:
            raise Error(f"{self.ranks} ranks do not divide {heads} heads; expected a number of ranks that does")
        self.heads = heads // self.ranks
        """The number of heads of a rank."""

    @cached_property
    def own_heads(self) -> slice:
        return slice(self.rank * self.heads, (self.rank + 1) * self.heads)

    def token_counts(self, tokens: int) -> list[int]:
        """The number of a frame's tokens on each rank; they differ by at most one."""
        return [tokens // self.ranks + (rank < tokens % self.ranks) for rank in range(self.ranks)]

    def own_tokens(self, tokens: int) -> slice:
        ends = list(accumulate(self.token_counts(tokens)))
        return slice(ends[self.rank] - self.token_counts(tokens)[self.rank], ends[self.rank])

    def all_tokens(self, x: Tensor, tokens: int) -> Tensor:
        """Gathers each rank's tokens, [frames, own tokens, channels], to all tokens, [frames, tokens, channels]."""
        frames, _, channels = x.shape
        pieces = self._exchange([x] * self.ranks, [(frames, count, channels) for count in self.token_counts(tokens)])
        return torch.cat(pieces, 1)

    def to_heads(self, x: Tensor, tokens: int) -> Tensor:
        """Exchanges all heads of this rank's tokens, [n, frames, own tokens, heads, dim], for this rank's heads of all tokens, [n, frames,
        tokens, own heads, dim]."""
        n, frames, _, _, dim = x.shape
        shapes = [(n, frames, count, self.heads, dim) for count in self.token_counts(tokens)]
        return torch.cat(self._exchange(x.split(self.heads, 3), shapes), 2)

    def to_tokens(self, x: Tensor) -> Tensor:
        """Exchanges this rank's heads of all tokens, [frames, tokens, own heads, dim], for all heads of this rank's tokens, [frames, own
        tokens, heads, dim]."""
        frames, tokens, heads, dim = x.shape
        counts = self.token_counts(tokens)
        pieces = self._exchange(x.split(counts, 1), [(frames, counts[self.rank], heads, dim)] * self.ranks)
        return torch.cat(pieces, 2)

    def all_heads(self, x: Tensor, dim: int) -> Tensor:
        """Gathers a tensor of each rank's heads to one of all heads, along a dimension."""
        return torch.cat(self._exchange([x] * self.ranks, [tuple(x.shape)] * self.ranks), dim)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pages: Tensor,
        write_table: Tensor,
        page_table: Tensor,
        tokens: int,
        rotation: Tensor,
        bias: Tensor | None,
        mass: Tensor | None,
    ) -> Tensor:
        """Self-attention of this rank's tokens of q, k and v, [frames, own tokens, heads, dim], which are normalised and rotated
        spatially. Returns the same shape. tokens: the tokens of a frame. rotation, bias and mass have all heads, pages only this rank's
        heads."""
        q, k, v = self.to_heads(torch.stack([q, k, v]), tokens).unbind(0)
        ops.kv_write(k, v, pages, write_table)
        own = self.own_heads
        measured = None if mass is None else torch.empty_like(mass[..., own], memory_format=torch.contiguous_format)
        out = ops.frame_attention(
            q, pages, page_table, tokens,
            rotation=rotation[..., own, :, :].contiguous(),
            bias=None if bias is None else bias[..., own].contiguous(),
            mass=measured,
        )  # fmt: skip
        if mass is not None and measured is not None:
            mass.copy_(self.all_heads(measured, -1))
        return self.to_tokens(out)

    def _exchange(self, pieces: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Sends a piece to each rank, and returns the pieces that the ranks send, in these shapes."""
        sent = torch.cat([piece.reshape(-1) for piece in pieces])
        counts = [torch.Size(shape).numel() for shape in shapes]
        received = sent.new_empty(sum(counts))
        size = sent.element_size()
        try:
            dist.all_to_all_single(
                received.view(torch.uint8),
                sent.view(torch.uint8),
                [size * count for count in counts],
                [size * piece.numel() for piece in pieces],
                self.group,
            )
        except RuntimeError as error:
            raise Error(
                f"rank {self.rank} has lost another of the {self.ranks} ranks of this stream ({str(error).splitlines()[0][:200]}); go on "
                "from its last snapshot, on the ranks that are left or on new ones"
            ) from error
        return [piece.view(shape) for piece, shape in zip(received.split(counts), shapes, strict=True)]
