"""The exceptions that are meant for the user: their text says what was wrong, what was expected and what to do."""

from __future__ import annotations

import operator


class Error(Exception):
    """Something that the caller can mend: a path, an option, a file. The command line prints it as one line and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class CheckpointError(Error):
    """A file that is not the model it should be: damaged, or with missing, unexpected or mis-shaped tensors, or values not finite."""


class PromptError(Error):
    """A prompt that the model's text encoder does not know."""


class OutputError(Error):
    """A video that could not be written."""


def check_whole(**numbers: object) -> None:
    """Raises `Error` for a number that is not whole, by its name."""
    for name, number in numbers.items():
        try:
            operator.index(number)  # type: ignore[arg-type]
        except TypeError:
            raise Error(f"{name} is {number!r}; expected a whole number") from None


def printable(text: str) -> str:
    """On one line, and nothing that a terminal obeys: names that come from a file may hold anything."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
