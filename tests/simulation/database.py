"""Real connections to the real database, on which exactly one thing goes wrong at an exact place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from infra.postgres import Connection


class Crash(BaseException):
    """The process is killed here: nothing of it runs on, and what it had not committed is gone."""


class Fault(Enum):
    """What happens to the process or its connection, in the one call that a `Faults` is armed for."""

    NONE = "nothing"
    CUT_BEFORE_STATEMENT = "the server ends the connection before the n-th statement"
    KILLED_BEFORE_STATEMENT = "the process is killed before its n-th statement"
    KILLED_BEFORE_COMMIT = "the process is killed with all written and nothing committed"
    CUT_BEFORE_COMMIT = "the server ends the connection when all is written"
    ANSWER_LOST = "the server commits, and its answer never arrives"
    KILLED_AFTER_COMMIT = "the server commits, and the process is killed before it learns of it"


@dataclass
class Faults:
    """The fault of the next call; `committed` tells whether that call's last transaction took effect.

    `other` is a connection of the test's own, by which the server is told to end the process's.
    """

    other: Connection
    fault: Fault = Fault.NONE
    statement: int = 0
    committed: bool = False
    happened: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    """Statements wait until it is set, as it is but for tests that do something meanwhile."""

    def __post_init__(self) -> None:
        self.gate.set()

    def arm(self, fault: Fault, statement: int = 0) -> None:
        self.fault, self.statement = fault, statement
        self.committed = self.happened = False

    def disarm(self) -> None:
        self.fault = Fault.NONE

    def before_statement(self, connection: psycopg.Connection[Any]) -> None:
        assert self.gate.wait(30), "nobody opened the gate"
        if self.fault in (Fault.CUT_BEFORE_STATEMENT, Fault.KILLED_BEFORE_STATEMENT):
            if self.statement == 0:
                self._strike(connection, Fault.KILLED_BEFORE_STATEMENT)
            self.statement -= 1

    def before_commit(self, connection: psycopg.Connection[Any]) -> None:
        if self.fault in (Fault.KILLED_BEFORE_COMMIT, Fault.CUT_BEFORE_COMMIT):
            self._strike(connection, Fault.KILLED_BEFORE_COMMIT)

    def after_commit(self, connection: psycopg.Connection[Any]) -> None:
        self.committed = True
        if self.fault is Fault.ANSWER_LOST:
            self.fault, self.happened = Fault.NONE, True
            connection.close()
            raise psycopg.OperationalError("the connection was lost before COMMIT was answered")
        if self.fault is Fault.KILLED_AFTER_COMMIT:
            self.fault, self.happened = Fault.NONE, True
            raise Crash

    def _strike(self, connection: psycopg.Connection[Any], killing: Fault) -> None:
        is_kill, self.fault, self.happened = self.fault is killing, Fault.NONE, True
        if is_kill:
            raise Crash
        # With a time-out it returns only when the server process is gone.
        self.other.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))

    def connect(self, database_url: str, application: str = "millrace") -> Connection:
        """In place of `infra.postgres.connect`."""
        connection = FaultyConnection.connect(database_url, autocommit=True, application_name=application)
        connection.faults = self
        return connection


class FaultyCursor(psycopg.Cursor[Any]):
    """Asks before each statement whether something happens there."""

    def _look(self) -> None:
        assert isinstance(self.connection, FaultyConnection)
        self.connection.faults.before_statement(self.connection)

    def execute(self, *args: Any, **kwargs: Any) -> FaultyCursor:
        self._look()
        return super().execute(*args, **kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> None:
        self._look()
        super().executemany(*args, **kwargs)

    @contextmanager
    def copy(self, *args: Any, **kwargs: Any) -> Iterator[psycopg.Copy]:
        self._look()
        with super().copy(*args, **kwargs) as copy:
            yield copy


class FaultyConnection(psycopg.Connection[tuple[object, ...]]):
    """Asks around the COMMIT of each outermost transaction whether something happens there."""

    faults: Faults

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cursor_factory = FaultyCursor

    @contextmanager
    def transaction(self, *args: Any, **kwargs: Any) -> Iterator[psycopg.Transaction]:
        is_outermost = self.info.transaction_status is TransactionStatus.IDLE
        with super().transaction(*args, **kwargs) as transaction:
            yield transaction
            if is_outermost:
                self.faults.before_commit(self)
        if is_outermost:
            self.faults.after_commit(self)
