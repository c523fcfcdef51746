"""The cost model of several ranks: it counts the bytes that the ranks really send, and holds at its ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from bench.ranks import HEADS, MEASURED, PREDICTED, Chunk, Link, rows
from lolrt.models.ulysses import Ulysses


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_it_counts_the_bytes_that_a_rank_sends(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = 0

    def all_to_all(received: torch.Tensor, pieces: torch.Tensor, _: list[int], sizes: list[int], group: object) -> None:
        nonlocal sent
        sent += sum(sizes) - sizes[0]  # what stays on rank 0 is not sent

    monkeypatch.setattr(dist, "all_to_all_single", all_to_all)
    frames, tokens, dim = 3, 24, 8
    ulysses = object.__new__(Ulysses)
    ulysses.group, ulysses.rank, ulysses.ranks, ulysses.heads = None, 0, ranks, HEADS // ranks
    own = ulysses.token_counts(tokens)[0]
    chunk = replace(MEASURED, layers=2, tokens=frames * tokens, dim=HEADS * dim, out_channels=16, element_bytes=4)
    for _ in range(chunk.layers):
        ulysses.to_heads(torch.zeros(3, frames, own, HEADS, dim), tokens)
        ulysses.to_tokens(torch.zeros(frames, tokens, HEADS // ranks, dim))
    ulysses.all_tokens(torch.zeros(frames, own, chunk.out_channels), tokens)
    assert sent == chunk.sent(ranks)


def test_a_link_without_cost_divides_all_but_the_decoding() -> None:
    free = Chunk("free", attention=6.0, linear=6.0, vae=1.0, link=Link(float("inf"), 0.0))
    assert [free.ulysses(ranks) for ranks in (1, 2, 5, 12)] == [13.0, 7.0, None, 2.0]
    assert [free.decoded_apart(ranks) for ranks in (1, 2, 3, 13)] == [None, 12.0, 6.0, 1.0]
    assert free.pipeline(free.passes) == 12.0 / free.passes and free.pipeline(3) is None


def test_a_slow_link_makes_more_ranks_slower() -> None:
    slow = replace(PREDICTED, link=Link(0.5, 1000.0))
    one, two = slow.ulysses(1), slow.ulysses(2)
    assert one is not None and two is not None and two > one
    assert all(len(row) == 5 for row in rows(slow))
