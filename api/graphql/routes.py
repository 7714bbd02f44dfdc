"""`POST /v1/graphql`: what is refused is a problem document; what is not there is null, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import strawberry
from fastapi import Request
from graphql import GraphQLError
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from strawberry.schema.config import StrawberryConfig
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types import ExecutionContext

from api.graphql.limits import Measured
from api.graphql.readings import QUERY, SCOPES, Asking, fields_of
from api.graphql.types import SCALARS, Types
from infra.identity.secured import OneOf, SecuredRouter
from infra.problems import Problem

PATH = "/v1/graphql"
MEDIA_TYPE = "application/graphql-response+json"

router = SecuredRouter(tags=["graphql"])


class Schema(strawberry.Schema):
    """Logs nothing: what is refused is answered, and what nobody expected is told by `infra.problems`."""

    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        """Nothing."""


def make_schema() -> Schema:
    """The schema of all that can be read."""
    types = Types(lambda name: list(fields_of(name, types)))
    query = types.create(QUERY, [], "All that can be read; each field names the scope that it needs.")
    types.finish()
    return Schema(query, config=StrawberryConfig(scalar_map=SCALARS), extensions=[Measured])


SCHEMA = make_schema()


class Question(BaseModel):
    """A query of GraphQL."""

    model_config = ConfigDict(extra="ignore")

    query: str = Field(min_length=1, examples=['{ order(orderId: "o-1") { status lines { sku quantity } } }'])
    variables: dict[str, Any] | None = None
    operation_name: str | None = Field(
        default=None, alias="operationName", description="Which one, where `query` has several."
    )


class ErrorOfField(BaseModel):
    """Why a field is null: what it names is not there, or not the asker's."""

    message: str
    path: list[str | int]
    extensions: dict[str, Any] = Field(description="`problem`: the document that the REST route answers.")


class Answer(BaseModel):
    """What was asked for, in the shape of the query."""

    data: dict[str, Any]
    errors: list[ErrorOfField] = []
    extensions: dict[str, Any] = Field(description="`cost` and `depth` of the query.")


@router.post(
    PATH,
    scope=OneOf(SCOPES),
    response_model=Answer,
    responses={200: {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Answer"}}}}},
    summary="Ask by GraphQL",
)
async def ask(request: Request, question: Question) -> Response:
    """Read with one query what several routes hold: their rows, scopes and bounds hold here as well.

    The schema is in `docs/schema.graphql`, and tells of itself by introspection. Each field that reads counts
    as a request.
    """
    asking = Asking(request, question.operation_name)
    try:
        result = await SCHEMA.execute(
            question.query, question.variables, context_value=asking, operation_name=question.operation_name
        )
    except (CannotGetOperationTypeError, InvalidOperationTypeError):
        raise _invalid(["names no operation of the query, which must be one"], "operationName") from None
    finally:
        # For the audit log.
        request.state.action, request.state.object = "read", " ".join(asking.names)
    missing = _missing(result.errors or ())
    body: dict[str, Any] = {"data": result.data, "extensions": result.extensions or {}}
    if missing:
        body["errors"] = missing
    accepted = MEDIA_TYPE in request.headers.get("accept", "")
    return Response(orjson.dumps(body), media_type=MEDIA_TYPE if accepted else "application/json")


def _missing(errors: Sequence[GraphQLError]) -> list[dict[str, Any]]:
    """What is told beside the data. Raises whatever else went wrong: then nothing is answered."""
    found = []
    wrong = []
    for error in errors:
        reason = error.original_error
        if isinstance(reason, Problem) and reason.status == 404:
            about = {"problem": reason.document()}
            found.append({"message": reason.detail, "path": error.path, "extensions": about})
        elif reason is not None and (error.path or isinstance(reason, Problem)):
            raise reason
        else:
            wrong.append(error)  # of the query itself: nothing was read
    if wrong:
        raise _invalid([_told(error) for error in wrong])
    return found


def _told(error: GraphQLError) -> str:
    places = ", ".join(f"line {at.line}, column {at.column}" for at in error.locations or ())
    return f"{error.message} ({places})" if places else error.message


def _invalid(reasons: Sequence[str], field: str = "query") -> Problem:
    return Problem(
        422,
        "Invalid request",
        f"{field} cannot be used; see errors for each reason, correct the query and send it again.",
        errors=[(field, reason) for reason in reasons[:20]],
    )
