"""How errors are told to clients: a status for HTTP, a code for programs, a line for people."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from lolrt.errors import Error, printable


class RequestError(Error):
    """What a client is told, with a status of HTTP and a code."""

    status = 400

    def __init__(self, message: str, code: str = "invalid") -> None:
        super().__init__(message)
        self.code = code


class NotFoundError(RequestError):
    """There is no such thing, or not any more."""

    status = 404

    def __init__(self, message: str) -> None:
        super().__init__(message, "not_found")


class ConflictError(RequestError):
    """It does not go with what was asked for before."""

    status = 409


class NoRoomError(RequestError):
    """There is no room for it now, and may be later."""

    status = 429

    def __init__(self, message: str) -> None:
        super().__init__(message, "no_room")


class UnavailableError(RequestError):
    """The server cannot, now."""

    status = 503


def status_of(error: Exception) -> int:
    if isinstance(error, HTTPException):
        return error.status_code
    return 422 if isinstance(error, RequestValidationError) else getattr(error, "status", 400)


def code_of(error: Exception) -> str:
    return getattr(error, "code", "invalid")


def message_of(error: Exception) -> str:
    """On one line."""
    if isinstance(error, (RequestValidationError, ValidationError)):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return printable(f"{where}: {first['msg']}" if where else str(first["msg"]))
    return printable(str(error.detail) if isinstance(error, HTTPException) else str(error))
