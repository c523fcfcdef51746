"""Writes docs/collapse.md, and its figures, from the results kept in docs/collapse: `python docs/collapse.py`. Nothing is run here.

A result is a file that `lolrt lab experiment` writes. What the text claims is a list of differences, whose verdicts come from their
intervals; so a new result changes the text with the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lolrt.lab import tables
from lolrt.lab.phase import phase_table
from lolrt.lab.plans import EXPERIMENTS, Setting
from lolrt.lab.results import Cell, Result
from lolrt.lab.statistics import difference
from lolrt.rope import Rope

DOCS = Path(__file__).parent
KEPT = DOCS / "collapse"
# CPU seconds of a rollout of 240 latent frames of `tiny` without decoding, on one core of a Zen 4 EPYC.
ROLLOUT_SECONDS = 6.2
LAYERS, HEADS, PAIRS = 6, 4, 22  # of `tiny`


@dataclass(frozen=True)
class Claim:
    """That a measure of one cell is lower ("<") or higher (">") than of another, or than another measure of its own cell."""

    text: str
    experiment: str
    cell: str
    measure: str
    sign: str
    other_cell: str
    other_measure: str = ""

    def row(self, results: dict[str, Result]) -> list[str]:
        cells = results[self.experiment].cells
        found = difference(values(cells[self.cell], self.measure), values(cells[self.other_cell], self.other_measure or self.measure))
        low, high = (found.low, found.high) if self.sign == ">" else (-found.high, -found.low)
        verdict = "**holds**" if low > 0 else "**the opposite holds**" if high < 0 else "not told apart"
        return [self.text, self.experiment, str(found), verdict]


def values(cell: Cell, measure: str) -> np.ndarray:
    """[draws, videos]; "dip" and "rise" are means of the predicted frames."""
    return cell.at_predicted(measure) if measure in ("dip", "rise") else cell.numbers[measure]


def claims_table(results: dict[str, Result], claims: list[Claim]) -> str:
    return tables.markdown([["claim", "table", "difference [95 % interval]", "verdict"], *(claim.row(results) for claim in claims)])


DRAWN, EVEN = "jitter 0.8", "jitter 0.8, stratified"
CAUSE = [
    Claim(
        "content held fixed, plain RoPE: more mass on the sinks at 132 than elsewhere",
        "offsets",
        "plain",
        "rise_132",
        ">",
        "plain",
        "rise_elsewhere",
    ),
    Claim("and at 201", "offsets", "plain", "rise_201", ">", "plain", "rise_elsewhere"),
    Claim("and more heads at once at 201", "offsets", "plain", "synchrony_201", ">", "plain", "synchrony_elsewhere"),
    Claim("drawn jitter: less at 201 than plain", "offsets", DRAWN, "rise_201", "<", "plain"),
    Claim("stratified: less at 201 than drawn", "offsets", EVEN, "rise_201", "<", DRAWN),
]
BASELINE = [
    Claim("plain RoPE falls back at 132: dip deeper than elsewhere", "baseline", "plain", "dip_132", "<", "plain", "dip_elsewhere"),
    Claim("and at 201", "baseline", "plain", "dip_201", "<", "plain", "dip_elsewhere"),
    Claim("drawn jitter of 0.8: shallower than plain", "baseline", DRAWN, "dip", ">", "plain"),
    Claim("stratified: shallower than plain", "baseline", EVEN, "dip", ">", "plain"),
    Claim("stratified: shallower than drawn", "baseline", EVEN, "dip", ">", DRAWN),
    Claim("but with drawn jitter still deeper at 132 than elsewhere", "baseline", DRAWN, "dip_132", "<", DRAWN, "dip_elsewhere"),
    Claim("and with stratified", "baseline", EVEN, "dip_132", "<", EVEN, "dip_elsewhere"),
    Claim("stratified: less motion than plain", "baseline", EVEN, "motion", "<", "plain"),
    Claim("Sink-Collapse tells drawn jitter from plain", "baseline", DRAWN, "sink_collapse", "<", "plain"),
    Claim("Sink-Collapse tells stratified jitter from plain", "baseline", EVEN, "sink_collapse", "<", "plain"),
]


def steps(experiment: str, result: Result, measure: str, sign: str, text: str) -> list[Claim]:
    """That a measure goes one way along the rows of a table, neighbour by neighbour, and from the first to the last."""
    cells = list(result.cells)
    pairs = [*zip(cells[1:], cells[:-1], strict=True), (cells[-1], cells[0])]
    return [Claim(f"{text}: {cell} against {other}", experiment, cell, measure, sign, other) for cell, other in dict.fromkeys(pairs)]


def section(name: str, results: dict[str, Result]) -> str:
    picture = "" if results[name].sweeps else f"\n\n![{name}](collapse/{name}.png)"
    return f"{tables.setting(results[name])}\n\n{tables.table(results[name])}{picture}"


def cost(name: str, videos: int, draws: int) -> str:
    cells = EXPERIMENTS[name].cells(Setting(draws, 240, LAYERS, HEADS, PAIRS))
    rollouts = videos * sum(map(len, cells.values()))
    return f"| `lolrt lab experiment {name} --videos {videos} --draws {draws}` | {rollouts} | {rollouts * ROLLOUT_SECONDS / 3600:.1f} |"


def agreement(result: Result) -> float:
    """Correlation over the sweep between plain RoPE's phase kernel and the mass on the sinks, from the predicted frames' range on."""
    series = result.cells["plain"].series
    kernel = phase_table(Rope(sigma=0.0).radians(1, 1, PAIRS)[0], result.frames)
    at = {int(start): value for start, value in zip(kernel.starts, kernel.chunk_real, strict=True)}
    starts = [int(start) for start in series["start"]]
    chosen = [i for i, start in enumerate(starts) if start >= 100 and start in at]
    return float(np.corrcoef([series["mass"][i] for i in chosen], [at[starts[i]] for i in chosen])[0, 1])


def document(results: dict[str, Result]) -> str:
    sigma, shares = results["sigma"], results["share-sweep"]
    bases, rivals = ([cell for cell in results[name].cells if cell not in ("plain", DRAWN)] for name in ("bases-sweep", "rivals-sweep"))
    rollouts = {
        (policy, seed)
        for result in results.values()
        if not result.sweeps and result.name != "offsets"
        for cell in result.cells.values()
        for policy in cell.policies
        for _, seed in result.videos
    }
    return f"""# Sink-collapse on the embedded model

LoL ([arXiv 2601.16914](https://arxiv.org/abs/2601.16914)) says that streaming video models fall back to their first frames because the
rotary phases of all heads come back to the sinks at once, and that a base of its own for each head cures it. Is that so; is it the cause;
how much jitter, in how many heads; and is there better? Asked here of `tiny`, the model in this repository.

**Nothing on this page was run on Wan or any other published checkpoint.** Of Wan there is only the arithmetic of its phases
(`lolrt lab phase`: 132 and 201), which `tiny` shares, because it has Wan's 22 temporal pairs. `tiny` has {HEADS} heads in each of {LAYERS}
layers where Wan has 12 in 30: draws of jitter are more of a lottery here.

Tables, figures and verdicts are written by `python docs/collapse.py` from the results in [collapse](collapse). Each table names the command
that makes its result: prompts are the model's examples, noise and jitter seeds 0, 1, ..., without jitter seeds that
give bases which were there. The rollouts are {len(rollouts)}, of {ROLLOUT_SECONDS} s of one core each. Every measure is
defined by the docstring of its function in
[lolrt/lab/measures.py](../lolrt/lab/measures.py), intervals and differences in [lolrt/lab/statistics.py](../lolrt/lab/statistics.py); the
report of `lolrt lab rollout` prints them. In short:

- *dip*: distance of the latents to the nearest sink around a frame, over that before and after;
- *rise*: attention mass on the sinks around a frame, over its median; *synchrony*: the share of heads that are raised there at once;
- *elsewhere*: what these are where nothing is predicted; all look for an extreme, so that they are not 1 and 0 there;
- *motion*: of latents, over plain RoPE's in the same video;
- *drawn*: LoL's rule, sigma 0.8; *stratified*: the same range, evenly spaced.

A claim *holds* when the 95 % interval of its difference lies on the claimed side of 0. With one policy a cell the interval says nothing of
other draws; with few draws or videos intervals are narrower than they should be; no verdict is corrected for the number of verdicts.

## The cause, apart from its effect

One chunk, with the same content, noise and cache, is numbered as if it began at each frame in turn, while the sinks keep their numbers.

{section("offsets", results)}

{claims_table(results, CAUSE)}

Past frame 100, the mass on the sinks under plain RoPE follows the phase kernel of its own frequencies (real part, averaged over sinks and
chunk) with a correlation of {agreement(results["offsets"]):.2f}. Nothing but the frame number moved, so the numbering is the cause and not
a trace of a picture that had already fallen back.

## Experiment 1: plain RoPE collapses at the predicted frames

{section("baseline", results)}

{claims_table(results, BASELINE)}

## Experiment 2: how much jitter, against how much motion

{section("sigma", results)}

{claims_table(results, [*steps("sigma", sigma, "dip", ">", "shallower"), *steps("sigma", sigma, "motion", "<", "less motion")])}

A sigma of 1 would let a base be 0; 0.99 stands for it.

## Experiment 3: how many heads

By the sweep with the content held fixed (`--sweep`): at the predicted frames and their neighbours, over the median of 9 other frames. It
sees whether heads turn to the sinks, not what the picture then does.

{section("share-sweep", results)}

{claims_table(results, steps("share-sweep", shares, "rise", "<", "less mass"))}

## Bases that are chosen

The same sweep. A draw of chosen bases is the order in which the heads have them; *by layer*, all heads of all layers have draws of their
own, where LoL leaves open whether layers share theirs; *least ripple* shifts bases as far as the drawn ones on average (root mean square).

{section("bases-sweep", results)}

{claims_table(results, [Claim(f"{cell}: less mass than drawn", "bases-sweep", cell, "rise", "<", DRAWN) for cell in bases])}

## Rivals

The same sweep.

{section("rivals-sweep", results)}

{claims_table(results, [Claim(f"{cell}: less mass than plain", "rivals-sweep", cell, "rise", "<", "plain") for cell in rivals])}

## What this says

Explained:

- Sink-collapse is there, at the frames that the real part of the phase kernel predicts, in the picture and in the attention, and moving the
  frame number alone brings it about.
- More jitter and more jittered heads make it less, step by step in the means; the steps between neighbours are told apart only in part,
  because draws differ as much as steps do. With half of the heads jittered, the attention still rises.
- Under jitter that is spread evenly heads turn to the sinks less than under jitter that is drawn, here, with four heads, where it also
  shifts bases further than most draws do. That pictures then fall back less is not told apart: orders of the same
  bases differ as well. Chosen bases of the same shift (least ripple), and draws for every layer, do more than one draw for all layers: four
  heads have too few bases for the phases of a bad draw to part. `Rope(scope="layer")` makes such draws.
- RIFLEx's one slower pair and a constant bias on the sinks leave the heads turning to them at 201 (a rise is over the policy's own
  median, which a bias lowers too). With PI, NTK and YaRN they no longer turn at 132 or 201; these stretch the kernel, and whether they
  return elsewhere is not what this sweep looks for. Positions in the window, and sinks that follow at a distance, are the same at every
  frame by construction.

Null results, and results that are too weak to act on:

- Motion: no policy with jitter is told apart from plain RoPE in latent motion. LoL's trade-off between collapse and motion does not show
  here, down to a few per cent.
- Sink-Collapse, the largest fall of a video anywhere, hardly tells policies apart on `tiny`, perhaps because its scenes come back to
  their opening by themselves: measure at predicted frames, against elsewhere.
- The gates weaken the turn to the sinks, and do not remove it. A gate is decided chunk by chunk, so that the neighbours of a chunk that is
  shut count here; what the picture does under one was not measured.
- Chosen bases were compared by the sweep alone, at two videos and few orders, and not at equal motion in rollouts. That is no ground for a
  `sigma="auto"`, and there is none; `spread=stratified` is there for models with few heads.

## What was not run

| command | rollouts | hours of one core, predicted |
|---|---|---|
{chr(10).join(cost(name, 12, 5) for name in ("sigma", "share", "bases", "rivals", "base", "sinks", "dimension"))}

They share rollouts (`-o` names the folder that keeps them), `--jobs` takes more cores, and `--cells` picks rows. Further:

- Decoded video: Dynamic Degree by optical flow, drift of luminance, saturation and sharpness, contact sheets.
  `lolrt lab rollout --policies sigma=0 sigma=0.8 sigma=0.8,spread=stratified --seeds 0 1` measures them; motion above is that of latents.
- A second model, trained with another seed, to see that this is not the accident of one training:
  `python -m lolrt.train.tiny --seed 1 --work build/second --out build/second/tiny`, about 1.4 hours of two cores as its help says, less
  with `--minutes-dit`; then every command above with `--model build/second/tiny`.
- A published checkpoint: `lolrt lab rollout --model PATH --policies sigma=0 sigma=0.8 --prompts "..." --latents`, two rollouts of 80
  chunks. One layer of the 1.3B model takes 13 s a chunk on two cores with AVX512-BF16 ([benchmarks.md](benchmarks.md)); thirty would take
  about {2 * 80 * 30 * 13 / 3600:.0f} hours there: a job for a GPU or a larger machine.
"""


def main() -> None:
    results = {path.stem: Result.read(path) for path in sorted(KEPT.glob("*.json"))}
    (DOCS / "collapse.md").write_text(document(results))
    for name, result in results.items():
        picture = KEPT / f"{name}.png"
        if result.sweeps:
            continue
        tables.figure(result, picture)
        Image.open(picture).convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(picture, optimize=True)


if __name__ == "__main__":
    main()
