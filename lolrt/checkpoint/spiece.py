"""Reads the tokenizer in ComfyUI's files of a text encoder: SentencePiece's own file, stored as the bytes of a tensor.

The file is a protocol buffers message, `ModelProto` of sentencepiece_model.proto. A message has fields with a number, a kind and a value,
in any order; nested messages are bytes. Fields that are not needed are skipped. If a field other than pieces occurs twice, the last one
counts. A text that contains the name of a special piece, such as </s>, gets that piece, as in transformers; SentencePiece would spell it
out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lolrt.checkpoint.unigram import NORMAL, Unigram
from lolrt.errors import CheckpointError

NAME = "spiece_model"  # the name of the tensor

# UMT5's tokenizer takes 4.5 MB and has 256,300 pieces.
MOST_BYTES = 64_000_000
MOST_PIECES = 1_000_000

# The kinds of values, and the number of bytes of those with a fixed size.
VARINT, BYTES, FIXED = 0, 2, {1: 8, 5: 4}
# The fields of ModelProto that are read: 1 pieces (1 piece, 2 score, 3 type); 2 trainer_spec (3 model_type, 24 treat_whitespace_as_suffix,
# 47 eos_piece); 3 normalizer_spec (2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces).
MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "words", 4: "characters"}


class _DamagedError(ValueError):
    pass


def tokenizer_of(model: Tensor, source: Path) -> dict[str, Any]:
    """The tokenizer in the format of tokenizer.json. model: the bytes of the file, uint8.

    Raises `lolrt.CheckpointError` if it is damaged, or not a unigram model like those of T5.
    """
    if model.dtype != torch.uint8 or not 0 < model.numel() <= MOST_BYTES:
        kind = f"{str(model.dtype).removeprefix('torch.')} {list(model.shape)}"
        raise CheckpointError(f"{source} has a {NAME} of {kind}; expected the bytes of SentencePiece's file, uint8")
    try:
        found = _unigram(model.contiguous().view(-1).numpy().tobytes(), source)
    except _DamagedError as error:
        told = f"{source} has a {NAME} that is damaged or not SentencePiece's file ({error}); fetch the file again"
        raise CheckpointError(told) from None
    if fault := found.fault():
        raise CheckpointError(f"{source} has a {NAME} that {fault}; fetch the file again")
    return found.to_json()


def _unigram(content: bytes, source: Path) -> Unigram:
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    last: dict[int, int | bytes] = {}
    for number, value in _fields(content):
        last[number] = value
        if number == 1:
            piece = dict(_fields(_bytes(value)))
            pieces.append(_text(piece.get(1, b"")))
            scores.append(_float(piece.get(2, bytes(4))))
            types.append(_whole(piece.get(3, NORMAL)))
        if len(pieces) > MOST_PIECES:
            raise _DamagedError(f"it has more than {MOST_PIECES:,} pieces")
    trainer, normalizer = (dict(_fields(_bytes(last.get(number, b"")))) for number in (2, 3))
    if (kind := _whole(trainer.get(3, 1))) != 1:
        told = MODEL_TYPES.get(kind, str(kind))
        raise CheckpointError(f"{source} has a {NAME} of kind {told}; expected a unigram model, as T5's tokenizers are")
    add_prefix, remove_extra_whitespaces, escape_whitespaces = (bool(_whole(normalizer.get(number, 1))) for number in (3, 4, 5))
    if _whole(trainer.get(24, 0)) or not escape_whitespaces:
        raise CheckpointError(f"{source} has a {NAME} whose pieces do not begin with their spaces, as T5's tokenizers' do")
    end = _text(trainer.get(47, b"</s>"))
    number = pieces.index(end) if end in pieces else -1
    return Unigram(pieces, scores, types, _bytes(normalizer.get(2, b"")), number, add_prefix, remove_extra_whitespaces)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbers and values of the fields of a message, in their order."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in FIXED:
            length = FIXED[kind]
        else:
            raise _DamagedError(f"a value of it is of kind {kind}")
        if length > len(message) - at:
            raise _DamagedError("a value of it ends behind its end")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number stored in bytes of seven bits, the lowest first, and the position after it."""
    value = 0
    for i, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise _DamagedError("a number of it does not end")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _DamagedError("a number stands where bytes should")
    return value


def _whole(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise _DamagedError("bytes stand where a number should")
    return value


def _text(value: int | bytes) -> str:
    try:
        return str(_bytes(value), "utf-8")
    except UnicodeDecodeError:
        raise _DamagedError("a text of it is no UTF-8") from None


def _float(value: int | bytes) -> float:
    if len(_bytes(value)) != 4:
        raise _DamagedError("a score of it is no number")
    return float(struct.unpack("<f", _bytes(value))[0])
