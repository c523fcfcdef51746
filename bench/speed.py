"""Whether a stream is slower than at another commit: `python -m bench.speed COMMIT` builds COMMIT and times chunks of both in turns.

Three processes take turns: the other commit, this tree, and this tree once more; while one makes a chunk the others sleep. The ratio is
the other commit's time divided by this tree's: above 1, this tree is faster. How far this tree is from itself says what the ratio is
worth. Medians of several starts, with the least and the greatest.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

STARTS = 5  # of starts of the processes: memory placement and cores differ by start, and shift a whole run by some per cent
ROUNDS = {"tiny, latents": 40, "tiny, video": 25, "1.3B, one layer, latents": 2}
GAP_S = 0.05  # before every turn: by then the threads of the process that had the last turn sleep


def stream(name: str) -> Iterator[object]:
    """A stream whose window is full. Use only calls here that both commits have."""
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
    """Reads the name of a stream per line, and prints the seconds of its next chunk."""
    name = ""
    made: Iterator[object] = iter(())
    for line in sys.stdin:
        if line.strip() != name:
            name = line.strip()
            made = stream(name)
        begin = time.perf_counter()
        next(made)
        print(time.perf_counter() - begin, flush=True)


def turns(children: list[subprocess.Popen[str]], name: str, rounds: int) -> np.ndarray:
    """[children] Median seconds per chunk of each process. They take turns, and every round begins with another one."""
    seconds = np.empty((len(children), rounds))
    for i in range(rounds):
        for which in np.roll(range(len(children)), i):
            child = children[which]
            assert child.stdin and child.stdout
            time.sleep(GAP_S)
            child.stdin.write(f"{name}\n")
            child.stdin.flush()
            seconds[which, i] = float(child.stdout.readline())
    return np.median(seconds, axis=1)


def compare(commit: str) -> None:
    from bench.commits import ROOT, built, script_there
    from lolrt.bench.machine import describe

    other = built(commit)
    print("; ".join(describe().values()), flush=True)
    for name, rounds in ROUNDS.items():
        found = []
        for start in range(STARTS):
            trees = np.roll([other, ROOT, ROOT], start)
            children = [script_there(tree, Path(__file__), "--serve") for tree in trees]
            found.append(np.roll(turns(children, name, rounds), -start))
            for child in children:
                child.communicate()
        before, after, again = np.array(found).T
        ratios = {"before / after": before / after, "this tree / itself": again / after}
        told = (f"{which} {np.median(of):.2f} ({of.min():.2f}-{of.max():.2f})" for which, of in ratios.items())
        print(f"{name}: {', '.join(told)}; {1e3 * np.median(before):.0f} ms before, {1e3 * np.median(after):.0f} ms after", flush=True)


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
