"""A connection to Postgres that is kept, and opened anew where it was lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from infra.postgres import Connection, DatabaseUrl, Failure, classify, connect


class Transient(ConnectionError):
    """Broker or database cannot now; nothing was applied, the same batch may be tried again."""


class Database:
    """The database as a processor asks it; used by one thread at a time."""

    def __init__(self, url: DatabaseUrl, application: str) -> None:
        self._url = url
        self._application = application
        self._connection: Connection | None = None

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """The connection. Turns what waiting may mend into `Transient`; other errors are psycopg's."""
        try:
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._url, self._application)
            yield self._connection
        except psycopg.Error as error:
            if self._connection is not None and (self._connection.closed or self._connection.broken):
                self.close()
            if classify(error) is Failure.TRANSIENT:
                raise Transient(f"the database cannot now: {error}") from error
            raise

    def close(self) -> None:
        """Close it; the next use opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
