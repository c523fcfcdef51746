"""The exceptions for users. Their text says what was wrong, what was expected, and what to do."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

# The most frames in a setting: as many as page tables, int32, can number.
MOST_FRAMES = 2**31 - 1


class Error(Exception):
    """An error that the caller can correct: a path, an option, a file. The command line prints it as one line and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class CheckpointError(Error):
    """A file is not the model that it should be: it is damaged, has missing, unexpected or mis-shaped tensors, or values that are not
    finite."""


class PromptError(Error):
    """The model's text encoder cannot encode the prompt."""


class OutputError(Error):
    """An output could not be written."""


def check_whole(**numbers: object) -> None:
    """Raises `Error` for a number that is not an integer; the message has its name."""
    for name, number in numbers.items():
        try:
            operator.index(number)  # type: ignore[arg-type]
        except TypeError:
            raise Error(f"{name} is {number!r}; expected a whole number") from None


def check_real(**numbers: object) -> None:
    """Raises `Error` for what is no number, by its name."""
    for name, number in numbers.items():
        if not isinstance(number, Real):
            raise Error(f"{name} is {number!r}; expected a number")


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises `Error` unless it is a list of texts."""
    wrong = [prompts] if isinstance(prompts, str) else [prompt for prompt in prompts if not isinstance(prompt, str)]
    if wrong:
        raise Error(f"expected {'a list of prompts' if isinstance(prompts, str) else 'a prompt, which is text'}, and got {wrong[0]!r:.200}")


def check_pixels(frames: Any, *size: int | None) -> None:
    """Raises `Error` unless it is a tensor of torch, uint8, of this size; None: any."""
    shape = tuple(getattr(frames, "shape", ()))
    fits = len(shape) == len(size) and all(expected in (None, found) for expected, found in zip(size, shape, strict=True))
    if str(getattr(frames, "dtype", None)) != "torch.uint8" or not fits:
        found = f"{getattr(frames, 'dtype', type(frames).__name__)} {list(shape)}"
        expected = ", ".join("n" if length is None else str(length) for length in size)
        raise Error(f"frames are {found}; expected a torch tensor, uint8 [{expected}]: height, width, RGB")


def printable(text: str) -> str:
    """Text on one line, without control characters for a terminal: names from a file may contain anything."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
