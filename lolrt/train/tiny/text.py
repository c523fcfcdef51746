"""The text encoder of the embedded model: one fixed vector per word.

Words of the same meaning share a vector, filler words have none, and a word that is missing is a row of zeros. The order of the
rows does not matter to cross-attention, so a sentence is a set of words.
"""

import torch
from torch import Tensor

from lolrt.train.tiny.scenes import FILLER, VOCABULARY, values

TEXT_DIM, TEXT_LEN = 64, 8


def value_table(seed: int) -> Tensor:
    """One vector per attribute value [values, TEXT_DIM], rows in the order of `data.scene_values`: random, orthogonal, unit
    variance an entry.
    """
    count = sum(len(values(group)) for group in VOCABULARY)
    square = torch.randn(TEXT_DIM, TEXT_DIM, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(square).Q[:count] * TEXT_DIM**0.5


def vocabulary() -> dict[str, list[str]]:
    """All words by group, fillers last."""
    return {**{group: list(words) for group, words in VOCABULARY.items()}, "filler": FILLER}


def word_table(seed: int) -> tuple[list[str], Tensor]:
    """All words that have a meaning, and their vectors [words, TEXT_DIM]."""
    table, words, rows, start = value_table(seed), [], [], 0
    for group, meanings in VOCABULARY.items():
        words += list(meanings)
        rows += [start + values(group).index(meaning) for meaning in meanings.values()]
        start += len(values(group))
    return words, table[rows].clone()


def embed(table: Tensor, scene_rows: Tensor, keep: Tensor) -> Tensor:
    """Prompts of scenes. table: `value_table`. scene_rows: [batch, attributes] rows. keep: bool, same shape.

    Returns [batch, TEXT_LEN, TEXT_DIM].
    """
    text = torch.zeros(len(scene_rows), TEXT_LEN, TEXT_DIM)
    text[:, : scene_rows.shape[1]] = table[scene_rows] * keep[..., None]
    return text
