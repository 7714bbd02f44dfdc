"""Errors of the HTTP services as problem documents (RFC 9457): what went wrong, where, and the remedy."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="The field's path, as `lines.0.sku`.", examples=["amount_minor"])
    reason: str = Field(description="Why it cannot be used.", examples=["Input should be greater than 0"])


class ProblemDocument(BaseModel):
    """A problem document: `application/problem+json` of RFC 9457."""

    type: str = Field(description="A URI naming the kind of problem.", examples=["about:blank"])
    title: str = Field(description="The kind of problem, in words.", examples=["Invalid request"])
    status: int = Field(description="The HTTP status.", examples=[422])
    detail: str = Field(description="What happened here, and the remedy.")
    instance: str | None = Field(default=None, description="The path that was asked for.")
    errors: list[FieldProblem] = Field(default=[], description="Every field at fault, where fields are.")


class Problem(HTTPException):
    """An answer other than the expected one. Raise it anywhere below a handler or dependency.

    `field` names the field at fault; where several are, give `errors` as (field, reason) pairs.
    `headers` are sent with the answer, as `Retry-After`. (A kind of HTTPException, because FastAPI
    turns any other exception that is raised while a body is read into an answer of its own.)
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        field: str | None = None,
        type: str = "about:blank",
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, dict(headers) if headers else None)
        self.title = title
        self.type = type
        self.errors = tuple(errors) or (((field, detail),) if field is not None else ())

    @property
    def status(self) -> int:
        return self.status_code

    def document(self, instance: str | None = None) -> dict[str, Any]:
        """The document as JSON values; members that say nothing are left out."""
        out: dict[str, Any] = {
            "type": self.type,
            "title": self.title,
            "status": self.status_code,
            "detail": self.detail,
        }
        if instance is not None:
            out["instance"] = instance
        if self.errors:
            out["errors"] = [{"field": field, "reason": reason} for field, reason in self.errors]
        return out

    def response(self, instance: str | None = None) -> Response:
        """The document as an answer."""
        return Response(
            _encoded(self.document(instance)),
            self.status_code,
            dict(self.headers) if self.headers else None,
            MEDIA_TYPE,
        )


def _encoded(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError:
        # Words of a client are repeated in it, and JSON can hold halves of a character: "\ud800".
        return json.dumps(document).encode()


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document, in its answers and in its OpenAPI description.

    Call it after every other middleware was added: an error in one of those is then answered, too.
    """
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_middleware(_UnexpectedErrors)
    _document(app)


def invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """The 422 problem of pydantic's `errors()`, with FastAPI's source (body, query, path) left off."""
    found = [_field_and_reason(e) for e in errors]
    named = ", ".join(dict.fromkeys(field for field, _ in found))
    return Problem(
        422,
        "Invalid request",
        f"{named} cannot be used; see errors for each reason, correct the request and send it again.",
        errors=found,
    )


def _field_and_reason(error: Mapping[str, Any]) -> tuple[str, str]:
    location = tuple(error.get("loc", ()))
    if error.get("type") == "json_invalid":
        where = f" at byte {location[-1]}" if location and isinstance(location[-1], int) else ""
        return "body", f"is not JSON: {error.get('ctx', {}).get('error', error.get('msg'))}{where}"
    if len(location) > 1 and location[0] in ("body", "query", "path", "header", "cookie"):
        location = location[1:]
    reason = str(error.get("msg", "cannot be used")).removeprefix("Value error, ")
    return ".".join(str(part) for part in location) or "body", reason


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return invalid(error.errors()).response(request.url.path)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if not isinstance(error, Problem):
        error = _of_framework(request, error)
    return error.response(request.url.path)


def _of_framework(request: Request, error: HTTPException) -> Problem:
    """What Starlette or FastAPI raised by itself, with words that help."""
    title = HTTPStatus(error.status_code).phrase
    detail = str(error.detail)
    path = request.url.path
    if error.status_code == 404 and detail == title:
        detail = f"There is nothing at {path}; /docs lists every path."
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow") or (error.headers or {}).get("allow", "another method")
        detail = f"{path} does not answer {request.method}; use {allowed}."
    return Problem(error.status_code, title, detail, headers=error.headers)


class _UnexpectedErrors:
    """Answers 500 to an exception nobody expected: the stack goes to the log, nothing of it to the client.

    A middleware and not an exception handler, because Starlette raises again after such a handler and
    the server would log the stack a second time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            log.exception("request failed", extra={"method": scope["method"], "path": scope["path"]})
            if started:
                raise
            problem = Problem(
                500,
                "Internal error",
                "The request failed for a reason that is in this service's log; it may be sent again.",
            )
            await problem.response(scope["path"])(scope, receive, send)


def _document(app: FastAPI) -> None:
    """Replace FastAPI's own error schema in the OpenAPI description by the problem document."""
    generate = app.openapi
    answer: dict[str, Any] = {
        "description": "Problem document (RFC 9457)",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}},
    }

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        schema = generate()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.pop("HTTPValidationError", None)
        schemas.pop("ValidationError", None)
        document = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(document.pop("$defs"))
        schemas["ProblemDocument"] = document
        for operations in schema.get("paths", {}).values():
            for operation in operations.values():
                responses = operation.setdefault("responses", {})
                responses.pop("422", None)
                for status in ("4XX", "5XX"):
                    # Beside what a standard wants of single routes, as RFC 6749 of logins.
                    own = responses.get(status, {}).get("content", {})
                    responses[status] = {**answer, "content": {**own, **answer["content"]}}
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
