"""The command line of the laboratory: `lolrt lab phase`, `rollout`, `experiment`, `returning` and `text`."""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from lolrt.cli.options import SEED, Commands, HelpWithDefaults, positive, whole
from lolrt.errors import Error

# The most latent frames, and the most of what is counted one by one. Nobody waits for more.
MOST_FRAMES, MOST = 10**6, 10_000
CHANNELS = whole(0, 4096)

POLICIES = ("sigma=0", "sigma=0.8", "sigma=0.8,spread=stratified")
JITTERED = POLICIES[-1]
RECALLS = (
    "recall_frames=3",
    "recent_frames=6",
    "recall_frames=3,recent_frames=6",
    "recall_frames=3,recent_frames=6,recall_positions=kept",
)


def add_command(top: Commands) -> None:
    lab = top.add_parser("lab", help="predict and measure sink-collapse, and compare policies against it")
    commands = lab.add_subparsers(required=True, metavar="COMMAND")
    formatter = HelpWithDefaults

    phase = commands.add_parser("phase", help="where the phases of rotary positions come back to the sinks", formatter_class=formatter)
    phase.set_defaults(run=run_phase)
    phase.add_argument(
        "--split", type=CHANNELS, nargs=3, default=[44, 42, 42], metavar=("TIME", "ROW", "COLUMN"), help="channels of a head"
    )
    phase.add_argument("--heads", type=positive(int, MOST), default=12, help="of a layer")
    phase.add_argument("--layers", type=positive(int, MOST), default=1, help="of the model; they matter where bases differ by layer")
    phase.add_argument("--policy", default="sigma=0", help="fields of Rope and Window: sigma=0.8,theta=6000,sink_frames=1,...")
    phase.add_argument("--frames", type=positive(int, MOST_FRAMES), default=400, help="latent frames to look at")
    phase.add_argument("--after", type=whole(0, MOST_FRAMES), default=100, help="latent frames that are left out of the prediction")
    phase.add_argument("--count", type=positive(int, MOST), default=2, help="how many frames to predict")
    phase.add_argument("-o", "--output", type=Path, default=Path("out/phase"), help="writes OUTPUT.csv and OUTPUT.png")

    rollout = commands.add_parser("rollout", help="measure long rollouts of policies, and report them", formatter_class=formatter)
    rollout.set_defaults(run=run_rollout)
    _add_run_options(rollout, Path("out/rollout"))
    rollout.add_argument("--policies", nargs="+", default=list(POLICIES), metavar="POLICY", help="name=value pairs; see `lolrt lab phase`")
    rollout.add_argument("--prompts", nargs="+", metavar="PROMPT", help="by default the model's examples")
    rollout.add_argument("--seeds", type=SEED, nargs="+", default=[0], help="of the noise; every prompt is run with each")
    rollout.add_argument("--latents", action="store_true", help="decode no video: several times as fast, no flow, drift or pictures")

    from lolrt.lab.plans import EXPERIMENTS

    experiment = commands.add_parser("experiment", help="a question asked of a model", formatter_class=formatter)
    experiment.set_defaults(run=run_experiment)
    experiment.add_argument("name", choices=list(EXPERIMENTS), help="; ".join(f"{name}: {e.question}" for name, e in EXPERIMENTS.items()))
    _add_run_options(experiment, Path("out/experiments"))
    experiment.add_argument("--videos", type=positive(int, MOST), default=12, help="a prompt of the model's examples and a noise seed each")
    experiment.add_argument("--cells", nargs="+", default=[], metavar="CELL", help="rows of its table, to run these and plain RoPE alone")
    experiment.add_argument("--sweep", action="store_true", help="no rollouts: the content held fixed, a chunk's number alone moved")
    experiment.add_argument("--draws", type=positive(int, MOST), default=5, help="jitter draws a cell, where there is anything to draw")

    returning = commands.add_parser("returning", help="what a stream remembers of a scene that it comes back to", formatter_class=formatter)
    returning.set_defaults(run=run_returning)
    returning.add_argument("--model", default="tiny", help="the name of an embedded model, or a model folder that knows its words")
    returning.add_argument(
        "--policies", nargs="+", default=[JITTERED, *(f"{JITTERED},{recall}" for recall in RECALLS)], metavar="POLICY",
        help="the others are compared with the first",
    )  # fmt: skip
    returning.add_argument("--seeds", type=positive(int, MOST), default=8, help="streams of each scene")
    returning.add_argument("--jobs", type=positive(int, MOST), default=1, help="processes of one thread each")
    returning.add_argument("-o", "--output", type=Path, default=Path("out/returning"), help="writes OUTPUT/returning.md")

    text = commands.add_parser("text", help="whether a small text model turns to its sinks as well", formatter_class=formatter)
    text.set_defaults(run=run_text)
    text.add_argument("--seeds", type=SEED, nargs="+", default=[0], help="a model is trained with each")
    text.add_argument("--steps", type=positive(int), default=800, help="of training")
    text.add_argument("--texts", type=positive(int, MOST), default=12, help="held-out texts")
    text.add_argument("--tokens", type=positive(int), default=512, help="of a text")
    text.add_argument("--draws", type=positive(int, MOST), default=5, help="of the jitter")
    text.add_argument("-o", "--output", type=Path, default=Path("out/text"), help="keeps the models; writes OUTPUT/text.md and figures")


def _add_run_options(parser: argparse.ArgumentParser, folder: Path) -> None:
    parser.add_argument("--model", default="tiny", help="the name of an embedded model, or the path of a model folder")
    parser.add_argument("--frames", type=positive(int, MOST_FRAMES), default=240, help="latent frames of a video")
    parser.add_argument("--jobs", type=positive(int, MOST), default=1, help="processes of one thread each")
    parser.add_argument("-o", "--output", type=Path, default=folder, help="the folder that keeps the measurements; the same goes on")


def run_phase(arguments: argparse.Namespace) -> None:
    from lolrt.lab.phase import phase_table
    from lolrt.lab.policy import Policy
    from lolrt.positions.frequencies import identify_k

    policy, channels = Policy.parse(arguments.policy), arguments.split[0]
    if any(part < 0 or part % 2 for part in arguments.split) or channels < 2:
        raise Error(f"--split is {arguments.split}; expected three even numbers, the first 2 or more")
    if arguments.frames < 2 * policy.window.pages:
        raise Error(f"--frames is {arguments.frames}; expected at least two windows, {2 * policy.window.pages}")
    radians = policy.rope.radians(arguments.layers, arguments.heads, channels // 2).reshape(-1, channels // 2)
    window = policy.window
    table = phase_table(radians, arguments.frames, window.sink_frames, window.chunk_frames)
    title = f"{arguments.policy or '(default)'}: {channels} temporal channels of {sum(arguments.split)}, {arguments.heads} heads"
    csv, picture = arguments.output.with_suffix(".csv"), arguments.output.with_suffix(".png")
    table.write(csv)
    frames, chunks = (predict(arguments.count, arguments.after) for predict in (table.predicted, table.predicted_chunks))
    start = {int(frame): value for frame, value in zip(table.starts, table.chunk_real, strict=True)}
    k, period = identify_k(policy.rope.theta, channels, policy.rope.length_frames)
    print(title)
    print(f"highest past frame {arguments.after}: {', '.join(f'{frame} ({table.real[frame]:.3f})' for frame in frames)}")
    averaged = f"mean over {max(window.sink_frames, 1)} sinks and {window.chunk_frames} frames, at chunk starts"
    print(f"{averaged}: {', '.join(f'{frame} ({start[frame]:.3f})' for frame in chunks)}")
    print(f"RIFLEx's intrinsic pair for a first repetition at {policy.rope.length_frames}: k = {k}, period {period}")
    try:
        table.plot(picture, title)
    except Error as error:  # the numbers are printed even if the plot library is missing
        print(f"{csv}; no picture: {error}")
    else:
        print(f"{csv}, {picture}")


def run_rollout(arguments: argparse.Namespace) -> None:
    from lolrt.lab.report import write_report
    from lolrt.lab.rollout import Folder, Plan, Video, loaded, run

    prompts = arguments.prompts or loaded(arguments.model).example_prompts
    if not prompts:
        raise Error(f"{arguments.model} names no example prompts; give some with --prompts")
    videos = list(product(prompts, arguments.seeds))
    folder = Folder(arguments.output, Plan(arguments.model, arguments.frames, decode=not arguments.latents))
    run(folder, [Video(policy, *video) for policy in arguments.policies for video in videos], arguments.jobs)
    print(write_report(folder, arguments.policies, videos))


def run_experiment(arguments: argparse.Namespace) -> None:
    from lolrt.lab.experiments import run

    asked = arguments.name, arguments.model, arguments.frames, arguments.videos, arguments.draws, arguments.cells, arguments.sweep
    print(run(*asked, arguments.output, arguments.jobs))


def run_returning(arguments: argparse.Namespace) -> None:
    from lolrt.lab.returning import run

    print(run(arguments.model, arguments.policies, arguments.seeds, arguments.output, arguments.jobs))


def run_text(arguments: argparse.Namespace) -> None:
    from lolrt.lab.text import run

    print(run(arguments.seeds, arguments.steps, arguments.texts, arguments.tokens, arguments.draws, arguments.output))
