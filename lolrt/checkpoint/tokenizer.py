"""Reads the tokenizer of a text encoder: from tokenizer.json, and no other file of its folder, or from the encoder's own file."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lolrt.checkpoint import charsmap
from lolrt.checkpoint.formats import Component
from lolrt.checkpoint.model_files import TOKENIZER
from lolrt.checkpoint.shapes import read_json, text_encoder_config
from lolrt.errors import CheckpointError


def read_tokenizer(encoder: Component, folder: Path | None) -> dict[str, Any]:
    """The content of tokenizer.json; without a folder, the tokenizer in the encoder's file in the same format.

    Raises `lolrt.CheckpointError` if there is none, or if it has a token for which the encoder's table has no row.
    """
    if folder is None and encoder.tokenizer is None:
        raise CheckpointError(f"{encoder.source} has a UMT5 text encoder and no tokenizer; add its folder, google/umt5-xxl in Wan's own")
    path = encoder.source if folder is None else folder / TOKENIZER
    values = encoder.tokenizer() if folder is None and encoder.tokenizer else read_json(path)
    try:
        vocabulary = values["model"]["vocab"]  # token -> number, or a list of tokens in the order of their numbers
        numbers = [*(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))]
        largest = max([*numbers, *(token["id"] for token in values.get("added_tokens") or [])])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path} has no vocabulary of tokens; fetch it again") from None
    if largest >= (rows := text_encoder_config(encoder).vocab_size):
        raise CheckpointError(
            f"{path} has tokens up to number {largest}, and the text encoder a table of {rows} rows: they belong to different "
            "models; name the encoder's own tokenizer"
        )
    for fault in map(charsmap.fault, _charsmaps(values.get("normalizer"))):
        if fault:
            raise CheckpointError(f"{path} {fault}; fetch it again")
    return values


def _charsmaps(normalizer: Any) -> Iterator[bytes]:
    """All compiled normalisation rules of a normalizer, also of nested sequences."""
    waiting = [normalizer]
    for found in waiting:  # grows during the loop
        if isinstance(found, dict):
            inner = found.get("normalizers")
            waiting += inner if isinstance(inner, list) else []
            if isinstance(rules := found.get("precompiled_charsmap"), str):
                try:
                    yield base64.b64decode(rules)
                except (binascii.Error, ValueError):
                    yield b""
