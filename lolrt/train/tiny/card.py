"""The model card: README.md, written from what was measured of a model (`measured.json`) and the log of its training, beside its files."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from lolrt.train.card import MEASURED, cost, table
from lolrt.train.spoilt import KINDS
from lolrt.train.tiny.data import CLIP_FRAMES, MAX_GAP
from lolrt.train.tiny.long_run import AROUND, RETURNS
from lolrt.train.tiny.scenes import FPS, HEIGHT, VOCABULARY, WIDTH, values

CARD = """# tiny: endless little landscapes

A causal video diffusion transformer and a causal 3D VAE of Wan2.1's topology in miniature, trained from scratch by
`python -m lolrt.train.tiny` on video that the script draws itself. {width} x {height} pixels, {fps} frames a second, for as long
as you like. {summary}

Prompts are words of a small vocabulary; each group may be left out:

{vocabulary}

## Data
{clips} clips of 21 latent frames, each a new scene: one balloon, boat or car that sways around the middle, in front of endless
layers that scroll. In every second clip, a gap of up to {max_gap} latent frames follows the first three. No pictures or videos of
others were used. `python -m lolrt.train.tiny --stages data` makes the same clips again.

## Recipe
- Latent space: principal components of 4 x 8 x 8 x RGB groups, in closed form ({z_dim} channels, one shared standard deviation).
- VAE ({vae_parameters:.1f} M parameters): decoder and encoder trained apart against those latents, then together, the encoder
  tied to them.
- DiT ({dit_parameters:.1f} M parameters): flow matching on the same latents with teacher forcing [clean | noisy] over 21 latent
  frames; every chunk of 3 sees the 3 sink frames and the 6 before it, with noise of up to 0.3 on what it sees. Muon on matrices,
  AdamW on the rest.
- The gaps teach it to see the sinks from afar, up to an offset of {max_offset} latent frames; what happens at frames 132 and 201
  is not learned.

## Cost
{cost}

Minutes are CPU time: VAE and DiT train side by side, on one core each. `training.log` has every minute of it.

## Measured
With the files of this folder, in bfloat16, on the project's own runtime, by `python -m lolrt.train.tiny --stages measure`, which keeps
the numbers in `measured.json`.

PSNR in dB of {frames}-frame clips of held-out scenes, of whole frames and of the 15 % most detailed pixels, through encoder and decoder,
and from PCA latents, which is what the DiT makes; the drift compares the second half with the first:

{codec}

## Where the phases return
Around latent frames 132 and 201 the sinks' phases come back (the repository's docs/collapse.md has more). Of the {around} chunks around
each, in the videos of {examples} example prompts, the share in per cent that shows exactly one whole subject of the right kind and colour:

{returns}

## The subject of a long video
The share of all frames, in per cent, with exactly one whole subject of the kind and the colour that the prompt says, minute by minute,
and the worst of the videos over its whole length:

{short}

Videos of {short_minutes} minutes, of the prompts {prompts}, with the seeds 0 to {last_seed}. A stream has the policy "{own}"
unless it is told otherwise. Of that policy, {long_minutes} minutes, in parts of ten:

{long}

In all of the policy's videos, the attributes are as the prompt says in {said} per cent of the frames.

{looks} frames of each minute were looked at, by a reader: a small convolutional network, trained on the scripted scenes and on scenes
whose subject was spoilt. On {held_out} held-out scenes that went through the VAE it is right so often, in per cent:

{reader}

By eye, on sheets of what it looked at, it is lenient: a pale double behind the subject, or a narrow gap in it, may pass. And these
are few videos: by this measure, no policy is surely better than another.

## A new prompt on the way
{switches} prompts that change all four attributes {before:.0f} s into a video. How many videos show the new one within {after:.0f} s
(as the reader sees in {stays} looks in a row, {every} s apart), and after how many seconds, by the median of these:

{switched}

`window` and `sinks` are what is run again under the new prompt (`--recache`): the recent frames, or the sinks as well.

## Known limits
- It knows {objects} and nothing else. Details of a few pixels (wheels, ropes, stars) are soft, and so is the first second.
- Whatever scrolls in is made up as it comes; the same hill never returns.
- With four heads, a random draw of the jitter can be unlucky, as that of seed 0 is.
"""


def write_card(out: Path) -> None:
    """Writes README.md from the files of `out`."""
    measured = json.loads((out / MEASURED).read_text())
    codec, reader = measured["codec"], measured["reader"]
    text = CARD.format(
        **measured["sizes"],
        **_long_run(measured["long_run"]),
        **_switches(measured["switches"]),
        around=2 * AROUND + 1,
        examples=len(next(iter(next(iter(measured["returns"].values())).values()))),
        returns=table(
            ["policy", *map(str, RETURNS)],
            [[policy, *(f"{100 * mean(shares):.0f}" for shares in at.values())] for policy, at in measured["returns"].items()],
        ),
        width=WIDTH,
        height=HEIGHT,
        fps=FPS,
        summary=summary(measured),
        max_gap=MAX_GAP,
        max_offset=MAX_GAP + CLIP_FRAMES // 4,
        vocabulary="\n".join(f"- {group}: {', '.join(words)}" for group, words in VOCABULARY.items()),
        cost=cost(out / "training.log"),
        frames=codec["frames"],
        codec=table([name.replace("_", " ") for name in codec["decibels"]], [[f"{value:.2f}" for value in codec["decibels"].values()]]),
        reader=table(
            ["question", "right"],
            [[f"one whole subject, {what}" if what in KINDS else what, f"{100 * share:.0f}"] for what, share in reader["right"].items()],
        ),
        held_out=reader["scenes"],
        objects=", ".join(values("object")),
    )
    (out / "README.md").write_text(text)


def _long_run(found: dict[str, Any]) -> dict[str, Any]:
    own = [video for video in found["videos"] if video["policy"] == found["own"]]
    read = {group: mean(video["read"][group] for video in own) for group in VOCABULARY}
    return {
        "own": found["own"],
        "short": _by_minute(found, list(dict.fromkeys(video["policy"] for video in found["videos"])), found["short_minutes"], 1),
        "long": _by_minute(found, [found["own"]], found["long_minutes"], 10),
        "short_minutes": found["short_minutes"],
        "long_minutes": found["long_minutes"],
        "prompts": ", ".join(" ".join(video["words"].values()) for video in own),
        "last_seed": max(video["seed"] for video in own),
        "looks": found["looks_a_minute"],
        "said": ", ".join(f"{100 * share:.0f} ({group})" for group, share in read.items()),
    }


def _switches(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "switches": found["number"],
        "before": found["before_seconds"],
        "after": found["after_seconds"],
        "stays": found["looks_in_a_row"],
        "every": found["look_seconds"],
        "switched": table(["run again", *VOCABULARY], [[name, *map(_shown, of.values())] for name, of in found["seconds"].items()]),
    }


def of_length(found: dict[str, Any], policy: str, minutes: int) -> dict[str, list[list[float]]]:
    """Kind of object -> the shares of right frames of each of a policy's videos that are so long, minute by minute."""
    shares: dict[str, list[list[float]]] = {}
    for video in found["videos"]:
        if video["policy"] == policy and len(video["right"]) >= minutes:
            of_minutes = [right / found["looks_a_minute"] for right in video["right"][:minutes]]
            shares.setdefault(video["words"]["object"], []).append(of_minutes)
    return shares


def summary(measured: dict[str, Any]) -> str:
    """What a long video of the model's own policy keeps of its subject, in a sentence."""
    found = measured["long_run"]
    parts = []
    for minutes in (found["short_minutes"], found["long_minutes"]):
        shares = of_length(found, found["own"], minutes)
        kinds = [f"{100 * mean(map(mean, videos)):.1f} % with a {kind} (videos: {len(videos)})" for kind, videos in shares.items()]
        parts.append(f"in {minutes} minutes {', '.join(kinds)}")
    return f"Frames with exactly one whole subject of the right kind and colour: {'; '.join(parts)}."


def _by_minute(found: dict[str, Any], policies: list[str], minutes: int, step: int) -> str:
    titles = [str(first + 1) if step == 1 else f"{first + 1}-{first + step}" for first in range(0, minutes, step)]
    rows = []
    for policy in policies:
        for kind, videos in of_length(found, policy, minutes).items():
            parts = [mean(mean(video[first : first + step]) for video in videos) for first in range(0, minutes, step)]
            whole = [mean(video) for video in videos]
            shares = [f"{100 * part:.0f}" for part in [*parts, mean(whole), min(whole)]]
            rows.append([policy, f"{kind} ({len(videos)})", *shares])
    return table(["policy", "object (videos)", *titles, "all", "worst video"], rows)


def _shown(seconds: list[float | None]) -> str:
    """How many there are of these, and their median."""
    there = [one for one in seconds if one is not None]
    return f"{len(there)} of {len(seconds)}" + (f", {median(there):.0f} s" if there else "")
