"""Whether a stream is slower than at another commit: `python -m bench.speed COMMIT` builds COMMIT and times chunks of both in turns.

Each commit has a process; they take turns, and while one makes a chunk the other waits for its turn without running. The ratio is the
other commit's time divided by this tree's: above 1, this tree is faster.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROUNDS = {"tiny, latents": 200, "tiny, video": 100, "1.3B, one layer, latents": 6}


def stream(name: str) -> Iterator[object]:
    """A stream whose window is full. Only calls that both commits have may be used here."""
    import lolrt
    from bench.models import ONE_LAYER, embedded

    if name.startswith("tiny"):
        pipe = embedded(torch.bfloat16)
        made: Iterator[object] = (pipe.stream if name == "tiny, video" else pipe.latent_stream)(pipe.example_prompts[0])
    else:
        made = lolrt.LatentStream(ONE_LAYER.pair(torch.bfloat16)[0], ONE_LAYER.prompt(), *ONE_LAYER.latent)
    for _ in itertools.islice(made, 6):
        pass
    return made


def serve() -> None:
    """A line in, the name of a stream; a line out, the seconds of its next chunk."""
    name = ""
    made: Iterator[object] = iter(())
    for line in sys.stdin:
        if line.strip() != name:
            name = line.strip()
            made = stream(name)
        begin = time.perf_counter()
        next(made)
        print(time.perf_counter() - begin, flush=True)


def compare(commit: str) -> None:
    from bench.commits import ROOT, built, script_there
    from lolrt.bench.machine import describe

    children = [script_there(tree, Path(__file__), "--serve") for tree in (built(commit), ROOT)]
    print("; ".join(describe().values()), flush=True)
    for name, rounds in ROUNDS.items():
        seconds: list[list[float]] = [[], []]
        for i in range(rounds):
            for which in (0, 1) if i % 2 else (1, 0):
                child = children[which]
                assert child.stdin and child.stdout
                child.stdin.write(f"{name}\n")
                child.stdin.flush()
                seconds[which].append(float(child.stdout.readline()))
        low, middle, high = np.quantile(np.array(seconds[0]) / np.array(seconds[1]), (0.25, 0.5, 0.75))
        before, after = (1e3 * np.median(of) for of in seconds)
        print(f"{name}: {middle:.2f} ({low:.2f}-{high:.2f}) of {rounds} rounds; {before:.0f} ms before, {after:.0f} ms after", flush=True)
    for child in children:
        child.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description="Times streams of this tree and of another commit.")
    parser.add_argument("commit", metavar="COMMIT", nargs="?", help="what to compare this tree with")
    parser.add_argument("--serve", action="store_true", help="be one of the two processes")
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
    elif arguments.commit:
        compare(arguments.commit)
    else:
        parser.error("which commit?")


if __name__ == "__main__":
    main()
