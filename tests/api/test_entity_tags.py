"""Single resources: whoever has the newest representation is told so, and whoever may not see it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from infra.entity_tags import DECLARED
from infra.postgres import Connection, connect
from infra.settings import Settings
from tests.authorisation.matrix import ASKED
from tests.authorisation.rows import NOBODYS, OWNERS, Owner, events, fill, insert
from tests.signed_in import key_of, signed_in

Change = Callable[[Connection], object]


def run(query: str) -> Change:
    return lambda connection: connection.execute(query.encode())


def decide_again(connection: Connection) -> None:
    """One more use of the first owner's card: what was decided never changes."""
    n = next(_NUMBERS)
    topic, event = next(events(OWNERS[0], ""))
    insert(connection, topic, event | {"event_id": f"another-{n}"}, 1_000 + n)


_NUMBERS = count()
CHANGES: Mapping[str, Change | None] = {
    "/v1/decisions/{event_id}": None,
    "/v1/cards/{card_id}/balance": decide_again,
    "/v1/cards/{card_id}/profile": decide_again,
    "/v1/trucks/{truck_id}": run("UPDATE latest_position SET sequence = sequence + 1"),
    "/v1/orders/{order_id}": run("UPDATE order_lines SET state = 'released'"),
    "/v1/stock/{sku}": run("UPDATE stock SET version = version + 1"),
    "/v1/dead-letters/{topic}/{partition}/{offset}": run(
        "UPDATE dead_letters SET status = 'discarded', value = decode(repeat('00', 4000), 'hex')"
    ),
    "/v1/instances/{sop_uid}/thumbnail": run(
        "UPDATE instances SET thumbnail_digest = (SELECT min(o.thumbnail_digest) FROM instances o"
        " WHERE o.thumbnail_digest <> instances.thumbnail_digest)"
    ),
}
"""By path what changes the resource; None where nothing does."""


@pytest.fixture(scope="module")
def filled(database: Settings) -> Settings:
    """A database with rows of two tenants."""
    signed_in(database)
    with connect(database.database_url) as connection:
        fill(database, connection)
    return database


@pytest.fixture(scope="module")
def client(filled: Settings) -> Iterator[TestClient]:
    headers = {**key_of(filled, "tags", OWNERS[0].tenant, ["operator"]), "Accept-Encoding": "identity"}
    with TestClient(create_app(filled), headers=headers) as made:
        yield made


def described(client: TestClient) -> dict[str, dict[str, Any]]:
    """The operations that read, by path."""
    app: Any = client.app
    return {path: o["get"] for path, o in app.openapi()["paths"].items() if "get" in o}


def url(path: str) -> str:
    """Where a path's resource of the first owner is."""
    ask = ASKED[path][0]
    assert ask.values is not None
    return path.format(**ask.values(Owner(OWNERS[0].tenant, NOBODYS) if ask.nobodys else OWNERS[0]))


def test_every_single_resource_has_a_tag(client: TestClient) -> None:
    """A route that reads one thing by its name declares it, and no list does."""
    single = set()
    for path, operation in described(client).items():
        content = operation["responses"]["200"].get("content", {})
        model = content.get("application/json", {}).get("schema", {}).get("$ref", "")
        if path.endswith("}") or ("{" in path and model and "Page" not in model):
            single.add(path)
    single.add("/v1/instances/{sop_uid}/thumbnail")
    declared = {path for path, operation in described(client).items() if operation.get(DECLARED)}
    assert declared == single == CHANGES.keys()


@pytest.mark.parametrize("path", CHANGES)
def test_the_newest_is_not_sent_again(client: TestClient, filled: Settings, path: str) -> None:
    """304 without content while nothing has changed, and 200 with another tag as soon as it has."""
    first = client.get(url(path))
    assert first.status_code == 200, first.text
    tag = first.headers["etag"]
    assert tag.startswith('"') and tag.endswith('"')
    again = client.get(url(path), headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(url(path), headers={"If-None-Match": '"other"'}).content == first.content
    change = CHANGES[path]
    if change is None:
        return
    with connect(filled.database_url) as connection:
        change(connection)
    changed = client.get(url(path), headers={"If-None-Match": tag})
    assert changed.status_code == 200, changed.text
    assert changed.headers["etag"] != tag and changed.content != first.content


def test_a_compressed_answer_has_a_tag_of_its_own(client: TestClient, filled: Settings) -> None:
    """Other bytes, another tag, and caches are told what it depends on."""
    path = url("/v1/dead-letters/{topic}/{partition}/{offset}")
    with connect(filled.database_url) as connection:
        connection.execute("UPDATE dead_letters SET value = decode(repeat('00', 4000), 'hex')")
    plain, packed = client.get(path), client.get(path, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.headers["etag"] != packed.headers["etag"]
    for answer in (plain, packed):
        assert "accept-encoding" in answer.headers["vary"].lower()


def test_a_tag_is_no_way_in(client: TestClient, filled: Settings) -> None:
    """Whoever may not see a resource hears nothing of it by any tag."""
    path = url("/v1/orders/{order_id}")
    tag = client.get(path).headers["etag"]
    elsewhere = key_of(filled, "elsewhere", OWNERS[-1].tenant, ["operator"])
    for given in (tag, "*"):
        assert client.get(path, headers={**elsewhere, "If-None-Match": given}).status_code == 404
        none = client.get(path, headers={"X-API-Key": "", "If-None-Match": given})
        assert none.status_code == 401
