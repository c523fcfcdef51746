"""Checks SentencePiece's compiled normalisation rules completely: the library that applies them ends the process if they point out of
bounds.

The rules are the size of a trie (uint32), the trie (units of uint32, in the layout of darts-clone), and texts that end in 0. The leaves of
the trie point to the texts.
"""

from __future__ import annotations

import numpy as np

HEAD = 4
BLOCK = 256  # units of the trie that one byte can reach from a unit


def fault(rules: bytes) -> str | None:
    """The fault of the rules, as the rest of a sentence; None if there is none."""
    size = int.from_bytes(rules[:HEAD], "little")
    if not 0 < size <= len(rules) - HEAD or size % (4 * BLOCK):
        return f"has rules of normalisation of {len(rules):,} bytes, with a trie of {size:,}"
    units = np.frombuffer(rules[HEAD : HEAD + size], "<u4").astype(np.int64)
    texts = rules[HEAD + size :]
    try:
        texts.decode()
    except UnicodeDecodeError:
        return "has rules of normalisation whose texts are no UTF-8"
    inner = units < 1 << 31  # the others are leaves, or labels that no byte has
    below = np.arange(len(units)) ^ (units >> 10 << ((units & 1 << 9) >> 6))
    if (below[inner] >= len(units)).any():
        return "has rules of normalisation that lead out of their trie"
    values = units[below[inner & (units & 1 << 8 != 0)]] & (1 << 31) - 1
    starts = np.frombuffer(texts, np.uint8) & 0xC0 != 0x80  # the first bytes of characters
    if (values >= len(texts)).any() or not starts[values].all():
        return "has rules of normalisation that lead to no text of theirs"
    return None
