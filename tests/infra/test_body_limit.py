"""The gateway takes bodies up to its limits, and not a byte beyond."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request, UploadFile
from fastapi.testclient import TestClient

from infra import problems
from infra.body_limit import BodyLimit


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = FastAPI()

    @app.post("/json")
    async def json(body: dict[str, str]) -> int:
        return len(body["text"])

    @app.post("/raw")
    async def raw(request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    @app.post("/form")
    async def form(file: UploadFile) -> int:
        return len(await file.read())

    app.add_middleware(BodyLimit, json_bytes=100, upload_bytes=10_000)
    problems.install(app)
    with TestClient(app) as client:
        yield client


def chunks(total_bytes: int) -> Iterator[bytes]:
    """A body whose length is not announced."""
    for start in range(0, total_bytes, 64):
        yield b"x" * min(64, total_bytes - start)


def test_an_announced_length_is_refused_unread(client: TestClient) -> None:
    """A JSON body beyond the limit is a 413 problem naming the limit; one of exactly the limit passes."""
    fits = b'{"text":"' + b"x" * 89 + b'"}'
    assert len(fits) == 100
    headers = {"content-type": "application/json"}
    assert client.post("/json", content=fits, headers=headers).json() == 89
    answer = client.post("/json", content=fits + b" ", headers=headers)
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert "100 bytes" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/json", "/raw"])
def test_a_length_that_is_not_announced_is_counted(client: TestClient, path: str) -> None:
    """A chunked body is refused once it has passed the limit, however the handler reads it."""
    headers = {"content-type": "application/json"}
    answer = client.post(path, content=chunks(200), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["title"] == "Too large"
    assert client.post("/raw", content=chunks(100), headers=headers).json() == 100


def test_uploads_have_a_limit_of_their_own(client: TestClient) -> None:
    """Form and DICOM uploads may be larger than JSON, up to their own limit."""
    dicom = {"content-type": "application/dicom"}
    assert client.post("/raw", content=chunks(10_000), headers=dicom).json() == 10_000
    assert client.post("/raw", content=chunks(10_001), headers=dicom).status_code == 413
    assert client.post("/form", files={"file": b"x" * 5_000}).json() == 5_000
    answer = client.post("/form", files={"file": b"x" * 10_000})
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
