"""`lolrt encode`: computes the embeddings of prompts, for machines without the text encoder."""

from __future__ import annotations

import argparse
from pathlib import Path

from lolrt.cli.options import MODEL_HELP, Commands, HelpWithDefaults
from lolrt.errors import Error
from lolrt.files import remove_partials


def add_command(commands: Commands) -> None:
    encode = commands.add_parser(
        "encode", help="write embeddings of prompts, for machines without the text encoder", formatter_class=HelpWithDefaults
    )
    encode.set_defaults(run=run)
    encode.add_argument("prompts", metavar="PROMPT", nargs="*", help="prompts to encode")
    encode.add_argument("--script", metavar="FILE", help="a script whose prompts to encode as well")
    encode.add_argument("-o", "--output", metavar="FILE", required=True, help="a .safetensors file, for generate --text")
    encode.add_argument("--model", default="tiny", help=MODEL_HELP)


def run(arguments: argparse.Namespace) -> None:
    from lolrt.pipeline import load_text
    from lolrt.session.script import read_script
    from lolrt.text.embeddings import write_embeddings

    prompts = [*arguments.prompts, *(cue.prompt for cue in (read_script(arguments.script) if arguments.script else []))]
    prompts = list(dict.fromkeys(prompts))
    if not prompts:
        raise Error("there is nothing to encode: give prompts, or a script with --script")
    rows = dict(zip(prompts, load_text(arguments.model).encode(prompts), strict=True))
    remove_partials(Path(arguments.output))  # of a run that was killed
    write_embeddings(arguments.output, rows)
    tokens, dim = sum(map(len, rows.values())), next(iter(rows.values())).shape[1]
    print(f"{arguments.output}: {len(rows)} prompts, {tokens} rows of {dim}")
