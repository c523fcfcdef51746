"""SentencePiece models like T5's, trained by SentencePiece's own package."""

from __future__ import annotations

from pathlib import Path

CORPUS = [
    "a red car by the sea at noon",
    "the white boat sails over the hills",
    "näive café: ﬁve № 7, and 日本語 too",
    "x" * 9,
] * 60


def train(folder: Path, **options: object) -> bytes:
    """The first pieces are padding, end and unknown; the others are single letters and some words, or also bytes."""
    import sentencepiece

    defaults = {
        "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "normalization_rule_name": "nmt_nfkc", "minloglevel": 2,
        "model_type": "unigram", "vocab_size": 330 if options.get("byte_fallback") else 70, "hard_vocab_limit": False,
    }  # fmt: skip
    prefix = folder / "m"
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_prefix=str(prefix), **{**defaults, **options})
    return Path(f"{prefix}.model").read_bytes()
