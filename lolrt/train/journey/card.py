"""The model card: README.md, written from what was measured of a model (`measured.json`) and the log of its training, beside its files."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from statistics import mean, median
from typing import Any

from lolrt.train import text
from lolrt.train.card import MEASURED, cost, table
from lolrt.train.journey.data import CLIP_LATENTS, MAX_GAP
from lolrt.train.journey.measure import AROUND, RETURNS, WITHIN
from lolrt.train.journey.reading import GROUPS
from lolrt.train.journey.train_dit import OWN_PAST_FROM
from lolrt.train.journey.watch import OWN
from lolrt.train.journey.world import FPS, HEIGHT, VOCABULARY, WIDTH
from lolrt.train.spoilt import KINDS

CARD = """# journey: an endless way through six places

A causal video diffusion transformer and a causal 3D VAE of Wan2.1's topology in miniature, trained from scratch by
`python -m lolrt.train.journey` on video that the script draws itself. {width} x {height} pixels, {fps} frames a second: a camera that
travels with a {subjects}.

{summary}

Prompts are words of a small vocabulary; each group may be left out, and without a time the day goes round:

{vocabulary}

## Data
{clips} clips of {clip_latents} latent frames, each of a world of its own: layers that scroll and never repeat, and a subject that is
followed. The prompt changes in most clips, within the clip or in a gap of up to {max_gap} latent frames behind the first three: another
place comes in from where one travels to, another subject drives up as the old one leaves, and time, weather, colour and speed go over. No
pictures or videos of others were used.

## Recipe
- Latent space: principal components of 4 x 8 x 8 x RGB groups, in closed form ({z_dim} channels).
- VAE ({vae_parameters:.1f} M parameters): decoder and encoder trained apart against those latents, then together; then the
  decoder alone, to bring the sharpness of its video and the change from frame to frame closer to the data's.
- DiT ({dit_parameters:.1f} M parameters): flow matching with teacher forcing; every chunk of 3 sees the 3 sink frames and the 6 before
  it. In the last {own_past} % of the time of the last training, every second step sees a past that the model itself made from a noised
  one (self-resampling, arXiv 2512.15702).

## Cost
{cost}

Minutes are CPU time of one process. `training.log` has its course.

## Measured
With the files of this folder, on the project's own runtime, by `python -m lolrt.train.journey --stages measure`, which keeps the numbers
in `measured.json`. What a picture shows is told by a reader: a small convolutional network, trained on the scripted world and on pictures
whose subject was spoilt. On {held_out} held-out pictures that went through the VAE it is right so often, in per cent:

{reader}

PSNR in dB of {frames}-frame clips of held-out worlds, of whole frames and of the 15 % most detailed pixels, through encoder and decoder,
and from PCA latents, which is what the DiT makes; the drift compares the second half with the first:

{codec}

## Long videos
Share of the chunks, in per cent, with exactly one whole subject of the kind and colour of the prompt, in all and in the last minute; that
show the prompt's place, time and weather; the camera's speed over what was asked (median; on scripted video the ruler is within 5 %); the
change between frames where chunks begin over that elsewhere; and luminance, saturation and sharpness of the last minute, in standard
deviations from the mean of scripted frames of the same prompt. The last rows are scripted video that went through the VAE: what they
miss, the DiT cannot have:

{long_run}

## Where the phases return
In {returns_videos} videos of each policy the place changes {before:.0f} s after the start. Share of the chunks, in per cent, that show
the first place again, around latent frames {at} ({around} chunks each), where the sinks' phases of plain RoPE come back, and right before
them:

{returns}

## A new prompt on the way
{switches} switches that change two things each. How many show the new one within the time that was asked, and after how many seconds, by
the median (of {stays} chunks in a row that show it, the end of the first):

{switched}
"""


def write_card(out: Path) -> None:
    """Writes README.md from the files of `out`."""
    measured = json.loads((out / MEASURED).read_text())
    codec, reader, long_run, switches = measured["codec"], measured["reader"], measured["long_run"], measured["switches"]
    (out / "README.md").write_text(
        CARD.format(
            **measured["sizes"],
            width=WIDTH,
            height=HEIGHT,
            fps=FPS,
            subjects=_either(text.values(VOCABULARY, "subject")),
            summary=textwrap.fill(summary(measured), 138),
            vocabulary="\n".join(f"- {group}: {', '.join(words)}" for group, words in VOCABULARY.items()),
            clip_latents=CLIP_LATENTS,
            max_gap=MAX_GAP,
            own_past=_percent(1 - OWN_PAST_FROM),
            cost=cost(out / "training.log"),
            held_out=reader["worlds"],
            reader=table(["question", "right"], [[_question(what), _percent(share)] for what, share in reader["right"].items()]),
            frames=codec["frames"],
            codec=table([name.replace("_", " ") for name in codec["decibels"]], [[f"{value:.2f}" for value in codec["decibels"].values()]]),
            long_run=_long_run(long_run["videos"]),
            returns_videos=len(next(iter(measured["returns"][OWN].values()))),
            before=switches["before_seconds"],
            at=" and ".join(map(str, RETURNS)),
            around=2 * AROUND + 1,
            returns=_returns(measured["returns"]),
            switches=switches["number"],
            stays=switches["chunks_in_a_row"],
            switched=_switches(switches["seconds"]),
        )
    )


def summary(measured: dict[str, Any]) -> str:
    """What the model's own policy keeps of a subject, and how often a new prompt is seen to be followed."""
    long_run, switches = measured["long_run"], measured["switches"]["seconds"]
    videos = (video for video in long_run["videos"] if video["policy"] == OWN)
    kept = (f"{_percent(mean(video['right']))} % with a {' '.join(video['prompt'].split()[:2])}" for video in videos)
    shown = (f"{group} {sum(one is not None for one in found)} of {len(found)}" for group, found in switches.items())
    return (
        f"Chunks with exactly one whole subject of the right kind and colour, in {long_run['minutes']} minutes: {', '.join(kept)}. "
        f"Switches that brought the new one: {', '.join(shown)}."
    )


def _long_run(videos: list[dict[str, Any]]) -> str:
    shown = [group for group in GROUPS if group not in ("colour", "subject")]
    drifts = list(videos[0]["drift"])
    rows = [
        [
            video["policy"], str(video["minutes"]), video["prompt"], _percent(mean(video["right"])), _percent(video["right"][-1]),
            *(_percent(video["read"][group]) for group in shown), f"{video['speed']:.2f}", f"{video['border']:.2f}",
            *(f"{video['drift'][name]:+.1f}" for name in drifts),
        ]
        for video in videos
    ]  # fmt: skip
    return table(["policy", "minutes", "prompt", "subject", "last minute", *shown, "speed", "border", *drifts], rows)


def _returns(found: dict[str, dict[str, list[float]]]) -> str:
    frames = list(next(iter(found.values())))
    return table(["policy", *frames], [[policy, *(_percent(mean(of[frame])) for frame in frames)] for policy, of in found.items()])


def _switches(seconds: dict[str, list[float | None]]) -> str:
    rows = []
    for group, found in seconds.items():
        there = [one for one in found if one is not None]
        within = sum(one <= WITHIN[group] for one in there)
        middle = f"{median(there):.1f} s" if there else "-"
        rows.append([group, f"{WITHIN[group]:.0f} s", f"{within} of {len(found)}", f"{len(there)}", middle])
    return table(["group", "asked within", "shown within it", "shown at all", "median"], rows)


def _question(what: str) -> str:
    return f"one whole subject, {what}" if what in KINDS else what


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _either(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
