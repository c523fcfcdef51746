"""Command line: makes `journey` from scratch.

    python -m lolrt.train.journey --work FOLDER        # about 4 h on two cores: the DiT beside clips and VAE; then the decoder; measures
    python -m lolrt.train.journey --work FOLDER --start lolrt/_embedded/journey    # goes on from the model of the package

    python -m lolrt.train.journey --work FOLDER --start lolrt/_embedded/journey --stages data finetune measure    # only its decoder

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
from lolrt.train.journey.plan import Plan, clips_stage, dit_stage, finetune_stage, vae_stage
from lolrt.train.journey.start import take_over
from lolrt.workers import pool

SHIPPED = Path(__file__).parents[2] / "_embedded" / "journey"
STAGES = ("data", "clips", "vae", "dit", "ship", "finetune", "measure")


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
        # The first has a process to itself, and draws from clips as they come.
        stages = (("dit", dit_stage), ("clips", clips_stage), ("vae", vae_stage))
        jobs = [processes.submit(job, args.work, plan) for stage, job in stages if stage in args.stages]
        for job in jobs:
            job.result()
    if "ship" in args.stages:
        export(args.work, args.out, plan.dit, plan.vae, plan.seed)
    set_threads(1)  # the bits of streams depend on it
    if "finetune" in args.stages:
        finetune_stage(args.work, plan, args.out)
        export(args.work, args.out, plan.dit, plan.vae, plan.seed, with_dit=False)
    if "measure" in args.stages:
        measure(args.out, args.work, plan.seed, plan.data, plan.effort)
        write_card(args.out)


if __name__ == "__main__":
    main()
