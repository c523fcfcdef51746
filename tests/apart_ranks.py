"""A rank of a stream whose latents are decoded on another: `python tests/apart_ranks.py WORK RANK CHUNKS`.

Rank 0 makes latents of `tiny`, and writes the first frame of each chunk that it has made to WORK/made. Rank 1 begins to decode when
WORK/begin is there, and leaves the frames in WORK/frames.pt. With CHUNKS 0, rank 0 fails in the third chunk.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist

import lolrt

PROMPT, SEED = "a red balloon over the hills at dusk", 4


def failing(chunks: Iterator[lolrt.LatentChunk]) -> Iterator[lolrt.LatentChunk]:
    yield from islice(chunks, 2)
    raise lolrt.Error("the third chunk is not to be")


def main() -> None:
    work, rank, count = Path(sys.argv[1]), *map(int, sys.argv[2:4])
    lolrt.set_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{work}/meeting", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    pipe = lolrt.load("tiny")
    try:
        if rank == 0:
            stream = pipe.latent_stream(PROMPT, seed=SEED)
            for chunk in lolrt.send_latents(islice(stream, count) if count else failing(stream), to=1):
                with open(work / "made", "a") as made:
                    made.write(f"{chunk.first_frame} ")
        else:
            while not (work / "begin").exists():
                time.sleep(0.02)
            frames = [chunk.frames for chunk in lolrt.decode_latents(pipe.vae, source=0)]
            torch.save(torch.cat(frames), work / "frames.pt")
    except lolrt.Error as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()
