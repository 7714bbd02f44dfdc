"""A way to Postgres that a test can cut."""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit, urlunsplit


class Line:
    """A forwarder to the database at an address of its own; closed at first, and it can be cut."""

    def __init__(self, database_url: str) -> None:
        at = urlsplit(database_url)
        self._target = (at.hostname, at.port)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._address: tuple[str, int] = probe.getsockname()
        user = at.netloc.rpartition("@")[0]
        self.url = urlunsplit(at._replace(netloc=f"{user}@127.0.0.1:{self._address[1]}"))
        self._server: socket.socket | None = None
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def open(self) -> None:
        """Take connections from now on."""
        self._server = socket.create_server(self._address)
        self._start(self._accept, self._server)

    def cut(self) -> None:
        """Break every connection and take no more."""
        for held in (self._server, *self._sockets):
            if held is not None:
                try:
                    held.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        for thread in self._threads:
            thread.join(5)
        for held in (self._server, *self._sockets):
            if held is not None:
                held.close()
        self._server = None
        self._sockets.clear()
        self._threads.clear()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            database = socket.create_connection(self._target)
            self._sockets += [client, database]
            self._start(self._copy, client, database)
            self._start(self._copy, database, client)

    def _start(self, run: object, *arguments: socket.socket) -> None:
        assert callable(run)
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return
