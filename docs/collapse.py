"""Writes docs/collapse.md, and its figures, from the results kept in docs/collapse: `python docs/collapse.py`. Nothing is run here.

A result is a file that `lolrt lab experiment` writes; those of the second model are named second-<experiment>.json, and decoded.jsonl is
the videos.jsonl that `lolrt lab rollout` writes. Verdicts come from intervals (collapse_claims.py), so a new result changes the text with
the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from collapse_claims import BASELINE, CAUSE, DRAWN, SECOND_CAUSE, Claim, against, at_own_frames, better_bases, held_back, steps
from PIL import Image

from lolrt.lab import tables
from lolrt.lab.phase import phase_table
from lolrt.lab.plans import EXPERIMENTS, Setting
from lolrt.lab.results import Result
from lolrt.lab.statistics import difference, interval
from lolrt.positions.rope import Rope

DOCS = Path(__file__).parent
KEPT = DOCS / "collapse"
# CPU seconds of a rollout of 240 latent frames of `tiny` without decoding, on one core of a Zen 4 EPYC.
ROLLOUT_SECONDS = 6.2
PICTURES = ("dynamic_degree", "flow", "luminance_drift", "saturation_drift", "sharpness_drift")
LAYERS, HEADS, PAIRS = 6, 4, 22  # of `tiny`


def section(name: str, results: dict[str, Result], claims: Sequence[Claim]) -> str:
    result = results[name]
    found = tables.markdown([["claim", "difference [95 % interval]", "verdict"], *(claim.row(result) for claim in claims)])
    picture = "" if result.sweeps else f"![{name}](collapse/{name}.png)\n\n"
    return f"{tables.setting(result)}\n\n{tables.table(result)}\n\n{picture}{found}"


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
    """Of decoded videos: a row a policy, and one for its difference from the first in the same videos."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    values = {
        (policy, name): np.array([[row[name] for row in rows if row["policy"] == policy]]) for policy in policies for name in PICTURES
    }
    cells = [[f"`{policy}`", *(str(interval(values[policy, name])) for name in PICTURES)] for policy in policies]
    cells += [
        [
            f"`{policy}`, less `{policies[0]}`",
            *(str(difference(values[policy, name], values[policies[0], name], paired=True)) for name in PICTURES),
        ]
        for policy in policies[1:]
    ]
    return tables.markdown([["policy", *(name.replace("_", " ") for name in PICTURES)], *cells])


def second_training(results: dict[str, Result]) -> str:
    return f"""
## A second training

The same script with another seed, for data, weights and noise, and shorter:
`python -m lolrt.train.tiny --seed 1 --minutes-vae 6 --minutes-dit 20 --work build/second --out build/second/tiny` (interrupted and resumed
on the way, the VAE no further than 3.3 minutes). That is 664 steps of the DiT in the place of 3198; the error of its flow on held-out
clips is 0.43 in first chunks and 0.29 in later ones, where that of `tiny` is 0.23 and 0.12, and pictures are reproduced to 26.5 dB in the
place of 34.7: a rougher model of the same kind. Only its latents were measured.

{section("second-baseline", results, BASELINE)}

With the content held fixed, by the sweep:

{section("second-baseline-sweep", results, SECOND_CAUSE)}

The gates:

{section("second-gates", results, held_back(results["second-gates"]))}

Bases for each layer:

{section("second-bases", results, better_bases(results["second-bases"]))}
"""


def document(results: dict[str, Result], decoded: list[dict]) -> str:
    sigma, share, bases, gates, rivals, base = (results[name] for name in ("sigma", "share", "bases", "gates", "rivals", "base-sweep"))
    cells = results["baseline"].cells
    (moved, *_) = rivals.cells["NTK"].snap_back or (0.0,)
    drawn, plain = cells[DRAWN].numbers["dip_201"].mean(1), cells["plain"].numbers["dip_201"].mean()
    return f"""# Sink-collapse on the embedded model

LoL ([arXiv 2601.16914](https://arxiv.org/abs/2601.16914)) says that streaming video models fall back to their first frames because the
rotary phases of all heads come back to the sinks at once, and that a base of its own for each head cures it. Is that so; is it the cause;
how much jitter, in how many heads; and is there better? Asked here of `tiny`, the model in this repository.

**Nothing on this page was run on Wan or any other published checkpoint.** Of Wan there is only the arithmetic of its phases
(`lolrt lab phase`: 132 and 201), which `tiny` shares, because it has Wan's {PAIRS} temporal pairs. `tiny` has {HEADS} heads in
each of {LAYERS} layers where Wan has 12 in 30: draws of jitter are more of a lottery here.

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

{
        section(
            "sigma",
            results,
            [
                *against(sigma, "plain", "shallower", "dip", ">"),
                *steps(sigma, "rise", "<", "less mass"),
                *against(sigma, "plain", "less motion", "motion", "<"),
            ],
        )
    }

A sigma of 1 would let a base be 0; 0.99 stands for it.

## Experiment 3: how many heads

{
        section(
            "share",
            results,
            [
                *steps(share, "dip", ">", "shallower"),
                *steps(share, "rise", "<", "less mass"),
                *steps(share, "motion", "<", "less motion"),
            ],
        )
    }

## Rivals

{
        section(
            "rivals",
            results,
            [
                *against(rivals, "plain", "shallower", "dip", ">"),
                *against(rivals, DRAWN, "shallower", "dip", ">"),
                *at_own_frames(rivals),
                *against(rivals, "plain", "less motion", "motion", "<"),
            ],
        )
    }

## Another base for all heads

By the sweep with the content held fixed (`--sweep`): at the frames in question and their neighbours, over the median of up to 9 other
frames. It sees whether heads turn to the sinks, not what the picture then does.

{
        section(
            "base-sweep",
            results,
            [
                *against(base, "plain", "less mass", "rise", "<"),
                *(
                    Claim(f"{cell}: more mass at its own frames than at 132 and 201", cell, "rise_own", ">", cell, "rise")
                    for cell in base.cells
                    if cell != "plain"
                ),
            ],
        )
    }

Own frames: {"; ".join(f"{cell}: {tables.own_frames(found)}" for cell, found in base.cells.items())}.

And in rollouts:

{section("base", results, [*against(results["base"], "plain", "shallower", "dip", ">"), *at_own_frames(results["base"])])}

## One pair slowed down

The same sweep. As in RIFLEx, the pair turns once in the 240 frames, where it would turn more often (pairs are counted from 1; RIFLEx itself
would take 8).

{section("dimension-sweep", results, against(results["dimension-sweep"], "plain", "less mass", "rise", "<"))}

And in rollouts:

{section("dimension", results, against(results["dimension"], "plain", "shallower", "dip", ">"))}

## Other numbers of sinks

With as many recent frames as make 12 together.

{
        section(
            "sinks",
            results,
            [
                *against(results["sinks"], "plain", "shallower", "dip", ">"),
                *(Claim(f"{cell}: dip deeper than elsewhere", cell, "dip", "<", cell, "dip_elsewhere") for cell in results["sinks"].cells),
            ],
        )
    }

## Bases that are chosen

A draw of chosen bases is the order in which the heads have them; *by layer*, all heads of all layers have draws of their
own, where LoL leaves open whether layers share theirs; *least ripple* shifts bases as far as the drawn ones on average (root mean square).

{section("bases", results, better_bases(bases))}

## Gates on the sinks

*Held back by 2 nats*: a constant bias; *shut where realigned*: no sinks in chunks where the kernel is 0.5 and more; *shut
where synchronised*: none in layers of which more than 40 % of the heads turn to a sink, by a probe of the chunk's first pass
(`lolrt.SinkGate`).

{section("gates", results, held_back(gates))}
## Decoded video

tiny, {len({row["prompt"] for row in decoded})} videos of 240 latent frames with noise seed 0, decoded; mean [95 % interval]. Made by
`lolrt lab rollout`, whose report has the contact sheets. Drifts are in percent, from the first chunk to the last tenth; flow is in pixels.

{pictures_table(decoded)}

No clip is dynamic by VBench's rule, whose threshold is {6 / 256 * 64:.1f} pixels at this size, under any of the three: Dynamic Degree says
nothing here. Flow is 2 or 3 hundredths of a pixel less under jitter than under plain RoPE in the same videos, told apart from none;
saturation falls less under drawn jitter; no other drift is told apart.
{second_training(results)}
## What this says

Explained:

- Sink-collapse is there, at the frames that the real part of the phase kernel predicts, in the picture and in the attention, and moving the
  frame number alone brings it about.
- It is not the accident of one training: the second model falls back at 132 and 201, and jitter makes that shallower, as in the first.
  There stratified jitter beats drawn jitter in the picture too, and Sink-Collapse tells jitter from plain RoPE, neither of which holds on
  `tiny`.
- More jitter and more jittered heads turn fewer heads to the sinks: at every step from one share to the next, and at six of the ten steps
  of sigma, because each step is compared within the same draws; no step goes the other way. In the picture a sigma of 0.5 and more is told
  apart from none, 0.4 and less is not; and all heads from none, but no share from the next: that all heads are better than three quarters
  of them, as LoL says, is so on average and not told apart.
- Drawn jitter makes the fall at 201 shallower in each of five draws ({drawn.min():.2f} to {drawn.max():.2f}, plain RoPE {
        plain:.2f}), hardly that
  at 132: with four heads, a draw is a lottery.
- Under jitter that is spread evenly heads turn to the sinks less than under jitter that is drawn, here, with four heads, where it also
  shifts bases further than most draws do. That pictures then fall back less is not told apart: orders of the same
  bases differ as well. Draws for every layer turn fewer heads than one draw for all layers: four heads have too few bases for the phases
  of a bad draw to part. In the picture every choice of bases falls back less than LoL's draws on average, by 0.07 to 0.10 over twelve
  videos, at a motion that is not told apart; that is told from none, by a hair, for log-spaced bases and for draws for every layer, and on
  the second model for bases that are spread evenly, over four heads or over all heads of all layers (`--spread stratified --scope layer`).
  So no choice is told apart from drawn jitter on both models.
- Rivals do as LoL's table 1 has it. PI and YaRN fall back less at 132 and 201 and lose a third to two thirds of the motion; RIFLEx is
  hardly shallower than plain RoPE, and deeper than drawn jitter; NTK loses less motion and moves the fall: its videos
  fall back together at {moved:.0f} (snap-back test).
- No single pair that is slowed down makes heads turn less, or pictures fall back less, as LoL says of its videos.
- With one sink, three or five there is collapse, deeper the more there are, though heads turn more to a single one.
- Another base for all heads moves the turn to the sinks to where its own kernel is highest, and ends it nowhere, as LoL says: at 6000,
  16000 and 20000 it is at their own frames and no longer at 132 and 201; 8000 shares 132 with plain RoPE; at 12000, whose own frames are
  106 and 163, heads turn less there than at 132 and 201 still. In rollouts the picture follows at 6000, 8000 and 20000, where it falls back
  at their own frames; at 12000 and 16000 it does not fall back further there than elsewhere, but the snap-back test finds the videos of
  every base falling back together at some frame.
- **A gate where the kernel predicts the return** is better than drawn jitter in the picture, on both models, at a motion that is not told
  apart: plain RoPE with the sinks left out there and nowhere else falls back at 132 and 201 no more than elsewhere, though the chunks
  beside the ones that are shut still turn to the sinks (the rise). LoL names that as an outlook, for training; here it is inference alone.
  A gate where a probe sees heads synchronise does as well on `tiny`, and is no better than drawn jitter on the second model, which still
  falls back under it. A constant bias of -2 nats is better than plain RoPE and not told apart from drawn jitter, at 5 % more motion. Both
  together, the gate that sees heads synchronise beside drawn or stratified jitter, fall back less than drawn jitter alone, and as far as
  the gate alone.
- **Positions in the window**, and sinks that follow at a distance of 20 frames, are not in LoL's tables. Both fall back less than drawn
  jitter, at a motion that is not told apart from plain RoPE's, and do not depend on the frame number by construction. What a larger model,
  trained on absolute positions, makes of them was not run.

Null results, and results that are too weak to act on:

- Motion: no jitter is told apart from plain RoPE in latent motion on `tiny`, where the flow of decoded video is 2 to 3 % less; on the
  second model stratified jitter moves 3 % less, and drawn jitter is not told apart. LoL's trade-off between collapse and motion is a matter
  of a few per cent here, if there is one.
- Sink-Collapse, the largest fall of a video anywhere, tells no jitter from plain RoPE on `tiny`, perhaps because its scenes come back to
  their opening by themselves (without sinks it is 51): measure at predicted frames, against elsewhere.
- There is no `sigma="auto"`: what beats drawn jitter here on both models is no choice of sigma, but a gate where the kernel predicts the
  return; on `tiny` alone, positions in the window and sinks at a distance, which were not run on the second. On a model with more heads and
  layers draws are less of a lottery: this is no ground to prefer any of them on Wan, and all are there to be tried.

## What was not run

More videos and draws than in the tables:

| command | rollouts | hours of one core, predicted |
|---|---|---|
{chr(10).join(cost(name, 12, 5) for name in ("sigma", "share", "rivals", "base", "sinks", "dimension"))}

They share rollouts (`-o` names the folder that keeps them), `--jobs` takes more cores, and `--cells` picks rows. Further:

- More than one seed of decoded videos; motion above is that of latents.
- A published checkpoint: `lolrt lab rollout --model PATH --policies sigma=0 sigma=0.8 --prompts "..." --latents`, two rollouts of 80
  chunks. One layer of the 1.3B model takes 13 s a chunk on two cores with AVX512-BF16 ([benchmarks.md](benchmarks.md)); thirty would take
  about {2 * 80 * 30 * 13 / 3600:.0f} hours there: a job for a GPU or a larger machine.
"""


def read() -> tuple[dict[str, Result], list[dict]]:
    results = {path.stem: Result.read(path) for path in sorted(KEPT.glob("*.json"))}
    return results, [json.loads(line) for line in (KEPT / "decoded.jsonl").read_text().splitlines()]


def main() -> None:
    results, decoded = read()
    (DOCS / "collapse.md").write_text(document(results, decoded))
    for name, result in results.items():
        if result.sweeps:
            continue
        picture = KEPT / f"{name}.png"
        tables.figure(result, picture)
        Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(picture, optimize=True)


if __name__ == "__main__":
    main()
