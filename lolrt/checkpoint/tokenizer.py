"""A text encoder's tokenizer: tokenizer.json, and nothing else that lies in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lolrt.checkpoint.model_files import TOKENIZER
from lolrt.checkpoint.shapes import read_json
from lolrt.errors import CheckpointError


def read_tokenizer(folder: Path, vocab_size: int) -> dict[str, Any]:
    """What tokenizer.json says.

    vocab_size: rows of the encoder's table. Raises `lolrt.CheckpointError` where there is no such file, or it has a token that has no row.
    """
    path = folder / TOKENIZER
    values = read_json(path)
    try:
        vocabulary = values["model"]["vocab"]  # token -> number, or a list of tokens in the order of their numbers
        numbers = [*(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))]
        largest = max([*numbers, *(token["id"] for token in values.get("added_tokens") or [])])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} has no vocabulary of tokens; fetch it again") from None
    if largest >= vocab_size:
        raise CheckpointError(
            f"{path} has tokens up to number {largest}, and the text encoder a table of {vocab_size} rows: they belong to different "
            "models; name the encoder's own tokenizer"
        )
    return values
