"""The platform's routes: declarations, positions and dead letters as they stand in the database."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from infra.postgres import connect
from infra.settings import Settings
from schemas.declare import Pipeline
from schemas.pipelines import PIPELINES
from tests.signed_in import signed_in

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def client(database: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(database), headers=signed_in(database)) as client:
        yield client


@pytest.fixture
def pipeline() -> Pipeline:
    """Some declared pipeline."""
    found: Pipeline = next(iter(PIPELINES))
    return found


@pytest.fixture
def letters(database: Settings) -> Iterator[str]:
    """25 dead letters under a pipeline name of their own: five at each of five times, two consumers."""
    name = f"letters-{uuid4().hex}"
    with connect(database.database_url) as connection:
        connection.cursor().executemany(
            'INSERT INTO dead_letters (consumer, topic, partition, "offset", pipeline, tenant, schema_id,'
            " input_id, error_class, field, error, key, value, append_time, created_at)"
            " VALUES (%s, %s, %s, %s, %s, 'default', 7, %s, %s, 'amount', 'Too large.', %s, %s, %s, %s)",
            [
                (
                    ("scoring", "sink")[n % 2],
                    name,
                    n % 3,
                    n,
                    name,
                    f"id-{n}",
                    ("invalid", "undecodable")[n % 2],
                    b"key",
                    bytes([n, 0xFF]),
                    START,
                    START + timedelta(seconds=n // 5),
                )
                for n in range(25)
            ],
        )
        yield name
        connection.execute("DELETE FROM dead_letters WHERE pipeline = %s", (name,))


def test_pipelines_are_as_declared(client: TestClient) -> None:
    """/v1/pipelines lists every declared pipeline with its topics, processors and tables."""
    found = {p["name"]: p for p in client.get("/v1/pipelines").json()}
    assert found.keys() == PIPELINES.by_name.keys()
    for pipeline in PIPELINES:
        view = found[pipeline.name]
        assert [t["name"] for t in view["topics"]] == [t.name for t in pipeline.topics]
        assert [t["name"] for t in view["topics"] if t["input"]] == [t.name for t in pipeline.inputs]
        assert [t["name"] for t in view["tables"]] == [t.name for t in pipeline.tables]
        assert [p["name"] for p in view["processors"]] == [p.name for p in pipeline.processors]


def test_positions_are_the_checkpoints_of_the_pipelines_consumers(
    client: TestClient, database: Settings, pipeline: Pipeline
) -> None:
    """Positions come from the checkpoints of this pipeline's processors and sink, and of no others."""
    topic = f"positions-{uuid4().hex}"
    consumers = [pipeline.sink_name, *(p.name for p in pipeline.processors)]
    with connect(database.database_url) as connection:
        for n, consumer in enumerate([*consumers, "somebody-else"]):
            connection.execute(
                "INSERT INTO checkpoints (consumer, topic, partition, topic_id, epoch, next_offset)"
                " VALUES (%s, %s, 3, 'id', 2, %s)",
                (consumer, topic, 100 + n),
            )
        answer = client.get(f"/v1/pipelines/{pipeline.name}/positions")
        connection.execute("DELETE FROM checkpoints WHERE topic = %s", (topic,))
    assert answer.status_code == 200
    ours = [p for p in answer.json() if p["topic"] == topic]
    assert {p["consumer"]: p["next_offset"] for p in ours} == {c: 100 + n for n, c in enumerate(consumers)}
    assert {(p["partition"], p["epoch"]) for p in ours} == {(3, 2)}


def test_an_unknown_pipeline_is_404_naming_the_known(client: TestClient) -> None:
    """Positions of a pipeline that is not declared are 404, with the names that are."""
    answer = client.get("/v1/pipelines/no-such/positions")
    assert answer.status_code == 404
    for name in PIPELINES.by_name:
        assert name in answer.json()["detail"]


@pytest.mark.parametrize("limit", [1, 4, 5, 24, 25, 26])
def test_pages_hold_every_letter_once_newest_first(client: TestClient, letters: str, limit: int) -> None:
    """Paging by cursor gives each dead letter exactly once, in one order, whatever the page size."""
    seen: list[dict[str, object]] = []
    cursor = None
    for _ in range(30):
        parameters: dict[str, str | int] = {"pipeline": letters, "limit": limit}
        if cursor:
            parameters["cursor"] = cursor
        page = client.get("/v1/dead-letters", params=parameters).json()
        assert len(page["items"]) <= limit
        seen += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(str(s["input_id"]) for s in seen) == sorted(f"id-{n}" for n in range(25))
    assert [s["created_at"] for s in seen] == sorted((s["created_at"] for s in seen), reverse=True, key=str)


def test_letters_arriving_meanwhile_do_not_shift_the_pages(
    client: TestClient, database: Settings, letters: str
) -> None:
    """A newer dead letter between two pages changes nothing in the pages that follow."""
    first = client.get("/v1/dead-letters", params={"pipeline": letters, "limit": 10}).json()
    with connect(database.database_url) as connection:
        connection.execute(
            'INSERT INTO dead_letters (consumer, topic, partition, "offset", pipeline, error_class, error,'
            " append_time) VALUES ('sink', %s, 0, 999, %s, 'invalid', 'New.', now())",
            (letters, letters),
        )
    rest = client.get(
        "/v1/dead-letters", params={"pipeline": letters, "limit": 100, "cursor": first["next_cursor"]}
    ).json()
    assert len(first["items"]) + len(rest["items"]) == 25
    assert 999 not in [x["offset"] for x in rest["items"]]


def test_filters_narrow_the_list(client: TestClient, letters: str) -> None:
    """Each filter takes exactly the letters that it names, and filters combine."""

    def count(**filters: str | int) -> int:
        answer = client.get("/v1/dead-letters", params={"pipeline": letters, **filters})
        assert answer.status_code == 200, answer.text
        return len(answer.json()["items"])

    assert count() == 25
    assert count(consumer="sink") == 12
    assert count(error_class="invalid") == 13
    assert count(error_class="invalid", consumer="sink") == 0
    assert (count(status="open"), count(status="redriven")) == (25, 0)
    assert count(topic="other") == 0
    assert count(input_id="id-7") == 1
    assert count(since=(START + timedelta(seconds=3)).isoformat()) == 10
    assert count(until=(START + timedelta(seconds=3)).isoformat()) == 15


def test_filters_that_cannot_be_used_are_named(client: TestClient) -> None:
    """A time without zone, a limit out of range and a bad cursor are 422 naming the parameter."""
    for name, value in (("since", "2026-01-01T00:00:00"), ("limit", "0"), ("limit", "1001"), ("cursor", "x")):
        answer = client.get("/v1/dead-letters", params={name: value})
        assert answer.status_code == 422
        assert [e["field"] for e in answer.json()["errors"]] == [name]


def test_one_records_letters_come_with_its_bytes(client: TestClient, letters: str) -> None:
    """A single record's dead letter has its key and value, byte for byte; another place is 404."""
    (letter,) = client.get(f"/v1/dead-letters/{letters}/1/7").json()
    assert (b64decode(letter["key"]), b64decode(letter["value"])) == (b"key", b"\x07\xff")
    assert (letter["value_bytes"], letter["error"], letter["field"]) == (2, "Too large.", "amount")
    assert client.get(f"/v1/dead-letters/{letters}/1/8").status_code == 404
    answer = client.get(f"/v1/dead-letters/{letters}/{2**31}/-1")
    assert [e["field"] for e in answer.json()["errors"]] == ["partition", "offset"]


def test_a_nul_in_a_parameter_is_the_clients_fault(client: TestClient) -> None:
    """Text that Postgres cannot hold is 422, not an internal error."""
    answer = client.get("/v1/dead-letters", params={"topic": "a\0b"})
    assert answer.status_code == 422
