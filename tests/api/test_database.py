"""The API and its database: it reads only, takes its time only up to a limit, and outlives an outage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends
from fastapi.testclient import TestClient

from api import database as module
from api.app import create_app
from api.database import Rows, rows
from infra.identity.principal import Principal
from infra.identity.secured import SecuredRouter
from infra.settings import Settings
from tests.api.line import Line
from tests.signed_in import signed_in

Database = Annotated[Rows, Depends(rows)]


def make_client(settings: Settings) -> TestClient:
    """The API with a route for any query, and one that asks asyncpg wrongly."""
    app = create_app(settings)
    router = SecuredRouter()

    @router.get("/v1/sql", scope="ops:read")
    async def sql(query: str, database: Database) -> Any:
        return await database.fetchval(query)

    @router.get("/v1/number", scope="ops:read")
    async def number(value: int, database: Database) -> Any:
        return await database.fetchval("SELECT $1::integer", value)

    @router.get("/v1/mistake", scope="ops:read")
    async def mistake(database: Database) -> Any:
        return await database.fetchval("SELECT $1::integer", "one")

    app.include_router(router)
    return TestClient(app, headers=signed_in(settings))


@pytest.fixture
def client(database: Settings) -> Iterator[TestClient]:
    with make_client(database) as client:
        yield client


def ask(client: TestClient, query: str) -> Any:
    return client.get("/v1/sql", params={"query": query})


def test_the_api_cannot_write(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """Every transaction of the API is read-only: an UPDATE is refused by the database."""
    assert ask(client, "SELECT 6 * 7").json() == 42
    assert ask(client, "UPDATE checkpoints SET epoch = 0 RETURNING consumer").status_code == 500
    assert "read-only" in caplog.text


def test_a_pooled_connection_keeps_no_tenant(client: TestClient) -> None:
    """Whatever comes of a request, its connection goes back to the pool knowing of nobody."""
    app: Any = client.app
    pool = app.state.database
    assert client.portal is not None
    for query in (
        "SELECT millrace_tenant()",
        "SELECT 1 / 0",
        "SELECT pg_terminate_backend(pg_backend_pid())",
    ):
        ask(client, query)
        assert client.portal.call(pool.fetchval, "SELECT millrace_tenant()") is None
        assert client.portal.call(pool.fetchval, "SELECT millrace_sees_all()") is False
    assert ask(client, "SELECT millrace_tenant()").json() == "default"


def test_tenants_do_not_mix_in_the_pool(database: Settings) -> None:
    """Two hundred transactions of twenty tenants at once on ten connections: each is its own tenant's."""
    signed_in(database)

    async def main() -> list[tuple[str, str]]:
        async with module.pool(database) as pool:

            async def one(n: int) -> tuple[str, str]:
                tenant = f"tenant-{n % 20}"
                principal = Principal("p", "program", tenant, frozenset(), {"fleet": frozenset({tenant})}, "")
                found = await Rows(pool, principal).fetchrow(
                    "SELECT millrace_tenant() AS tenant, millrace_objects('fleet') AS fleets,"
                    " millrace_objects('patient') AS patients, pg_sleep(0.001)::text"
                )
                assert found is not None and found["fleets"] == [tenant] and found["patients"] is None
                return tenant, found["tenant"]

            return await asyncio.gather(*map(one, range(200)))

    assert all(wanted == found for wanted, found in asyncio.run(main()))


def test_names_are_no_sql(database: Settings) -> None:
    """Quotes, backslashes, line ends and other alphabets in a tenant's or object's name stay as they are."""
    signed_in(database)
    odd = """o'neil'); SELECT set_config('millrace.tenant', 'x', true); --\\ $1 {} %s \n \N{SNOWMAN}"""

    async def main() -> None:
        principal = Principal("p", "program", odd, frozenset(), {"fleet": frozenset({odd, ""})}, "")
        async with module.pool(database) as pool:
            found = await Rows(pool, principal).fetchrow(
                "SELECT millrace_tenant() AS tenant, millrace_objects('fleet') AS fleets"
            )
            assert found is not None and found["tenant"] == odd and set(found["fleets"]) == {odd, ""}
            assert await pool.fetchval("SELECT millrace_tenant()") is None

    asyncio.run(main())


def test_a_request_that_is_given_up_ends_its_transaction(database: Settings) -> None:
    """Cancelled amid a query, a connection is given back outside any transaction, as nobody's."""
    signed_in(database)

    async def main() -> None:
        principal = Principal("p", "program", "acme", frozenset(), {}, "")
        async with module.pool(database) as pool:
            for _ in range(3):
                asked = asyncio.create_task(Rows(pool, principal).fetchval("SELECT pg_sleep(30)::text"))
                await asyncio.sleep(0.1)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            async with pool.acquire() as connection:
                assert not connection.is_in_transaction()
                assert await connection.fetchval("SELECT millrace_tenant()") is None
            assert await Rows(pool, principal).fetchval("SELECT millrace_tenant()") == "acme"

    asyncio.run(main())


def test_a_query_that_takes_too_long_is_ended(database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database itself ends a query after the limit; the answer says to ask for less."""
    monkeypatch.setattr(module, "STATEMENT_SECONDS", 0.3)
    with make_client(database) as client:
        answer = ask(client, "SELECT pg_sleep(20)::text")
        assert answer.status_code == 503
        assert answer.json()["title"] == "Query took too long"
        assert ask(client, "SELECT 1").json() == 1


def test_a_table_that_is_missing_says_what_creates_it(client: TestClient) -> None:
    """A query against a table that no migration has made is 503 with the command."""
    answer = ask(client, "SELECT count(*) FROM not_made_yet")
    assert answer.status_code == 503
    assert "millrace up" in answer.json()["detail"]


def test_it_starts_stays_and_recovers_without_a_database(
    line: Line, database: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """With Postgres away the API starts, lives, and answers 503 problems; once it is there, it answers;
    when it breaks off and comes back, likewise."""
    settings = Settings({**database.environ, "DATABASE_API_URL": line.url})
    with make_client(settings) as client:

        def assert_away() -> None:
            answer = ask(client, "SELECT 1")
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["title"] == "Database is away"
            assert "127.0.0.1" not in answer.text
            assert client.get("/health/live").status_code == 200

        with caplog.at_level(logging.CRITICAL):
            assert_away()
            answer = client.get("/health/ready")
            assert answer.status_code == 503
            assert "database does not answer" in answer.json()["conditions"]["database"]
            line.open()
            assert ask(client, "SELECT 1").json() == 1
            line.cut()
            assert_away()
            line.open()
            assert ask(client, "SELECT 1").json() == 1


def test_no_more_connections_is_503(line: Line, database: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """A database that refuses to connect, here for a wrong password, is away for the client, and the
    answer does not say more; the log does."""
    line.open()
    wrong = line.url.replace(":", ":wrong", 2).replace(":wrong", ":", 1)
    settings = Settings({**database.environ, "DATABASE_API_URL": wrong})
    with make_client(settings) as client:
        answer = ask(client, "SELECT 1")
    assert answer.status_code == 503
    assert "password" not in answer.text
    assert "InvalidPasswordError" in str([vars(r).get("reason") for r in caplog.records])


def test_a_mistake_of_ours_is_no_outage(client: TestClient) -> None:
    """A query that the program gets wrong is a 500, so that nobody looks for a database that is there."""
    assert client.get("/v1/mistake").status_code == 500
    assert ask(client, "SELEC").status_code == 500


def test_a_value_the_database_cannot_hold_is_the_clients_fault(client: TestClient) -> None:
    """A number beyond the column's type is 422, one within is answered."""
    assert client.get("/v1/number", params={"value": 2**31 - 1}).json() == 2**31 - 1
    answer = client.get("/v1/number", params={"value": 2**31})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
