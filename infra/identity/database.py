"""The identities' own way to Postgres: a few connections of a role of their own, asked from an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psycopg

from infra.postgres import Connection, connect

T = TypeVar("T")

THREADS = 2
STATEMENT_TIMEOUT = "5s"


class IdentitiesAway(ConnectionError):
    """The database cannot tell now who somebody is. The message is for the log."""


class Identities:
    """Runs questions about identities on threads of its own, each with its connection.

    `url` is asked at each connection: the password may have been rotated meanwhile.
    """

    def __init__(self, url: Callable[[], str], application: str, threads: int = THREADS) -> None:
        self._url = url
        self._application = application
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="identities")
        self._own = threading.local()
        self._open: set[Connection] = set()

    async def ask(self, question: Callable[[Connection], T]) -> T:
        """What `question` answers; its own exceptions are passed on. Raises `IdentitiesAway`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, question)

    def close(self) -> None:
        """Wait for what is being asked, and close the connections."""
        self._threads.shutdown(cancel_futures=True)
        for connection in self._open:
            connection.close()
        self._open.clear()

    def _ask(self, question: Callable[[Connection], T]) -> T:
        used = getattr(self._own, "connection", None) is not None
        try:
            try:
                return question(self._connection())
            except psycopg.OperationalError:
                self._drop()
                if not used:
                    raise
                # It may have broken long ago: what was asked has not been answered, and is asked once more.
                return question(self._connection())
        except psycopg.OperationalError as error:
            self._drop()
            raise IdentitiesAway(f"{type(error).__name__}: {' '.join(str(error).split())}") from error

    def _connection(self) -> Connection:
        found: Connection | None = getattr(self._own, "connection", None)
        if found is None:
            found = connect(self._url, self._application)
            found.execute("SELECT set_config('statement_timeout', %s, false)", (STATEMENT_TIMEOUT,))
            self._own.connection = found
            self._open.add(found)
        return found

    def _drop(self) -> None:
        found: Connection | None = getattr(self._own, "connection", None)
        if found is not None:
            self._own.connection = None
            self._open.discard(found)
            found.close()
