"""Runs the application on a socket, and ends on a signal."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator

import uvicorn

from lolrt.errors import Error
from lolrt.pipeline import Pipeline
from lolrt.serve.app import make_app
from lolrt.serve.guard import is_loopback
from lolrt.serve.settings import Settings

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The largest message of a client, in bytes: one with a start image.
MOST_MESSAGE = 8 << 20
# The most connections that are open at the same time.
MOST_CONNECTIONS = 1000
# The time that connections have to close when the server ends.
GRACE_SECONDS = 3


class Server(uvicorn.Server):
    """A uvicorn server that saves the sessions and informs the viewers before it closes connections. The first signal ends it in this
    order, a second signal at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        previous = {number: signal.signal(number, self._hear) for number in heard}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _: object) -> None:
        if self.should_exit:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.config.app.state.sessions.close()  # type: ignore[union-attr]
        await super().shutdown(sockets)


def serve(pipe: Pipeline, settings: Settings, host: str, port: int) -> None:
    """Serves a model until SIGINT or SIGTERM. Raises `lolrt.Error` if it cannot listen at the address, or if there is no room for one
    session."""
    if settings.token is None and not is_loopback(host):
        raise Error(f"whoever reaches {host} could use the server: give it a token with --token-file FILE, or listen at 127.0.0.1")
    with listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            make_app(pipe, settings), log_level="warning", ws_max_size=MOST_MESSAGE, ws_max_queue=8, limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_SECONDS, server_header=False, date_header=False,
        )  # fmt: skip
        print(address, flush=True)
        Server(config).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `lolrt.Error`."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128)
    except (OSError, OverflowError) as error:
        raise Error(f"cannot listen at {host}, port {port}: {error}; choose another with --host or --port") from error
