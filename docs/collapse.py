"""Writes docs/collapse.md, and its figures, from the results kept in docs/collapse: `python docs/collapse.py`. Nothing is run here.

A result is a file that `lolrt lab experiment` writes; those of the second model are named second-<experiment>.json, and decoded.jsonl is
the list of videos of a folder of `lolrt lab rollout`. Verdicts come from intervals (collapse_claims.py), so a new result changes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from collapse_claims import BASELINE, CAUSE, DRAWN, Claim, against, at_own_frames, steps
from PIL import Image

from lolrt.lab import tables
from lolrt.lab.phase import phase_table
from lolrt.lab.plans import EXPERIMENTS, Setting
from lolrt.lab.results import Result
from lolrt.lab.statistics import interval
from lolrt.rope import Rope

DOCS = Path(__file__).parent
KEPT = DOCS / "collapse"
# CPU seconds of a rollout of 240 latent frames of `tiny` without decoding, on one core of a Zen 4 EPYC.
ROLLOUT_SECONDS = 6.2
LAYERS, HEADS, PAIRS = 6, 4, 22  # of `tiny`
MEASURED = ("sigma", "share", "bases", "gates", "rivals", "base", "sinks", "dimension")
PICTURES = ("dynamic_degree", "flow", "luminance_drift", "saturation_drift", "sharpness_drift")


def section(name: str, results: dict[str, Result], claims: Sequence[Claim]) -> str:
    result = results[name]
    found = tables.markdown([["claim", "difference [95 % interval]", "verdict"], *(claim.row(result) for claim in claims)])
    return f"{tables.setting(result)}\n\n{tables.table(result)}\n\n![{name}](collapse/{name}.png)\n\n{found}"


def agreement(result: Result) -> float:
    """Correlation over the sweep between plain RoPE's phase kernel and the mass on the sinks, from the predicted frames' range on."""
    series = result.cells["plain"].series
    kernel = phase_table(Rope(sigma=0.0).radians(1, 1, PAIRS)[0], result.frames)
    at = {int(start): value for start, value in zip(kernel.starts, kernel.chunk_real, strict=True)}
    starts = [int(start) for start in series["start"]]
    chosen = [i for i, start in enumerate(starts) if start >= 100 and start in at]
    return float(np.corrcoef([series["mass"][i] for i in chosen], [at[starts[i]] for i in chosen])[0, 1])


def rollouts(results: dict[str, Result]) -> int:
    """How many there are behind the results: experiments share theirs."""
    return len(
        {
            (result.model, policy, seed)
            for result in results.values()
            if result.name != "offsets"
            for cell in result.cells.values()
            for policy in cell.policies
            for _, seed in result.videos
        }
    )


def cost(name: str, videos: int, draws: int) -> str:
    cells = EXPERIMENTS[name].cells(Setting(draws, 240, LAYERS, HEADS, PAIRS))
    rollouts = videos * sum(map(len, cells.values()))
    return f"| `lolrt lab experiment {name} --videos {videos} --draws {draws}` | {rollouts} | {rollouts * ROLLOUT_SECONDS / 3600:.1f} |"


def pictures_table(rows: list[dict]) -> str:
    """Of decoded videos: a row a policy."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    cells = [
        [f"`{policy}`", *(str(interval(np.array([[row[name] for row in rows if row["policy"] == policy]]))) for name in PICTURES)]
        for policy in policies
    ]
    return tables.markdown([["policy", *(name.replace("_", " ") for name in PICTURES)], *cells])


def second_training(results: dict[str, Result]) -> str:
    return f"""
## A second training

SECOND

{section("second-offsets", results, CAUSE)}

{section("second-baseline", results, BASELINE)}
"""


def document(results: dict[str, Result], decoded: list[dict]) -> str:
    sigma, share, bases, gates, rivals, base, sinks, dimension = (results[name] for name in MEASURED)
    return f"""# Sink-collapse on the embedded model

LoL ([arXiv 2601.16914](https://arxiv.org/abs/2601.16914)) says that streaming video models fall back to their first frames because the
rotary phases of all heads come back to the sinks at once, and that a base of its own for each head cures it. Is that so; is it the cause;
how much jitter, in how many heads; and is there better? Asked here of `tiny`, the model in this repository.

**Nothing on this page was run on Wan or any other published checkpoint.** Of Wan there is only the arithmetic of its phases
(`lolrt lab phase`: 132 and 201), which `tiny` shares, because it has Wan's {PAIRS} temporal pairs. `tiny` has {HEADS} heads in each of {
        LAYERS
    }
layers where Wan has 12 in 30: draws of jitter are more of a lottery here.

Two questions beside this one have pages of their own: whether a text model collapses as well ([collapse-text.md](collapse-text.md)), and
what a stream remembers of a scene that it comes back to ([streams.md](streams.md#long-term-memory)).

Tables, figures and verdicts are written by `python docs/collapse.py` from the results in [collapse](collapse). Each table names the command
that makes its result: prompts are the model's examples, noise and jitter seeds 0, 1, ..., without jitter seeds that
give bases which were there. The rollouts are {rollouts(results)}, of {ROLLOUT_SECONDS} s of one core each. Every measure is
defined by the docstring of its function in
[lolrt/lab/measures.py](../lolrt/lab/measures.py), intervals and differences in [lolrt/lab/statistics.py](../lolrt/lab/statistics.py); the
report of `lolrt lab rollout` prints them. In short:

- *dip*: distance of the latents to the nearest sink around a frame, over that before and after;
- *rise*: attention mass on the sinks around a frame, over its median; *synchrony*: the share of heads that are raised there at once;
- *elsewhere*: what these are where nothing is predicted; all look for an extreme, so that they are not 1 and 0 there;
- *own*: at the policy's own frames, where the phase kernel of its own frequencies, mean over heads, is highest past frame 100; 132 and 201
  are plain RoPE's. None where sinks do not fall behind, or where these frames are beyond the video;
- *motion*: of latents, over plain RoPE's in the same video;
- *drawn*: LoL's rule, sigma 0.8; *stratified*: the same range, evenly spaced.

A claim *holds* when the 95 % interval of its difference lies on the claimed side of 0. Policies are compared within videos, and within
draws where a seed draws the same for both: another sigma, fewer heads, a gate beside the jitter. With one policy a cell the interval says
nothing of other draws; with few draws or videos intervals are narrower than they should be; no verdict is corrected for the number of
verdicts.

The directions of experiments 1 to 3, as far as the spread allows, are tests as well: `pytest tests/test_collapse.py`, in less than three
minutes.

## The cause, apart from its effect

One chunk, with the same content, noise and cache, is numbered as if it began at each frame in turn, while the sinks keep their numbers.

{section("offsets", results, CAUSE)}

Past frame 100, the mass on the sinks under plain RoPE follows the phase kernel of its own frequencies (real part, averaged over sinks and
chunk) with a correlation of {agreement(results["offsets"]):.2f}. Nothing but the frame number moved, so the numbering is the cause and not
a trace of a picture that had already fallen back.

## Experiment 1: plain RoPE collapses at the predicted frames

{section("baseline", results, BASELINE)}

## Experiment 2: how much jitter, against how much motion

{section("sigma", results, [*steps(sigma, "dip", ">", "shallower"), *steps(sigma, "motion", "<", "less motion")])}

A sigma of 1 would let a base be 0; 0.99 stands for it.

## Experiment 3: how many heads

{section("share", results, [*steps(share, "dip", ">", "shallower"), *steps(share, "rise", "<", "less mass")])}

## Bases that are chosen

A draw of chosen bases is the order in which the heads have them; *by layer*, all heads of all layers have draws of their
own, where LoL leaves open whether layers share theirs; *least ripple* shifts bases as far as the drawn ones on average (root mean square).
Equal motion: the claims on it say whether a policy moves less than LoL's.

{section("bases", results, [*against(bases, DRAWN, "shallower", "dip", ">"), *against(bases, DRAWN, "less motion", "motion", "<")])}

## Gates on the sinks

Beside plain RoPE, and beside jitter. *Realigned*: no sinks in chunks where the kernel is 0.5 and more; *synchronised*: none in layers of
which more than 40 % of the heads turn to a sink, by a probe of the chunk's first pass. `lolrt.SinkGate` defines them.

{section("gates", results, [*against(gates, DRAWN, "shallower", "dip", ">"), *against(gates, DRAWN, "less motion", "motion", "<")])}

## Rivals

{
        section(
            "rivals",
            results,
            [
                *against(rivals, "plain", "shallower", "dip", ">"),
                *at_own_frames(rivals),
                *against(rivals, "plain", "less motion", "motion", "<"),
            ],
        )
    }

## The paper's other ablations

Another base for all heads:

{section("base", results, [*against(base, "plain", "shallower", "dip", ">"), *at_own_frames(base)])}

Other numbers of sinks, with as many recent frames as make 12 together:

{section("sinks", results, against(sinks, "plain", "shallower", "dip", ">"))}

One pair slowed down as RIFLEx does, so that it turns once in a video (pairs are counted from 1):

{section("dimension", results, [*against(dimension, "plain", "shallower", "dip", ">"), *at_own_frames(dimension)])}

## Decoded

DECODED

{pictures_table(decoded)}
{second_training(results)}
## What this says

FINDINGS
## What was not run

More videos and draws than in the tables:

| command | rollouts | hours of one core, predicted |
|---|---|---|
{chr(10).join(cost(name, 12, 5) for name in MEASURED)}

They share rollouts (`-o` names the folder that keeps them), `--jobs` takes more cores, and `--cells` picks rows. Further, a published
checkpoint: `lolrt lab rollout --model PATH --policies sigma=0 sigma=0.8 --prompts "..." --latents`, two rollouts of 80 chunks. One layer of
the 1.3B model takes 13 s a chunk on two cores with AVX512-BF16 ([benchmarks.md](benchmarks.md)); thirty would take about
{2 * 80 * 30 * 13 / 3600:.0f} hours there: a job for a GPU or a larger machine.
"""


def read() -> tuple[dict[str, Result], list[dict]]:
    results = {path.stem: Result.read(path) for path in sorted(KEPT.glob("*.json"))}
    return results, [json.loads(line) for line in (KEPT / "decoded.jsonl").read_text().splitlines()]


def main() -> None:
    results, decoded = read()
    (DOCS / "collapse.md").write_text(document(results, decoded))
    for name, result in results.items():
        picture = KEPT / f"{name}.png"
        tables.figure(result, picture)
        Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(picture, optimize=True)


if __name__ == "__main__":
    main()
