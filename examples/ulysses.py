"""One stream on several processes, each with a share of the attention heads and of the KV cache.

    torchrun --nproc-per-node 2 examples/ulysses.py "a red balloon over the hills" balloon.mp4

Rank 0 decodes and writes; the others make the same latents. On GPUs use "nccl", and a device a rank.
"""

import itertools
import sys

import torch.distributed as dist

import lolrt

dist.init_process_group("gloo")
prompt, output = sys.argv[1:]
pipe = lolrt.load("tiny")
pipe.dit.shard()  # every rank from here on makes the same calls
chunks = 10
if dist.get_rank() == 0:
    with lolrt.VideoWriter(output, pipe.height, pipe.width, pipe.fps) as video:
        for chunk in itertools.islice(pipe.stream(prompt, seed=7), chunks):
            video.write(chunk.frames)
else:
    for _ in itertools.islice(pipe.latent_stream(prompt, seed=7), chunks):
        pass
dist.destroy_process_group()
