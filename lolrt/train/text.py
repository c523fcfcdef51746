"""The text encoder of an embedded model: one fixed vector per word.

Words of the same meaning share a vector, filler words have none, and a word that is missing is a row of zeros. The order of the
rows does not matter to cross-attention, so a sentence is a set of words.
"""

import torch
from torch import Tensor

TEXT_DIM, TEXT_LEN = 64, 8

Vocabulary = dict[str, dict[str, str]]  # group -> word -> meaning


def values(vocabulary: Vocabulary, group: str) -> list[str]:
    """The distinct meanings of a group's words, in the order of the vocabulary."""
    return list(dict.fromkeys(vocabulary[group].values()))


def value_table(vocabulary: Vocabulary, seed: int) -> Tensor:
    """One vector per meaning [meanings, TEXT_DIM], group after group: random, orthogonal, unit variance an entry."""
    count = sum(len(values(vocabulary, group)) for group in vocabulary)
    square = torch.randn(TEXT_DIM, TEXT_DIM, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(square).Q[:count] * TEXT_DIM**0.5


def value_rows(vocabulary: Vocabulary, picks: dict[str, int]) -> list[int]:
    """The row of `value_table` for each group's meaning; -1 for a group that is not named (index -1)."""
    rows, start = [], 0
    for group in vocabulary:
        rows.append(start + picks[group] if picks[group] >= 0 else -1)
        start += len(values(vocabulary, group))
    return rows


def all_words(vocabulary: Vocabulary, filler: list[str]) -> dict[str, list[str]]:
    """All words by group, with the filler words last."""
    return {**{group: list(words) for group, words in vocabulary.items()}, "filler": filler}


def word_table(vocabulary: Vocabulary, seed: int) -> tuple[list[str], Tensor]:
    """All words that have a meaning, and their vectors [words, TEXT_DIM]."""
    table, words, rows, start = value_table(vocabulary, seed), [], [], 0
    for group, meanings in vocabulary.items():
        words += list(meanings)
        rows += [start + values(vocabulary, group).index(meaning) for meaning in meanings.values()]
        start += len(values(vocabulary, group))
    return words, table[rows].clone()


def embed(table: Tensor, rows: Tensor, keep: Tensor) -> Tensor:
    """Prompts as rows of text. table: `value_table`. rows: [batch, groups], `value_rows` each. keep: bool, same shape.

    Returns [batch, TEXT_LEN, TEXT_DIM].
    """
    text = torch.zeros(len(rows), TEXT_LEN, TEXT_DIM)
    text[:, : rows.shape[1]] = table[rows] * (keep & (rows >= 0))[..., None]
    return text
