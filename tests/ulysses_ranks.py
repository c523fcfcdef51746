"""A rank of a stream on several: `python tests/ulysses_ranks.py WORK RANK RANKS CHUNKS [SNAPSHOT]`.

Makes chunks of a small model in WORK, from a snapshot if one is named, and leaves what the test looks at in `rank-RANK-of-RANKS.pt`.
"""

from __future__ import annotations

import datetime
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import lolrt
from lolrt.session.snapshot import Snapshot

TOKENS = 20  # no multiple of 3


def model() -> lolrt.CausalDiT:
    torch.manual_seed(0)
    config = lolrt.DiTConfig(dim=192, ffn_dim=256, freq_dim=32, text_dim=16, text_len=8, in_dim=4, out_dim=4, num_heads=6, num_layers=2)
    dit = lolrt.CausalDiT(config).requires_grad_(False)
    for parameter in dit.parameters():
        if parameter.ndim == 1:  # no bias and no norm that hides a mistake
            parameter.add_(0.1 * torch.randn_like(parameter))
    return dit


def stream(dit: lolrt.CausalDiT) -> lolrt.LatentStream:
    prompt = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    gate = lolrt.SinkGate(bias=-2.0)
    window = lolrt.Window(sink_frames=3, recent_frames=6, gate=gate)
    sampler = lolrt.Sampler(timesteps=(1000, 500))
    return lolrt.LatentStream(dit, prompt, 8, 10, seed=3, rope=lolrt.Rope(sigma=0.8), window=window, sampler=sampler, probe=True)


def main() -> None:
    work, rank, ranks, chunks = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    lolrt.set_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{work}/meeting-{ranks}", rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=60)
    )
    dit = model()
    dit.shard()
    made = stream(dit)
    if len(sys.argv) > 5:
        made.session.restore(Snapshot.read(sys.argv[5]))
    latents, mass = [], []
    try:
        for _ in range(chunks):
            chunk = next(made)
            latents.append(chunk.latents)
            mass.append(chunk.mass)
            print(chunk.first_frame, flush=True)
    except lolrt.Error as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)  # gloo's threads may abort the process when a group that has lost a rank is taken down
    snapshot = made.session.snapshot()
    torch.save(
        {"latents": torch.cat(latents), "mass": mass[-1], "pages": snapshot.tensors["cache.pages"], "own": made.engine.pool.pages.shape},
        work / f"rank-{rank}-of-{ranks}.pt",
    )
    if rank == 0:
        snapshot.write(work / f"of-{ranks}.safetensors")


if __name__ == "__main__":
    main()
