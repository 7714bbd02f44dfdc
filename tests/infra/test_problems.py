"""Problem documents: every error of an HTTP service has one shape, and a 500 tells nothing of the inside."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Query
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field, field_validator
from starlette.responses import StreamingResponse

from infra import problems
from infra.problems import Problem


class Line(BaseModel):
    sku: str
    quantity: int = Field(gt=0)

    @field_validator("sku")
    @classmethod
    def no_blanks(cls, value: str) -> str:
        if " " in value:
            raise ValueError("must not contain blanks")
        return value


class Order(BaseModel):
    lines: list[Line]


def make_app() -> FastAPI:
    app = FastAPI()

    @app.post("/orders")
    async def orders(order: Order, limit: Annotated[int, Query(le=5)] = 1) -> dict[str, int]:
        return {"lines": len(order.lines)}

    @app.get("/teapot")
    async def teapot() -> None:
        raise Problem(503, "Away", "It is away; come again.", headers={"Retry-After": "2"})

    @app.get("/field")
    async def field() -> None:
        raise Problem(422, "Invalid request", "Must be a date.", field="since")

    @app.get("/boom")
    async def boom() -> None:
        raise RuntimeError("password=hunter2")

    @app.get("/half")
    async def half() -> StreamingResponse:
        async def body() -> Any:
            yield b"first"
            raise RuntimeError("in the middle")

        return StreamingResponse(body())

    problems.install(app)
    return app


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(make_app()) as client:
        yield client


def test_validation_lists_every_field_with_its_reason(client: TestClient) -> None:
    """An invalid request gets 422 that names each field at fault, in body and query, and why."""
    body = {"lines": [{"sku": "a b", "quantity": 0}, {"quantity": "many"}]}
    answer = client.post("/orders?limit=9", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["status"] == 422
    assert document["instance"] == "/orders"
    reasons = {e["field"]: e["reason"] for e in document["errors"]}
    assert reasons["lines.0.sku"] == "must not contain blanks"
    assert "greater than 0" in reasons["lines.0.quantity"]
    assert "required" in reasons["lines.1.sku"]
    assert "integer" in reasons["lines.1.quantity"]
    assert "less than or equal to 5" in reasons["limit"]
    assert len(reasons) == 5


@pytest.mark.parametrize(("body", "reason"), [(b"{", "is not JSON"), (b"", "required")])
def test_a_body_that_is_no_json_is_named_as_the_body(client: TestClient, body: bytes, reason: str) -> None:
    """Broken or missing JSON is 422 on the field `body`."""
    answer = client.post("/orders", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["field"] == "body"
    assert reason in error["reason"].lower().replace("json", "JSON")


def test_unknown_path_and_method_are_problems(client: TestClient) -> None:
    """404 and 405 are problem documents, too; 405 keeps the Allow header and says what to use."""
    missing = client.get("/nothing")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    assert "/nothing" in missing.json()["detail"]
    wrong = client.get("/orders")
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert "use POST" in wrong.json()["detail"]


def test_a_raised_problem_is_the_answer(client: TestClient) -> None:
    """A Problem's title, detail and headers arrive; a field comes as the only error."""
    away = client.get("/teapot")
    assert away.status_code == 503
    assert away.headers["retry-after"] == "2"
    assert away.json() == {
        "type": "about:blank",
        "title": "Away",
        "status": 503,
        "detail": "It is away; come again.",
        "instance": "/teapot",
    }
    assert client.get("/field").json()["errors"] == [{"field": "since", "reason": "Must be a date."}]


def test_an_unexpected_error_leaks_nothing_and_is_logged(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A 500 says nothing of its cause; the log has the whole stack, once."""
    with caplog.at_level(logging.ERROR):
        answer = client.get("/boom")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "hunter2" not in answer.text
    assert "RuntimeError" not in answer.text
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "hunter2" in str(record.exc_info[1])


def test_an_answer_that_breaks_off_is_not_called_complete(client: TestClient) -> None:
    """An error after the first bytes breaks the connection, as nothing true can be added to the answer."""
    with pytest.raises(RuntimeError, match="in the middle"):
        client.get("/half")


def test_the_description_documents_problems(client: TestClient) -> None:
    """OpenAPI shows the problem document for errors and nothing of FastAPI's own error schema."""
    schema = client.get("/openapi.json").json()
    responses = schema["paths"]["/orders"]["post"]["responses"]
    content = responses["4XX"]["content"]["application/problem+json"]
    assert content["schema"]["$ref"] == "#/components/schemas/ProblemDocument"
    assert "422" not in responses
    schemas = schema["components"]["schemas"]
    assert {"ProblemDocument", "FieldProblem"} <= schemas.keys()
    assert "HTTPValidationError" not in schemas


def test_half_a_character_of_a_client_can_be_repeated() -> None:
    """JSON can hold half of a surrogate pair, which UTF-8 cannot: an answer about it is JSON all the same."""
    answer = Problem(422, "Invalid request", "\ud800 is no number", field="n").response("/x")
    assert json.loads(answer.body)["detail"] == "\ud800 is no number"
