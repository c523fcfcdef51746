"""The model card: evaluates the shipped files and writes README.md, training.log and a picture beside them."""

import shutil
from itertools import islice
from pathlib import Path
from typing import cast

import torch

import lolrt.pipeline
from lolrt.models.vae.wan import CausalVAE
from lolrt.train.codec_pca import PCACodec
from lolrt.train.tiny.data import CLIP_FRAMES, MAX_GAP
from lolrt.train.tiny.evaluate import Effort, evaluate
from lolrt.train.tiny.scenes import VOCABULARY, values

CARD = """# tiny: endless little landscapes

A causal video diffusion transformer and a causal 3D VAE of Wan2.1's topology in miniature, trained from scratch by
`python -m lolrt.train.tiny` on video that the script draws itself. {width} x {height} pixels, {fps} frames a second, for as long
as you like.

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
  (below) is not learned.

## Cost
{cost}

Minutes are CPU time: VAE and DiT train side by side, on one core each. `training.log` has every minute of it.

## Measured
On held-out scenes, with the files of this folder, in bfloat16, on the project's own runtime.

{measured}

- `codec`: PSNR in dB of {frames}-frame clips, of whole frames and of the 15 % most detailed pixels, through encoder and decoder, and
  from PCA latents, which is what the DiT makes; `drift` compares the second half with the first.
- `prompt followed`: share of {prompts} generated videos of 15 seconds in whose last 5 seconds a linear probe reads what the
  prompt said; `probe on real clips` is how often that probe is right on real, held-out clips.
- `dip`: the least distance from the sink frames around latent frames 132 and 201, over that before and after (mean of {rollouts}
  videos; like `dip elsewhere`: nothing happens; well below: the video falls back to its beginning). `mass`: attention on the sinks,
  over its median.
- `speed`: decoding included, {threads} threads, while other work ran on the machine.

## Known limits
- It knows {objects} and nothing else. Details of a few pixels (wheels, ropes, stars) are soft, and so is the first second.
- Whatever scrolls in is made up as it comes; the same hill never returns.
- With four heads, a random draw of the jitter can be unlucky, as that of seed 0 is; see the draws above.
"""


def _cost(work: Path) -> str:
    lines = ["| stage | minutes | steps |", "|---|---|---|"]
    for name in ("decoder", "encoder", "vae", "dit"):
        state = torch.load(work / f"{name}.pt")
        lines.append(f"| {name} | {state['seconds'] / 60:.0f} | {state['step']} |")
    return "\n".join(lines)


def write_card(out: Path, work: Path, codec: PCACodec, seed: int, effort: Effort) -> None:
    """Evaluates the model in `out` and writes its README.md and training.log there; `samples.png`, to look at, goes to `work`."""
    pipe = lolrt.pipeline.load(out)
    results = evaluate(pipe, codec, work, seed, effort)
    rows = [f"| {what} | {', '.join(f'{key} {value:.2f}' for key, value in row.items())} |" for what, row in results.items()]
    text = CARD.format(
        width=pipe.width,
        height=pipe.height,
        fps=pipe.fps,
        clips=len(torch.load(work / "train.pt", mmap=True)["words"]),
        max_gap=MAX_GAP,
        max_offset=MAX_GAP + CLIP_FRAMES // 4,
        z_dim=pipe.dit.config.in_dim,
        vocabulary="\n".join(f"- {group}: {', '.join(words)}" for group, words in VOCABULARY.items()),
        vae_parameters=sum(p.numel() for p in cast(CausalVAE, pipe.vae).parameters()) / 1e6,
        dit_parameters=sum(p.numel() for p in pipe.dit.parameters()) / 1e6,
        cost=_cost(work),
        measured="\n".join(["| what | values |", "|---|---|", *rows]),
        frames=effort.codec_frames,
        prompts=effort.prompts,
        rollouts=effort.rollouts,
        threads=torch.get_num_threads(),
        objects=", ".join(values("object")),
    )
    (out / "README.md").write_text(text)
    shutil.copyfile(work / "training.log", out / "training.log")
    write_samples(pipe, work / "samples.png", effort.video_chunks)
    print(text)


def write_samples(pipe: lolrt.pipeline.Pipeline, path: Path, chunks: int, columns: int = 8) -> None:
    """A contact sheet: one row for each example prompt, frames evenly over `chunks` chunks."""
    from PIL import Image

    rows = []
    for number, prompt in enumerate(pipe.example_prompts):
        frames = torch.cat([chunk.frames for chunk in islice(pipe.stream(prompt, seed=number), chunks)])
        rows.append(torch.cat(list(frames[torch.linspace(0, len(frames) - 1, columns).long()]), 1))
    sheet = Image.fromarray(torch.cat(rows).numpy())
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.BICUBIC).save(path)
