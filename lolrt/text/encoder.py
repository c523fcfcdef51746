"""Text encoders: the interface, and the encoder of small models."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lolrt.checkpoint import read_json
from lolrt.checkpoint.vocabulary import read_rows
from lolrt.errors import CheckpointError, PromptError, check_prompts


class TextEncoder(ABC):
    """Turns prompts into rows of text that the model attends to."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Encodes prompts, [text_tokens, text_dim] each; one call for many may be cheaper. Raises `lolrt.PromptError` for a prompt that
        cannot be encoded."""

    def __call__(self, prompt: str) -> Tensor:
        return self.encode([prompt])[0]


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


class VocabularyEncoder(TextEncoder):
    """One learned vector per word of a small vocabulary. The words are in groups, and a prompt may name at most one word of each.

    Reads text.json ("words": in the order of the rows; "groups": name -> words, "filler" being words that say nothing) and
    text.safetensors ("embedding.weight", [words, text_dim]).
    """

    def __init__(self, folder: Path) -> None:
        description = read_json(folder / "text.json")
        missing = [name for name in ("groups", "words") if name not in description]
        if missing:
            raise CheckpointError(f"{folder / 'text.json'} lacks {' and '.join(map(repr, missing))}; fetch the file again")
        if (
            not _is_words(description["words"])
            or not isinstance(description["groups"], dict)
            or not all(map(_is_words, description["groups"].values()))
        ):
            raise CheckpointError(
                f"{folder / 'text.json'}: words are to be a list of texts, and groups lists by name; fetch the file again"
            )
        self.groups: dict[str, list[str]] = description["groups"]
        self.words: list[str] = description["words"]
        self.embedding = read_rows(folder).clone()  # a copy, because the file may change
        if len(self.words) != len(self.embedding):
            raise CheckpointError(
                f"{folder} has {len(self.words)} words and {len(self.embedding)} rows of text; they belong to different models"
            )

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Encodes prompts, [text_tokens, text_dim] each. Raises `lolrt.PromptError`, which lists the vocabulary, for an unknown word."""
        check_prompts(prompts)
        return [self._rows(prompt) for prompt in prompts]

    def _rows(self, prompt: str) -> Tensor:
        spoken = re.findall(r"\w+", prompt.lower())
        unknown = [word for word in spoken if not any(word in words for words in self.groups.values())]
        if unknown:
            raise PromptError(f"this model does not know {', '.join(map(repr, unknown))}; {self.vocabulary()}")
        for group, words in self.groups.items():
            named = sorted(set(spoken) & set(words))
            if group != "filler" and len(named) > 1:
                raise PromptError(f"the prompt names more than one {group}: {', '.join(named)}; {self.vocabulary()}")
        rows = sorted({self.words.index(word) for word in spoken if word in self.words})
        if not rows:
            raise PromptError(f"the prompt {prompt!r} names nothing; {self.vocabulary()}")
        return self.embedding[torch.tensor(rows)]

    def vocabulary(self) -> str:
        """A list of the vocabulary, as a clause of a sentence."""
        groups = [f"{group}: {' '.join(words)}" for group, words in self.groups.items() if group != "filler"]
        return f"its vocabulary is {'; '.join(groups)} (filler: {' '.join(self.groups.get('filler', []))})"
