"""A stream on several processes by Ulysses over gloo, against the same stream on one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import ulysses_ranks
from torch import Tensor

import lolrt
from lolrt import ops
from lolrt.models.ulysses import Ulysses
from lolrt.session.snapshot import Snapshot

pytestmark = pytest.mark.whole

CHUNKS = 5  # the window of three is full, and frames have left it
SCRIPT = Path(ulysses_ranks.__file__)


def start(work: Path, ranks: int, chunks: int = CHUNKS, *snapshot: Path) -> list[subprocess.Popen[str]]:
    command = [sys.executable, SCRIPT, work]
    return [
        subprocess.Popen([*map(str, [*command, rank, ranks, chunks, *snapshot])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]


def finished(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    threads = torch.get_num_threads()
    lolrt.set_threads(1)
    made = ulysses_ranks.stream(ulysses_ranks.model())
    chunks = [next(made) for _ in range(CHUNKS)]
    state = made.session.snapshot()
    later = [next(made).latents for _ in range(2)]
    lolrt.set_threads(threads)
    latents = torch.cat([chunk.latents for chunk in chunks])
    return {"latents": latents, "mass": chunks[-1].mass, "pages": state.tensors["cache.pages"], "later": torch.cat(later)}


@pytest.fixture(scope="module", params=[2, 3])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of a run on so many ranks."""
    work = tmp_path_factory.mktemp("ulysses")
    finished(start(work, request.param))
    return work, request.param


def test_several_ranks_make_the_latents_of_one(shared: tuple[Path, int], alone: dict[str, Any]) -> None:
    work, ranks = shared
    found = [torch.load(work / f"rank-{rank}-of-{ranks}.pt") for rank in range(ranks)]
    for one in found:
        assert torch.equal(one["latents"], found[0]["latents"]) and torch.equal(one["mass"], found[0]["mass"]), "all ranks have the same"
        torch.testing.assert_close(one["latents"], alone["latents"], atol=2e-5, rtol=0)
        torch.testing.assert_close(one["mass"], alone["mass"], atol=2e-5, rtol=0)
        for page, wanted in zip(one["pages"].flatten(0, 1), alone["pages"].flatten(0, 1), strict=True):
            found_keys, keys = (ops._packed_keys(of, ulysses_ranks.TOKENS, 6, 32) for of in (page, wanted))
            torch.testing.assert_close(found_keys, keys, atol=1e-4, rtol=0)
        assert ranks * one["own"][2] == alone["pages"].shape[2], "the KV cache is divided"


def test_one_goes_on_from_the_snapshot_of_several(shared: tuple[Path, int], alone: dict[str, Any]) -> None:
    work, ranks = shared
    made = ulysses_ranks.stream(ulysses_ranks.model())
    made.session.restore(Snapshot.read(work / f"of-{ranks}.safetensors"))
    torch.testing.assert_close(torch.cat([next(made).latents for _ in range(2)]), alone["later"], atol=5e-5, rtol=0)


def test_a_rank_that_dies_ends_the_others_and_two_go_on_from_three(tmp_path: Path, alone: dict[str, Any]) -> None:
    finished(start(tmp_path, 3))
    (tmp_path / "meeting-3").unlink(missing_ok=True)
    processes = start(tmp_path, 3, 10_000)
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "0\n"
    processes[1].kill()
    begin = time.monotonic()
    for rank in (0, 2):
        _, said = processes[rank].communicate(timeout=60)
        assert f"rank {rank} has lost another of the 3 ranks" in said and "from its last snapshot" in said
        assert processes[rank].returncode == 1
    assert time.monotonic() - begin < 30
    processes[1].communicate()

    finished(start(tmp_path, 2, 2, tmp_path / "of-3.safetensors"))
    found = torch.load(tmp_path / "rank-0-of-2.pt")
    torch.testing.assert_close(found["latents"], alone["later"], atol=5e-5, rtol=0)


class InThreads(Ulysses):
    """Ranks that are threads of one process, and exchange by a list that all of them see."""

    def __init__(self, heads: int, rank: int, meeting: threading.Barrier, sent: list[Sequence[Tensor]]) -> None:
        self.rank, self.ranks, self.heads, self.meeting, self.sent = rank, meeting.parties, heads // meeting.parties, meeting, sent

    def _exchange(self, pieces: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        self.sent[self.rank] = pieces
        self.meeting.wait()
        received = [from_rank[self.rank].clone() for from_rank in self.sent]
        self.meeting.wait()
        assert [tuple(piece.shape) for piece in received] == [tuple(shape) for shape in shapes]
        return received


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_has_the_bits_of_one_rank(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    frames, tokens, heads, dim, listed, ranks = 2, 20, 6, 32, 4, 3
    q, k, v = torch.randn(3, frames, tokens, heads, dim).to(dtype)
    old_k, old_v = torch.randn(2, 2, tokens, heads, dim).to(dtype)
    weight = torch.rand(heads, dim).to(dtype)
    angle = torch.rand(listed, frames, heads, dim // 2)
    rotation, bias = torch.stack([angle.cos(), angle.sin()], -1), torch.randn(listed, heads)
    spatial = rotation[0, 0, 0].expand(tokens, -1, -1).contiguous()
    table, written, others = (torch.tensor(pages, dtype=torch.int32) for pages in ([3, 0, 2, 1], [2, 1], [0, 3]))

    def pages_of(count: int, own: slice) -> Tensor:
        pages = torch.zeros(4, ops.page_elements(dtype, tokens, count, dim), dtype=dtype)
        ops.kv_write(old_k[:, :, own], old_v[:, :, own], pages, others)
        return pages

    pages, mass = pages_of(heads, slice(None)), torch.empty(listed, frames, heads)
    ops.kv_write(k, v, pages, written, weight=weight, rotation=spatial)
    turned = ops.normalize_queries(q, weight=weight, rotation=spatial)
    expected = ops.frame_attention(turned, pages, table, tokens, rotation=rotation, bias=bias, mass=mass)

    meeting, sent = threading.Barrier(ranks), [()] * ranks

    def rank_of(rank: int) -> tuple[Tensor, Tensor]:
        ulysses = InThreads(heads, rank, meeting, sent)
        own, found = ulysses.own_tokens(tokens), torch.empty_like(mass)
        here = spatial[own]
        mine = [ops.normalize_queries(x[:, own], weight=weight, rotation=here) for x in (q, k)]
        own_pages = pages_of(ulysses.heads, ulysses.own_heads)
        return ulysses.attend(*mine, v[:, own], own_pages, written, table, tokens, rotation, bias, found), found

    with ThreadPoolExecutor(ranks) as threads:
        results = list(threads.map(rank_of, range(ranks)))
    assert torch.equal(torch.cat([out for out, _ in results], 1), expected)
    assert all(torch.equal(found, mass) for _, found in results)


def test_ranks_that_have_not_met_are_refused() -> None:
    with pytest.raises(lolrt.Error, match=r"torch\.distributed is not initialised"):
        ulysses_ranks.model().shard()


def test_the_example_writes_its_video(tmp_path: Path) -> None:
    example, video = Path(__file__).parents[1] / "examples" / "ulysses.py", tmp_path / "v.mp4"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        example,
        "a red car by the sea",
        video,
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    with av.open(str(video)) as file:
        (stream,) = file.streams.video
        sizes = [(frame.height, frame.width) for frame in file.decode(stream)]
        assert len(sizes) == 9 + 9 * 12 and all(height * 96 == width * 64 for height, width in sizes)  # small video is enlarged
