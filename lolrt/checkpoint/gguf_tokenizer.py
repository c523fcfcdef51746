"""Reads the tokenizer in a GGUF file of a text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lolrt.checkpoint.unigram import Unigram
from lolrt.errors import CheckpointError

PREFIX = "tokenizer.ggml."


def has_tokenizer(fields: Mapping[str, Any]) -> bool:
    return f"{PREFIX}tokens" in fields


def tokenizer_of(fields: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The tokenizer in the format of tokenizer.json. Raises `lolrt.CheckpointError` if it is damaged, or not a unigram model."""

    def field(name: str, default: Any = None) -> Any:
        found = fields.get(PREFIX + name, default)
        return found.tolist() if isinstance(found, np.ndarray) else found

    pieces, scores, types, charsmap = (field(name, []) for name in ("tokens", "scores", "token_type", "precompiled_charsmap"))
    lists = all(isinstance(found, list) for found in (pieces, scores, types, charsmap))
    if field("model") != "t5" or not lists or not all(isinstance(piece, str) for piece in pieces):
        raise CheckpointError(f"{source} has a tokenizer of kind {str(field('model'))[:60]!r}; expected a unigram model, 't5'")
    if not all(type(x) is float for x in scores) or not all(type(x) is int for x in (*types, *charsmap)):
        raise CheckpointError(f"{source} has a tokenizer whose scores, types or rules are no numbers; fetch the file again")
    end, rules = field("eos_token_id"), bytes(byte % 256 for byte in charsmap)
    spaces = bool(field("add_space_prefix", True)), bool(field("remove_extra_whitespaces", True))
    model = Unigram(pieces, scores, types, rules, end if type(end) is int else -1, *spaces)
    if fault := model.fault():
        raise CheckpointError(f"{source} has a tokenizer that {fault}; fetch the file again")
    return model.to_json()
