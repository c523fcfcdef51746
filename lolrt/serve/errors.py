"""Errors as clients see them: an HTTP status, a code for programs, and a line of text for people."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from lolrt.errors import Error, printable


class RequestError(Error):
    """An error that is sent to the client, with an HTTP status and a code."""

    status = 400

    def __init__(self, message: str, code: str = "invalid") -> None:
        super().__init__(message)
        self.code = code


class NotFoundError(RequestError):
    """What was asked for does not exist, or no longer exists."""

    status = 404

    def __init__(self, message: str) -> None:
        super().__init__(message, "not_found")


class ConflictError(RequestError):
    """The request contradicts an earlier request."""

    status = 409


class ClientLimitError(ConflictError):
    """The client has as many sessions as it may have, and may have another when one of them has ended."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "client_limit")


class NoRoomError(RequestError):
    """The server has no room now, but may have room later."""

    status = 429

    def __init__(self, message: str) -> None:
        super().__init__(message, "no_room")


class UnavailableError(RequestError):
    """The server cannot answer the request now."""

    status = 503


class MovedError(Exception):
    """Another server has taken a session over, or may have. This one must neither write nor show any more of it."""


def status_of(error: Exception) -> int:
    if isinstance(error, HTTPException):
        return error.status_code
    return 422 if isinstance(error, RequestValidationError) else getattr(error, "status", 400)


def code_of(error: Exception) -> str:
    return getattr(error, "code", "invalid")


def message_of(error: Exception) -> str:
    """The text of an error, on one line."""
    if isinstance(error, (RequestValidationError, ValidationError)):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return printable(f"{where}: {first['msg']}" if where else str(first["msg"]))
    return printable(str(error.detail) if isinstance(error, HTTPException) else str(error))
