"""Command line: makes `journey` from scratch.

    python -m lolrt.train.journey --work FOLDER                  # about 3 h on two cores: data; VAE and DiT side by side; measures
    python -m lolrt.train.journey --work FOLDER --stages dit     # a stage alone; vae: the DiT's clips, and then the VAE

    python -m lolrt.train.journey --work FOLDER --start lolrt/_embedded/journey    # goes on from the model of the package

Every stage resumes from its checkpoint in the work folder, which is at most some minutes old, and is skipped when it is complete.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from lolrt.ops.threads import set_threads
from lolrt.train.journey.card import write_card
from lolrt.train.journey.data import make_pixels
from lolrt.train.journey.export import export
from lolrt.train.journey.measure import measure
from lolrt.train.journey.plan import Plan, dit_stage, pixels_stage
from lolrt.train.journey.start import take_over
from lolrt.workers import pool

SHIPPED = Path(__file__).parents[2] / "_embedded" / "journey"
STAGES = ("data", "vae", "dit", "ship", "measure")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lolrt.train.journey", description="Trains `journey` from nothing.")
    parser.add_argument("--work", type=Path, default=Path("build/journey"), help="data, checkpoints and log (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the model's folder (default: inside the package)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="the folder of an exported model, to go on from its weights")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="which stages to run (default: all)")
    parser.add_argument("--smoke", action="store_true", help="run everything in miniature, to see that it runs")
    args = parser.parse_args()
    plan = replace(Plan.smoke(args.seed) if args.smoke else Plan(args.seed), start=args.start)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.start is not None:
        take_over(args.start, args.work)

    if "data" in args.stages:
        make_pixels(args.work, plan.seed, plan.data, workers=2, z_dim=plan.z_dim)
    with pool(2) as processes:
        jobs = [
            processes.submit(job, args.work, plan) for stage, job in (("vae", pixels_stage), ("dit", dit_stage)) if stage in args.stages
        ]
        for job in jobs:
            job.result()
    if "ship" in args.stages:
        export(args.work, args.out, plan.dit, plan.vae, plan.seed)
    if "measure" in args.stages:
        set_threads(1)  # the bits of long videos depend on it
        measure(args.out, args.work, plan.seed, plan.data, plan.effort)
        write_card(args.out)


if __name__ == "__main__":
    main()
