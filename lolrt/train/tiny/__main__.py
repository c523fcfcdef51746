"""Command line: makes the embedded model from scratch.

    python -m lolrt.train.tiny                   # about 1.4 h on two cores, VAE and DiT side by side, and 2 h on one to measure the model
    python -m lolrt.train.tiny --stages measure  # measures the model in its folder, and writes its card

Every stage resumes from what is in the work folder, and is skipped when it is complete.
"""

import argparse
from pathlib import Path

from lolrt.ops.threads import set_threads
from lolrt.train.tiny.card import write_card
from lolrt.train.tiny.data import make_data
from lolrt.train.tiny.export import export
from lolrt.train.tiny.measure import measure
from lolrt.train.tiny.plan import Plan, train_dit_stage, train_vae_stages
from lolrt.workers import pool

SHIPPED = Path(__file__).parents[2] / "_embedded" / "tiny"
STAGES = ("data", "vae", "dit", "ship", "measure")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lolrt.train.tiny", description="Trains the embedded model from nothing.")
    parser.add_argument("--work", type=Path, default=Path("build/tiny"), help="data, checkpoints and log (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the model's folder (default: inside the package)")
    parser.add_argument("--minutes-vae", type=float, default=36.0, help="CPU time that trains the VAE, on one thread (default: 36)")
    parser.add_argument("--minutes-dit", type=float, default=75.0, help="of the DiT, on another, at the same time (default: 75)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="which stages to run (default: all)")
    parser.add_argument("--smoke", action="store_true", help="run everything in miniature, to see that it runs")
    args = parser.parse_args()
    plan = Plan.smoke(args.seed) if args.smoke else Plan(args.seed, args.minutes_vae, args.minutes_dit)
    args.work.mkdir(parents=True, exist_ok=True)

    if "data" in args.stages and not (args.work / "pca.pt").exists():
        make_data(args.work, plan.seed, plan.data, workers=2, z_dim=plan.z_dim)
    with pool(2) as processes:
        jobs = [
            processes.submit(job, args.work, plan)
            for stage, job in (("vae", train_vae_stages), ("dit", train_dit_stage))
            if stage in args.stages
        ]
        for job in jobs:
            job.result()
    if "ship" in args.stages:
        export(args.work, args.out, plan.dit, plan.vae(args.work), plan.seed)
    if "measure" in args.stages:
        set_threads(1)  # the bits of long videos depend on it
        measure(args.out, args.work, plan.seed, plan.data, plan.effort)
        write_card(args.out)


if __name__ == "__main__":
    main()
