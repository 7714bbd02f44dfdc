"""Paging by cursor: the place of the last row of a page, as text that means nothing to the client."""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

import orjson
from fastapi import Query
from pydantic import BaseModel, Field

from infra.problems import Problem

T = TypeVar("T")

Value = None | bool | int | float | str | datetime | date | Decimal | UUID

Limit = Annotated[int, Query(ge=1, le=1000, description="Most items in the answer.")]
Cursor = Annotated[
    str | None, Query(description="`next_cursor` of the page before; leave it out for the first page.")
]


class Page(BaseModel, Generic[T]):
    """One page of a list; ask again with `cursor=next_cursor` for the next."""

    items: list[T]
    next_cursor: str | None = Field(default=None, description="Cursor of the next page; null on the last.")


def encode_cursor(*values: Value) -> str:
    """A cursor that holds `values`: what the last row's ORDER BY columns were. Datetimes must be aware."""
    body = orjson.dumps([_tagged(v) for v in values])
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def decode_cursor(text: str, *types: type) -> tuple[Any, ...]:
    """The values in a cursor. Raises `Problem` 422 where it is not one of ours.

    Give `types` to have their number and kinds checked: a cursor comes from outside, and a wrong one
    must not reach the database.
    """
    try:
        body = orjson.loads(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
        if not isinstance(body, list):
            raise ValueError("not a list")
        values = tuple(_untagged(v) for v in body)
    except (ValueError, ArithmeticError, binascii.Error, TypeError):
        raise _bad() from None
    if types and (
        len(values) != len(types) or any(type(v) is not t for v, t in zip(values, types, strict=True))
    ):
        raise _bad()
    return values


def _bad() -> Problem:
    return Problem(
        422,
        "Invalid request",
        "This is no cursor of this list; use next_cursor of the page before, or none for the first page.",
        field="cursor",
    )


def _tagged(value: Value) -> Any:
    # Tagged, as JSON has no such types; datetime before date, which it is a kind of.
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"cursor value {value!r} has no time zone; make it aware")
        return {"t": value.astimezone(UTC).isoformat()}
    if isinstance(value, date):
        return {"d": value.isoformat()}
    if isinstance(value, Decimal):
        return {"n": str(value)}
    if isinstance(value, UUID):
        return {"u": str(value)}
    return value


def _untagged(value: Any) -> Value:
    if isinstance(value, dict):
        ((tag, text),) = value.items()
        match tag:
            case "t":
                moment = datetime.fromisoformat(text)
                if moment.tzinfo is None:
                    raise ValueError("no time zone")
                return moment
            case "d":
                return date.fromisoformat(text)
            case "n":
                return Decimal(text)
            case "u":
                return UUID(text)
        raise ValueError(f"unknown tag {tag}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("beyond 64 bits")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("NUL, which Postgres does not store")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(type(value).__name__)
