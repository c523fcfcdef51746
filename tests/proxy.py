"""A network that can break, between a client and a server."""

from __future__ import annotations

import contextlib
import socket
import threading


def _cut(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):  # it is cut already
            each.shutdown(socket.SHUT_RDWR)
        each.close()


class Proxy(threading.Thread):
    """Passes on what two sides of a connection say, until it breaks."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port, self._pairs, self._broken = port, [], False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._broken:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._port))
            self._pairs += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        finally:
            _cut(source, target)

    def breaks(self) -> None:
        self._broken = True
        _cut(*self._pairs)

    def mends(self) -> None:
        self._broken, self._pairs = False, []

    def close(self) -> None:
        self._listener.close()
        self.breaks()
