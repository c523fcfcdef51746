"""SentencePiece's compiled rules of normalisation: checked in full, as the library that follows them ends the process where they lead out.

They are the size of a trie (uint32), the trie (uint32 each, as darts-clone lays it out), and texts that end in 0, to which its leaves
point.
"""

from __future__ import annotations

import numpy as np

HEAD = 4
BLOCK = 256  # of a trie's units, in which a byte leads from one to the other


def fault(rules: bytes) -> str | None:
    """What is wrong with them, as the rest of a sentence."""
    size = int.from_bytes(rules[:HEAD], "little")
    if not 0 < size <= len(rules) - HEAD or size % (4 * BLOCK):
        return f"has rules of normalisation of {len(rules):,} bytes, with a trie of {size:,}"
    units = np.frombuffer(rules[HEAD : HEAD + size], "<u4").astype(np.int64)
    texts = rules[HEAD + size :]
    try:
        texts.decode()
    except UnicodeDecodeError:
        return "has rules of normalisation whose texts are no UTF-8"
    inner = units < 1 << 31  # the others are leaves, or labels of no byte
    below = np.arange(len(units)) ^ (units >> 10 << ((units & 1 << 9) >> 6))
    if (below[inner] >= len(units)).any():
        return "has rules of normalisation that lead out of their trie"
    values = units[below[inner & (units & 1 << 8 != 0)]] & (1 << 31) - 1
    starts = np.frombuffer(texts, np.uint8) & 0xC0 != 0x80  # of characters
    if (values >= len(texts)).any() or not starts[values].all():
        return "has rules of normalisation that lead to no text of theirs"
    return None
