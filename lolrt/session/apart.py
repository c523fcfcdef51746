"""The DiT and the VAE apart: one rank of torch.distributed makes latents and sends them, another one receives and decodes them.

The receiver asks for a chunk when it has decoded the one before. Until then chunks wait at the sender, and a sender with `ahead` chunks
waiting makes no more. So latents neither pile up nor get lost, and both ranks work at the same time.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from lolrt.errors import Error
from lolrt.models.vae.codec import Codec, State
from lolrt.ops.device import on_side_stream
from lolrt.session.session import LatentChunk
from lolrt.session.stream import Chunk, decoded_frames

Sending = list[tuple[dist.Work, Tensor]]
"""What is on its way, with its memory."""


def send_latents(
    chunks: Iterable[LatentChunk], to: int, *, ahead: int = 2, group: dist.ProcessGroup | None = None
) -> Iterator[LatentChunk]:
    """Sends each chunk to the rank `to`, which runs `decode_latents`, and yields it. When this ends or is closed, the receiver's loop ends;
    when `chunks` raises an error, the receiver's loop raises `lolrt.Error` with its text.

    ahead: how many chunks may wait for the receiver. group: a group of torch.distributed whose backend sends from the CPU's memory, such
    as gloo; by default all ranks. Raises `lolrt.Error` when the other rank is gone.
    """
    waiting: deque[Sending] = deque()

    def send(value: LatentChunk | str | None) -> None:
        if len(waiting) == ahead:
            _sent(waiting.popleft(), to)
        waiting.append(_send(value, to, group))

    def end(reason: str | None) -> None:
        send(reason)
        while waiting:
            _sent(waiting.popleft(), to)

    made = iter(chunks)
    while True:
        try:
            chunk = next(made)
        except StopIteration:
            return end(None)
        except Exception as error:
            end(str(error))
            raise
        send(_on_cpu(chunk))
        try:
            yield chunk
        except GeneratorExit:
            return end(None)


def decode_latents(vae: Codec, source: int, *, group: dist.ProcessGroup | None = None) -> Iterator[Chunk]:
    """Decodes the chunks that the rank `source` sends with `send_latents`, until it has no more. The frames are those of `Pipeline.stream`,
    bit for bit. Raises `lolrt.Error` when the other rank is gone."""
    state: State = {}
    while True:
        chunk = _receive(source, group)
        if chunk is None:
            return
        if isinstance(chunk, str):
            raise Error(f"rank {source}, which makes the latents, has stopped: {chunk}")
        decoded = on_side_stream(lambda latents, sums: decoded_frames(vae, latents, sums, state), chunk.latents, chunk.sums)
        yield Chunk(**vars(chunk), decoded=decoded)


def _on_cpu(chunk: LatentChunk) -> LatentChunk:
    return replace(chunk, latents=chunk.latents.cpu(), sums=chunk.sums.cpu(), mass=None if chunk.mass is None else chunk.mass.cpu())


def _send(value: LatentChunk | str | None, to: int, group: dist.ProcessGroup | None) -> Sending:
    data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
    sending: Sending = []
    for tensor in (torch.tensor([len(data)]), data):
        try:
            work = dist.isend(tensor, to, group)
        except RuntimeError as error:
            raise _gone(to, error) from error
        assert work is not None, "this rank is in the group"
        sending.append((work, tensor))
    return sending


def _sent(sending: Sending, to: int) -> None:
    for work, _ in sending:
        try:
            work.wait()
        except RuntimeError as error:
            raise _gone(to, error) from error


def _receive(source: int, group: dist.ProcessGroup | None) -> LatentChunk | str | None:
    try:
        size = torch.zeros(1, dtype=torch.int64)
        dist.recv(size, source, group)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, source, group)
    except RuntimeError as error:
        raise _gone(source, error) from error
    chunk = pickle.loads(data.numpy().tobytes())  # of a rank of the same program
    assert chunk is None or isinstance(chunk, (LatentChunk, str))
    return chunk


def _gone(rank: int, error: RuntimeError) -> Error:
    return Error(f"rank {rank} is gone, with which this rank shares a stream ({str(error).splitlines()[0][:200]}); start both anew")
