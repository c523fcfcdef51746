"""Listens at an address, and ends when it is asked to."""

from __future__ import annotations

import socket

import uvicorn

from lolrt.errors import Error
from lolrt.pipeline import Pipeline
from lolrt.serve.app import make_app
from lolrt.serve.settings import Settings

# A message of a client at most, in bytes: a start image is the largest.
MOST_MESSAGE = 8 << 20
# Connections that are open at a time.
MOST_CONNECTIONS = 1000
# How long connections have to close when the server ends.
GRACE_SECONDS = 3


def serve(pipe: Pipeline, settings: Settings, host: str, port: int) -> None:
    """Until SIGINT or SIGTERM. Raises `lolrt.Error` where it cannot listen there."""
    with listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(
            make_app(pipe, settings), log_level="warning", ws_max_size=MOST_MESSAGE, ws_max_queue=8, limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_SECONDS, server_header=False, date_header=False,
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises `lolrt.Error`."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
    except (OSError, OverflowError) as error:
        raise Error(f"cannot listen at {host}, port {port}: {error}; choose another with --host or --port") from error
