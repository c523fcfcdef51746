"""`lolrt serve`: serves live streams, to watch and steer in a browser."""

from __future__ import annotations

import argparse
import contextlib
import re
from pathlib import Path
from typing import Any

from lolrt.cli.options import (
    MODEL_HELP,
    Commands,
    HelpWithDefaults,
    add_kv,
    add_linear,
    add_lora,
    add_vae,
    add_weights,
    kv_dtype,
    positive,
    tell_warnings,
    whole,
)
from lolrt.errors import Error
from lolrt.files import temporary_folder
from lolrt.media import CRF


def add_command(commands: Commands) -> None:
    serve = commands.add_parser("serve", help="live streams on a page, watched and steered by many", formatter_class=HelpWithDefaults)
    serve.set_defaults(run=run)
    seconds: dict[str, Any] = {"metavar": "SECONDS", "type": positive(float)}
    serve.add_argument("--model", default="tiny", help=MODEL_HELP)
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    serve.add_argument("--port", type=whole(0, 65535), default=8000, help="0: any that is free")
    serve.add_argument("--token-file", metavar="FILE", type=Path, help="holds a token that clients have to know; needed beyond loopback")
    serve.add_argument("--state", metavar="DIR", help="keep sessions there, so that they come back with the next server")
    serve.add_argument("--save-every", **seconds, default=10.0, help="how often a session is saved to --state")
    serve.add_argument("--max-sessions", metavar="N", type=positive(int, 10_000), default=4, help="sessions that may be open")
    serve.add_argument(
        "--max-client-sessions", metavar="N", type=positive(int), help="those that one address may have open; by default all"
    )
    serve.add_argument("--lease", **seconds, default=120.0, help="a session that nobody watches ends after so long")
    serve.add_argument("--max-lifetime", **seconds, help="every session ends after so long; by default none")
    serve.add_argument("--ahead", **seconds, default=2.0, help="the most that a session is made ahead of its viewers")
    serve.add_argument("--dvr", **seconds, default=60.0, help="that viewers can go back, or be away")
    serve.add_argument("--max-video-seconds", **seconds, default=60.0, help="the longest clip of /v1/videos")
    serve.add_argument("--crf", type=int, choices=range(1, 52), metavar="1..51", default=CRF, help="loss of the video: 1 is the least")
    add_weights(serve)
    add_lora(serve)
    serve.add_argument(
        "--lora-module", metavar="NAME=FILE", action="append", default=[],
        help="adapters that clients may choose for a session by this name; may be given several times",
    )  # fmt: skip
    serve.add_argument(
        "--max-loras",
        metavar="N",
        type=positive(int),
        default=1,
        help="different choices of such adapters at once; each has weights of its own",
    )
    add_vae(serve)
    add_kv(serve)
    add_linear(serve)
    serve.add_argument("--device", metavar="DEVICE", default="cpu", help="cpu, cuda, or a GPU by its number, such as cuda:1")
    serve.add_argument(
        "--ray", action="store_true", help="serve from a fleet on Ray, whose sessions go on elsewhere when a machine dies; docs/fleet.md"
    )
    serve.add_argument("--replicas", metavar="N[:MOST]", default="1", help="with --ray: the number of replicas, or the least and the most")
    serve.add_argument("--threads", type=positive(int), help="CPU threads; by default all cores")


def run(arguments: argparse.Namespace) -> None:
    import lolrt
    from lolrt.ops.device import usable
    from lolrt.pipeline import files_of

    temporary_folder().cleanup()  # clips and snapshots go through one; better told now than when a model has been loaded
    try:
        from lolrt.serve.guard import read_token
        from lolrt.serve.server import serve
        from lolrt.serve.settings import Settings

        if arguments.ray:
            from lolrt.fleet.ray import Fleet, bounds, run_fleet
    except ImportError as error:
        extra = "ray" if arguments.ray else "serve"
        raise Error(f"lolrt serve needs {error.name}: install it with pip install 'lolrt[{extra}]'") from None

    settings = Settings(
        max_sessions=arguments.max_sessions,
        lease_seconds=arguments.lease,
        ahead_seconds=arguments.ahead,
        dvr_seconds=arguments.dvr,
        crf=arguments.crf,
        token=None if arguments.token_file is None else read_token(arguments.token_file),
        max_client_sessions=arguments.max_client_sessions,
        max_lifetime_seconds=arguments.max_lifetime,
        max_video_seconds=arguments.max_video_seconds,
        save_every_seconds=arguments.save_every,
        lora_modules=lora_modules(arguments),
        max_loras=arguments.max_loras,
        kv_dtype=kv_dtype(arguments),
        state=None if arguments.state is None or arguments.ray else Path(arguments.state),
    )
    model = {
        "model": arguments.model, "vae": arguments.vae, "vae_tile": arguments.vae_tile, "lora": arguments.lora, "group": arguments.weights,
        "linear": arguments.linear,
    }  # fmt: skip
    if arguments.ray:
        if arguments.state is None:
            raise Error("--ray needs --state: a folder that all machines reach, or a URL such as s3://bucket/folder")
        with contextlib.suppress(Error):  # the machines that load the model have it; this one may not
            tell_warnings(files_of(arguments.model, {"dit"}, arguments.weights))
        actor = {"num_cpus": arguments.threads or 1, "num_gpus": int(arguments.device != "cpu")}
        fleet = Fleet(arguments.state, settings, model, arguments.device, arguments.threads, bounds(arguments.replicas), actor)
        run_fleet(fleet, arguments.host, arguments.port)
        return
    if arguments.replicas != "1":
        raise Error("--replicas goes with --ray: without it there is one server")
    if arguments.threads:
        lolrt.set_threads(arguments.threads)
    files = files_of(arguments.model, {"dit"}, arguments.weights)
    tell_warnings(files)
    pipe = lolrt.load(**{**model, "model": files}, device=usable(arguments.device))
    serve(pipe, settings, arguments.host, arguments.port)


def lora_modules(arguments: argparse.Namespace) -> dict[str, Path]:
    """The adapters that clients may choose. Raises `lolrt.Error` if they do not fit the model, and for wrong or repeated names."""
    from lolrt.checkpoint.load import check_lora
    from lolrt.pipeline import files_of

    modules: dict[str, Path] = {}
    for given in arguments.lora_module:
        name, equals, file = given.partition("=")
        path = Path(file).absolute()
        if not equals or not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise Error(f"--lora-module {given}: expected NAME=FILE, with a name of letters, digits, - and _")
        if name in modules or path.name in {other.name for other in modules.values()}:
            raise Error(f"--lora-module {given}: another one has this name, or a file of this name; saved sessions know adapters by them")
        check_lora(files_of(arguments.model, {"dit"}, arguments.weights), path)
        modules[name] = path
    return modules
