"""Writes docs/collapse.md, and its figures, from the results kept in docs/collapse: `python docs/collapse.py`. Nothing is run here.

A result is a file that `lolrt lab experiment` writes; those of the second model are named second-<experiment>.json, that of the frame-wise
one framewise-baseline.json, and decoded.jsonl is the videos.jsonl that `lolrt lab rollout` writes. What came out is written from intervals
(collapse_claims.py), so a new result changes the text with the numbers. Numbers of the method are the constants below; no other text here
has any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from collapse_claims import (
    DRAWN,
    EVEN,
    Comparison,
    against,
    at_own_frames,
    baseline,
    better_bases,
    cause,
    elsewhere,
    frames,
    held_back,
    jittered,
    steps,
)
from collapse_conclusions import conclusions
from PIL import Image

from lolrt.lab import tables
from lolrt.lab.phase import AFTER_FRAMES, phase_table
from lolrt.lab.plans import EXPERIMENTS, LENGTH, SIGMAS, Setting
from lolrt.lab.policy import Policy
from lolrt.lab.results import Cell, Result
from lolrt.positions.frequencies import identify_k
from lolrt.positions.rope import Rope

DOCS = Path(__file__).parent
KEPT = DOCS / "collapse"
PAPER = "[arXiv 2601.16914](https://arxiv.org/abs/2601.16914)"
# CPU seconds of a rollout of 240 latent frames of `tiny` without decoding, on one core of a Zen 4 EPYC.
ROLLOUT_SECONDS = 6.2
FRAMES = 240
LAYERS, HEADS, PAIRS, THETA = 6, 4, 22, 10000.0  # of `tiny`
WAN_LAYERS, WAN_HEADS = 30, 12
LARGER = (12, 5)  # videos and draws of what was not run
CERTAINTY = "95 %"
DYNAMIC_PIXELS = 6 / 256 * 64  # VBench's threshold for `tiny`, whose shorter side is 64 pixels
PICTURES = ("dynamic_degree", "flow", "luminance_drift", "saturation_drift", "sharpness_drift")
# The second model, of its training log, which is not kept.
SECOND = "python -m lolrt.train.tiny --seed 1 --minutes-vae 6 --minutes-dit 20 --work build/second --out build/second/tiny"
SECOND_VAE_MINUTES, SECOND_STEPS, SECOND_ERRORS, SECOND_DECIBELS = 3.3, 664, (0.43, 0.29), 26.5
# The frame-wise model, of its training log, which is not kept.
FRAMEWISE = "python -m lolrt.train.tiny.framewise --work build/framewise"
FRAMEWISE_STEPS, FRAMEWISE_ERRORS = 902, (0.30, 0.10)
PUBLISHED = 'lolrt lab rollout --model PATH --policies sigma=0 sigma=0.8 --prompts "..." --latents'


def section(name: str, result: Result, comparisons: Sequence[Comparison], kept: str = KEPT.name) -> str:
    """kept: the folder of the figures."""
    picture = "" if result.sweeps else f"![{name}]({kept}/{name}.png)\n\n"
    return f"{tables.setting(result)}\n\n{tables.table(result)}\n\n{picture}{findings(result, comparisons)}"


def findings(result: Result, comparisons: Sequence[Comparison]) -> str:
    rows = [[one.sentence(result), str(one.difference(result))] for one in dict.fromkeys(comparisons)]
    return tables.markdown([["finding", f"difference [{CERTAINTY} interval]"], *rows])


def agreement(result: Result) -> float:
    """Correlation over the sweep between plain RoPE's phase kernel and the mass on the sinks, from the predicted frames' range on."""
    series = result.cells["plain"].series
    kernel = phase_table(Rope(sigma=0.0).radians(1, 1, PAIRS)[0], result.frames)
    at = {int(start): value for start, value in zip(kernel.starts, kernel.chunk_real, strict=True)}
    starts = [int(start) for start in series["start"]]
    chosen = [i for i, start in enumerate(starts) if start >= AFTER_FRAMES and start in at]
    return float(np.corrcoef([series["mass"][i] for i in chosen], [at[starts[i]] for i in chosen])[0, 1])


def rollouts(results: dict[str, Result]) -> int:
    """How many there are behind the results: experiments share theirs."""
    return len(
        {
            (result.model, policy, seed)
            for result in results.values()
            if not result.sweeps and result.name != "offsets"
            for cell in result.cells.values()
            for policy in cell.policies
            for _, seed in result.videos
        }
    )


def cost(name: str) -> str:
    videos, draws = LARGER
    cells = EXPERIMENTS[name].cells(Setting(draws, FRAMES, LAYERS, HEADS, PAIRS))
    count = videos * sum(map(len, cells.values()))
    return f"| `lolrt lab experiment {name} --videos {videos} --draws {draws}` | {count} | {count * ROLLOUT_SECONDS / 3600:.1f} |"


def training(log: Path) -> tuple[int, float, float, float]:
    """Of `tiny`: the DiT's steps, the error of its flow in first and in later chunks, and the VAE's PSNR in dB."""
    text = log.read_text()
    *_, (steps, first, later) = re.findall(r"^dit .* step (\d+) .* first chunk ([\d.]+) later ([\d.]+)", text, re.M)
    *_, decibels = re.findall(r"^vae .* held-out ([\d.]+) dB", text, re.M)
    return int(steps), float(first), float(later), float(decibels)


def second_training(results: dict[str, Result]) -> str:
    parts = {name: results[f"second-{name}"] for name in ("baseline", "baseline-sweep", "gates", "bases")}
    trained, first, later, decibels = training(DOCS.parent / "lolrt" / "_embedded" / "tiny" / "training.log")
    return f"""
## A second training

The same script with another seed, for data, weights and noise, and shorter: `{SECOND}`
(interrupted and resumed on the way, the VAE no further than {SECOND_VAE_MINUTES} minutes). That is {SECOND_STEPS} steps of the DiT; `tiny`
had {trained}. The error of its flow on held-out clips is {SECOND_ERRORS[0]} in first chunks and {SECOND_ERRORS[1]} in later ones; that of
`tiny` is {first:.2f} and {later:.2f}. Its VAE reproduces pictures to {SECOND_DECIBELS} dB; that of `tiny` to {decibels:.1f}. Only its
latents were measured.

{section("second-baseline", parts["baseline"], baseline(parts["baseline"]))}

With the content held fixed, by the sweep:

{section("second-baseline-sweep", parts["baseline-sweep"], jittered("rise"))}

The gates:

{section("second-gates", parts["gates"], held_back(parts["gates"]))}

Bases for each layer:

{section("second-bases", parts["bases"], better_bases(parts["bases"]))}
"""


def framewise(results: dict[str, Result]) -> str:
    result = results["framewise-baseline"]
    return f"""
## Frame by frame

`tiny`, trained on with chunks of one latent frame: `{FRAMEWISE}`,
{FRAMEWISE_STEPS} more steps of the DiT. The error of its flow on held-out clips is {FRAMEWISE_ERRORS[0]:.2f} in first frames and
{FRAMEWISE_ERRORS[1]:.2f} in later ones. It is not distilled: a frame takes as many passes as a chunk of `tiny`. Frequencies and sinks are
those of `tiny`, so that the same frames are predicted: {frames(result)}.

{section("framewise-baseline", result, [*baseline(result), *cause(result)])}
"""


def document(results: dict[str, Result], decoded: Result) -> str:
    sigma, share, bases, gates, rivals, sinks = (results[name] for name in ("sigma", "share", "bases", "gates", "rivals", "sinks"))
    plain = results["baseline"]
    window = Policy.parse("").window
    realigned, synchronised = (
        Policy.parse(gates.cells[f"sinks shut where {when}"].policies[0]).window.gate for when in ("realigned", "synchronised")
    )
    return f"""# Sink-collapse on the embedded model

LoL ({PAPER}) says that streaming video models return to their first frames because the
rotary phases of all heads come back to the sinks at once, and that a base of its own for each head cures it. Is that so; is it the cause;
how much jitter, in how many heads; and is there another cure? Asked here of `tiny`, the model in this repository.

**Nothing on this page was run on Wan or any other published checkpoint.** Of Wan there is only the arithmetic of its phases
(`lolrt lab phase`: {frames(plain)}), which `tiny` shares, because it has Wan's {PAIRS} temporal pairs. `tiny` has {HEADS} heads in
each of {LAYERS} layers, Wan {WAN_HEADS} in {WAN_LAYERS}: draws of jitter are more of a lottery here.

Other questions have pages of their own: whether a text model collapses as well ([collapse-text.md](collapse-text.md)), and
what a stream remembers of a scene that it comes back to ([streams.md](streams.md#long-term-memory)).

`python docs/collapse.py` writes this page from the results in [collapse](collapse): tables, figures, and every sentence about what came
out, whose verb the interval chooses. Each table names the command that makes its result: prompts are the model's examples, noise and
jitter seeds count from zero, without jitter seeds that give bases which were there. There are {rollouts(results)} rollouts, of
{ROLLOUT_SECONDS} s of one core each. The docstring of its function in [lolrt/measures.py](../lolrt/measures.py) defines a measure;
[lolrt/lab/statistics.py](../lolrt/lab/statistics.py) defines intervals and differences; the report of `lolrt lab rollout` prints them. In
short:

- *dip*: distance of the latents to the nearest sink around a frame, over that before and after: low where a video returns to its opening;
- *rise*: attention mass on the sinks around a frame, over its median; *synchrony*: the share of heads that are raised there at once;
- *elsewhere*: what these are where nothing is predicted; all look for an extreme, so that they are not at their middle there;
- *own*: at the policy's own frames, where the phase kernel of its own frequencies, mean over heads, is highest past frame {AFTER_FRAMES};
  {frames(plain)} are plain RoPE's. None where sinks do not fall behind, or where these frames are beyond the video;
- *motion*: of latents, over plain RoPE's in the same video;
- `{DRAWN}`: LoL's rule; *stratified*: the same range, evenly spaced.

A difference is the value of what a finding names first minus the value of what it names last; without a place, dip and rise are means of
{frames(plain)}. It is *significant* when its {CERTAINTY} interval does not contain zero. Policies are compared within videos, and within
draws where a seed draws the same for both: another sigma, fewer heads, a gate beside the jitter. With one policy a cell the interval says
nothing of other draws; with few draws or videos intervals are narrower than they should be; no verdict is corrected for the number of
verdicts.

Some directions are tests as well: `pytest tests/test_collapse.py`.

## The cause, apart from its effect

One chunk, with the same content, noise and cache, is numbered as if it began at each frame in turn, while the sinks keep their numbers.
Only the frame number changes: what changes with it cannot be a trace of a picture that had already fallen back.

{section("offsets", results["offsets"], cause(results["offsets"]))}

Past frame {AFTER_FRAMES}, the correlation of the mass on the sinks under plain RoPE and the phase kernel of its own frequencies (real
part, averaged over sinks and chunk) is {agreement(results["offsets"]):.2f}.

## Does plain RoPE collapse at the predicted frames?

{section("baseline", plain, baseline(plain))}

## How much jitter, against how much motion?

{
        section(
            "sigma",
            sigma,
            [
                *against(sigma, "plain", "dip"),
                *steps(sigma, "rise"),
                *against(sigma, "plain", "rise"),
                *against(sigma, "plain", "motion"),
            ],
        )
    }

A sigma of one would let a base be zero; {max(SIGMAS)} stands for it.

## How many heads?

{
        section(
            "share",
            share,
            [one for what in ("dip", "rise", "motion") for one in (*steps(share, what), *against(share, "plain", what))],
        )
    }

## Rivals

{
        section(
            "rivals",
            rivals,
            [
                *against(rivals, "plain", "dip"),
                *against(rivals, DRAWN, "dip"),
                *at_own_frames(rivals, "dip", "dip_elsewhere"),
                *against(rivals, "plain", "motion"),
            ],
        )
    }

## Another base for all heads

By the sweep with the content held fixed (`--sweep`): at the frames in question and their neighbours, over the median of a few other
frames. It sees whether heads turn to the sinks, not what the picture then does.

{
        section(
            "base-sweep",
            results["base-sweep"],
            [*against(results["base-sweep"], "plain", "rise"), *at_own_frames(results["base-sweep"], "rise", "rise")],
        )
    }

Own frames: {"; ".join(f"{cell}: {tables.own_frames(found)}" for cell, found in results["base-sweep"].cells.items())}.

And in rollouts:

{section("base", results["base"], [*against(results["base"], "plain", "dip"), *at_own_frames(results["base"], "dip", "dip_elsewhere")])}

## One pair slowed down

The same sweep. As in RIFLEx, the pair turns once in the {FRAMES} frames, where it would turn more often (the first pair is pair one; RIFLEx
itself would take {identify_k(THETA, 2 * PAIRS, LENGTH)[0]}).

{section("dimension-sweep", results["dimension-sweep"], against(results["dimension-sweep"], "plain", "rise"))}

And in rollouts:

{section("dimension", results["dimension"], against(results["dimension"], "plain", "dip"))}

## Other numbers of sinks

With as many recent frames as make {window.sink_frames + window.recent_frames} together.

{section("sinks", sinks, [*against(sinks, "plain", "dip"), *elsewhere(sinks), *against(sinks, "plain", "rise")])}

## Bases that are chosen

A draw of chosen bases is the order in which the heads have them; *by layer*, all heads of all layers have draws of their
own, where LoL leaves open whether layers share theirs; *least ripple* shifts bases as far as the drawn ones on average (root mean square).

{section("bases", bases, better_bases(bases))}

## Gates on the sinks

*Held back*: a constant bias; *shut where realigned*: no sinks in chunks where the kernel is {realigned.kernel_level} and more; *shut
where synchronised*: none in layers of which above {synchronised.head_share:.0%} of the heads turn to a sink, by a probe of the chunk's
first pass (`lolrt.SinkGate`).

{section("gates", gates, held_back(gates))}

## Decoded video

{decoded.model}, {len(decoded.videos)} videos of {decoded.frames} latent frames, decoded; mean [{CERTAINTY} interval]. Made by
`lolrt lab rollout`, whose report has the contact sheets. Drifts are in percent, from the first chunk to the last tenth; flow is in pixels.
Dynamic Degree is the share of dynamic clips by VBench's rule, whose threshold is {DYNAMIC_PIXELS:.1f} pixels at this size.

{tables.table(decoded)}

{findings(decoded, [Comparison(cell, what, "plain") for what in PICTURES[1:] for cell in (DRAWN, EVEN)])}
{second_training(results)}{framewise(results)}
## What this says

Names are rows of the tables above. In parentheses are differences, or frames. Where no model is named, it is `tiny`.

{conclusions(results, decoded)}

## What was not run

More videos and draws than in the tables:

| command | rollouts | hours of one core, predicted |
|---|---|---|
{chr(10).join(cost(name) for name in ("sigma", "share", "rivals", "base", "sinks", "dimension"))}

They share rollouts (`-o` names the folder that keeps them), `--jobs` takes more cores, and `--cells` picks rows. Further:

- More than one seed of decoded videos; motion above is that of latents.
- A published checkpoint: `{PUBLISHED}`. [full-size.md](full-size.md)
  has the time of a chunk of such a model on CPU cores: a job for a GPU or a larger machine.
"""


def pictures(rows: list[dict], plain: Result) -> Result:
    """Decoded videos as a result, whose cells have the names that the same positions have in another one."""
    names = {Policy.parse(cell.policies[0]).rope: name for name, cell in plain.cells.items()}
    cells = {}
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        cells[names[Policy.parse(policy).rope]] = Cell([policy], {name: np.array([[row[name] for row in own]]) for name in PICTURES})
    videos = list(dict.fromkeys((row["prompt"], row["seed"]) for row in rows))
    return Result("rollout", plain.model, FRAMES, 1, [], False, videos, plain.predicted, cells)


def read() -> tuple[dict[str, Result], Result]:
    results = {path.stem: Result.read(path) for path in sorted(KEPT.glob("*.json"))}
    return results, pictures([json.loads(line) for line in (KEPT / "decoded.jsonl").read_text().splitlines()], results["baseline"])


def main() -> None:
    results, decoded = read()
    (DOCS / "collapse.md").write_text(document(results, decoded))
    for name, result in results.items():
        if not result.sweeps:
            save_figure(result, KEPT / f"{name}.png")


def save_figure(result: Result, picture: Path) -> None:
    tables.figure(result, picture)
    Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(picture, optimize=True)


if __name__ == "__main__":
    main()
