"""The API's way to Postgres: a pool of read-only connections, made when they are needed.

Handlers get `Rows`: the database as the principal of their request sees it. Each query runs in a transaction
that begins by saying whose it is, so that a pooled connection cannot keep a tenant; one on which nothing was
said sees nothing. Where the database is away the API stays up and answers 503; the next request tries again.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson
from fastapi import FastAPI, Request
from starlette.requests import HTTPConnection
from starlette.responses import Response

from infra.identity.principal import Principal
from infra.problems import Problem
from infra.settings import Settings

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
STATEMENT_SECONDS = 10.0
RETRY_AFTER = {"Retry-After": "2"}

Pool = asyncpg.Pool


class DatabaseAway(ConnectionError):
    """No connection to Postgres can be made now."""


@asynccontextmanager
async def pool(settings: Settings) -> AsyncIterator[Pool]:
    """The pool, for the lifespan of an application. Nothing is connected yet: Postgres may come later."""

    async def connect(*_: Any, **options: Any) -> asyncpg.Connection:
        # Not by the address of the start: its password may have been rotated.
        return await _connect(settings.database_api_url, **options)

    async with asyncpg.create_pool(
        settings.database_api_url,
        min_size=0,
        max_size=10,
        connect=connect,
        reset=_as_it_is,
        timeout=CONNECT_SECONDS,
        # Beyond the server's own limit: only a server that vanished without a word comes to this.
        command_timeout=STATEMENT_SECONDS + 2.0,
        server_settings={
            "application_name": "millrace-api",
            "default_transaction_read_only": "on",
            "statement_timeout": str(int(STATEMENT_SECONDS * 1000)),
        },
    ) as made:
        yield made


_BEGIN = (
    "BEGIN READ ONLY; SELECT set_config('millrace.tenant', {tenant}, true),"
    " set_config('millrace.objects', {objects}, true)"
)
_TEXT = "convert_from('\\x{}', 'UTF8')"


@dataclass(frozen=True, slots=True)
class Rows:
    """The database as one principal sees it.

    The two walls: a query names `tenant` and `sees(kind)` among its conditions, and the database shows the
    API's role no other rows than the transaction's tenant and objects may see.
    """

    pool: Pool
    principal: Principal

    @property
    def tenant(self) -> str:
        """Whose rows are asked for."""
        return self.principal.tenant

    def sees(self, kind: str) -> list[str] | None:
        """The objects of this kind whose rows are asked for; None for all of the tenant's."""
        objects = self.principal.sees(kind)
        return None if objects is None else sorted(objects)

    async def fetch(self, query: str, *values: Any) -> list[asyncpg.Record]:
        """All rows of a query."""
        async with self._transaction() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(query, *values)
        return rows

    async def fetchrow(self, query: str, *values: Any) -> asyncpg.Record | None:
        """The first row of a query, or None."""
        async with self._transaction() as connection:
            row: asyncpg.Record | None = await connection.fetchrow(query, *values)
        return row

    async def fetchval(self, query: str, *values: Any) -> Any:
        """The first value of the first row of a query, or None."""
        async with self._transaction() as connection:
            return await connection.fetchval(query, *values)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        async with self.pool.acquire() as connection:
            try:
                await connection.execute(_begin(self.principal))
                yield connection
            except BaseException:
                if not connection.is_closed():
                    await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")


async def rows(connection: HTTPConnection) -> Rows:
    """The database as the request's principal sees it, for `Annotated[Rows, Depends(rows)]`."""
    pool, principal = connection.app.state.database, connection.state.principal
    assert isinstance(pool, asyncpg.Pool) and isinstance(principal, Principal)
    return Rows(pool, principal)


def install(app: FastAPI) -> None:
    """Answer what a missing, overloaded or unprepared database does to a query with 503 problems."""
    for away in (
        DatabaseAway,
        asyncpg.PostgresConnectionError,
        asyncpg.OperatorInterventionError,
        asyncpg.TooManyConnectionsError,
        TimeoutError,
    ):
        app.add_exception_handler(away, _on_away)
    app.add_exception_handler(asyncpg.InterfaceError, _on_interface_error)
    app.add_exception_handler(asyncpg.DataError, _on_data_error)
    for unusable in (
        asyncpg.CharacterNotInRepertoireError,  # NUL in a text
        asyncpg.NumericValueOutOfRangeError,
        asyncpg.DatetimeFieldOverflowError,
    ):
        app.add_exception_handler(unusable, _on_unusable)
    app.add_exception_handler(asyncpg.QueryCanceledError, _on_cancelled)
    app.add_exception_handler(asyncpg.UndefinedTableError, _on_undefined)


def _begin(principal: Principal) -> str:
    """SQL that begins a transaction and says whose it is.

    One message, as each way to the database and back costs this process as much as a query. Such a message
    takes no parameters: whatever is in the values, the statement has their hexadecimal digits alone.
    """
    objects = {kind: sorted(ids) for kind, ids in principal.objects.items()}
    values = {"tenant": principal.tenant.encode(), "objects": orjson.dumps(objects)}
    return _BEGIN.format(**{name: _TEXT.format(value.hex()) for name, value in values.items()})


async def _as_it_is(connection: Any) -> None:
    """Nothing: who is asking is told to a transaction, which ends before its connection is given back, and
    nothing else is told to a connection. (asyncpg rolls back one that did not end.)"""


async def unreachable(pool: Pool) -> str | None:
    """None where the database answers a query, otherwise the reason why it does not."""
    try:
        await pool.fetchval("SELECT 1", timeout=CONNECT_SECONDS)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return f"the database does not answer ({type(error).__name__}); look at `millrace status`"
    return None


_ABOVE_THE_WALL = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"


async def _connect(*arguments: Any, **options: Any) -> asyncpg.Connection:
    try:
        made: asyncpg.Connection = await asyncpg.connect(*arguments, **options)
        if await made.fetchval(_ABOVE_THE_WALL):
            await made.close()
            raise DatabaseAway(
                "the role of DATABASE_API_URL is not held by row-level security; give the API millrace_api"
            )
    except (OSError, asyncpg.PostgresError) as error:
        raise DatabaseAway(f"{type(error).__name__}: {error}") from error
    return made


async def _on_away(request: Request, error: Exception) -> Response:
    log.warning("the database is away", extra={"path": request.url.path, "reason": repr(error)})
    return Problem(
        503, "Database is away", "The database does not answer now; ask again later.", headers=RETRY_AFTER
    ).response(request.url.path)


async def _on_interface_error(request: Request, error: Exception) -> Response:
    # asyncpg says with one class that a connection has gone and that it was used wrongly.
    if "clos" not in str(error):
        raise error
    return await _on_away(request, error)


async def _on_data_error(request: Request, error: Exception) -> Response:
    # Likewise for a value out of its type's range and for a value of a wrong type.
    if "out of" not in str(error):
        raise error
    return await _on_unusable(request, error)


async def _on_unusable(request: Request, error: Exception) -> Response:
    return Problem(
        422, "Invalid request", f"A parameter has a value that the database cannot hold ({error})."
    ).response(request.url.path)


async def _on_cancelled(request: Request, error: Exception) -> Response:
    return Problem(
        503,
        "Query took too long",
        f"The query was ended after {STATEMENT_SECONDS:g} s; ask for less, as a shorter span of time.",
        headers=RETRY_AFTER,
    ).response(request.url.path)


async def _on_undefined(request: Request, error: Exception) -> Response:
    return Problem(
        503,
        "Database is not set up",
        "The database lacks a table that this answer needs; `millrace up` creates it.",
        headers=RETRY_AFTER,
    ).response(request.url.path)
