"""Converts SentencePiece's unigram models, the kind of T5's tokenizers, to the format of tokenizer.json."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# The types of pieces, with SentencePiece's numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"  # U+2581, which stands for a space


@dataclass(frozen=True)
class Unigram:
    pieces: Sequence[str]
    """The pieces in the order of their numbers."""
    scores: Sequence[float]
    types: Sequence[int]
    charsmap: bytes
    """SentencePiece's compiled normalisation rules; b"" if there are none."""
    end: int
    """The piece that ends a text."""
    add_prefix: bool = True
    """Whether a text begins with a space."""
    remove_extra_whitespaces: bool = True

    def fault(self) -> str | None:
        """The reason why it is not a valid tokenizer, as the rest of a sentence; None if it is valid."""
        count = len(self.pieces)
        if not count or len(self.scores) != count or len(self.types) != count:
            return f"has {count} pieces, {len(self.scores)} scores and {len(self.types)} types"
        if not all(self.pieces) or len(set(self.pieces)) != count:
            return "has pieces that are empty, or that come twice"
        if not set(self.types) <= {*range(NORMAL, BYTE + 1)} or self.types.count(BYTE) not in (0, 256):
            return "has pieces of kinds that are none, or pieces for some bytes and not for all"
        if UNKNOWN not in self.types or not 0 <= self.end < count:
            return "has no piece for what it does not know, or none that ends a text"
        return None if all(map(math.isfinite, self.scores)) else "has scores that are not finite"

    def to_json(self) -> dict[str, Any]:
        """The tokenizer in the format of tokenizer.json. Its numbers are Python numbers."""
        rules: list[dict[str, Any]] = []
        if self.charsmap:
            rules.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(self.charsmap).decode()})
        if self.remove_extra_whitespaces:
            rules += [_replace({"Regex": r"\A +| +\z"}, ""), _replace({"Regex": " {2,}"}, " ")]
        rules.append(_replace({"String": " "}, SPACE))
        rules += [{"type": "Prepend", "prepend": SPACE}] if self.add_prefix else []
        own = [(i, kind) for i, kind in enumerate(self.types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        end = self.pieces[self.end]
        template = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}]
        return {
            "version": "1.0",
            "added_tokens": [{"id": i, "content": self.pieces[i], **flags, "special": kind != USER_DEFINED} for i, kind in own],
            "normalizer": {"type": "Sequence", "normalizers": rules},
            "post_processor": {
                "type": "TemplateProcessing", "single": template, "pair": template,
                "special_tokens": {end: {"id": end, "ids": [self.end], "tokens": [end]}},
            },
            "model": {
                "type": "Unigram",
                "unk_id": self.types.index(UNKNOWN),
                "vocab": [[piece, score] for piece, score in zip(self.pieces, self.scores, strict=True)],
                "byte_fallback": BYTE in self.types,
            },
        }  # fmt: skip


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}
