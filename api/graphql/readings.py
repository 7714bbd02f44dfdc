"""What GraphQL reads: by type and field the handler of a REST route, with its scope, checks and rows."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import strawberry
from annotated_types import Le
from fastapi import Request
from fastapi.params import Depends
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo
from strawberry.types.field import StrawberryField

from api import cards, fleet, fraud, imaging, orders, pipelines
from api.graphql import imaging as searches
from api.graphql.types import INT64, Types, camel, type_name
from api.paging import Page
from infra import problems
from infra.identity import secured

QUERY = "Query"
AT_ONCE = 4
"""Readings of one request that are under way at the same time: others want connections, too."""
UNPAGED_ROWS = 20
"""What a list without pages is taken to have."""

Handler = Callable[..., Awaitable[Any]]
_ROUTERS = tuple(module.router for module in (cards, fleet, fraud, imaging, orders, pipelines))
_SCOPES: Mapping[Any, str] = {
    route.endpoint: (route.openapi_extra or {})[secured.DECLARED]
    for router in _ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
}


@dataclass(frozen=True)
class Reading:
    """A field that reads. `route` is the handler of the REST route whose scope it needs, if not `handler`.

    `given` are arguments that the object's own fields give, by their names; `without` are arguments that have
    no meaning here; `answers` says what comes where the handler's own answer can be more than that.
    """

    handler: Handler
    route: Handler | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    answers: Any = None

    @cached_property
    def scope(self) -> str:
        """What whoever reads it must have been granted."""
        return _SCOPES[self.route or self.handler]

    @cached_property
    def answer(self) -> Any:
        """The model that it answers with, or a list of one."""
        return self.answers or self._hints["return"]

    @cached_property
    def most(self) -> int:
        """How many rows come where nobody says how many."""
        default = self._signature.parameters.get("limit")
        if default is not None:
            return int(default.default)
        return UNPAGED_ROWS if get_origin(self.answer) is list else 1

    @cached_property
    def arguments(self) -> Mapping[str, inspect.Parameter]:
        """By name in Python what is to be asked with."""
        return {
            name: parameter
            for name, parameter in self._signature.parameters.items()
            if name not in self.without and _dependency(self._hints[name]) is None
        }

    def name_of(self, argument: str) -> str:
        """What an argument is called in GraphQL."""
        return camel(_info(self._hints[argument]).alias or argument)

    def field(self, name: str, types: Types) -> StrawberryField:
        """Its field."""

        async def resolve(root: Any, info: strawberry.Info, **given: Any) -> Any:
            asking: Asking = info.context
            return await asking.read(name, self, root, given)

        asked = [self._asked(n, p, types) for n, p in self.arguments.items() if n not in self.given]
        named = inspect.Parameter.POSITIONAL_OR_KEYWORD
        resolve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter("root", named),
                inspect.Parameter("info", named, annotation=strawberry.Info),
                *asked,
            ]
        )
        made: StrawberryField = strawberry.field(
            resolver=resolve,
            name=name,
            description=f"{inspect.getdoc(self.handler) or ''} Needs `{self.scope}`.".strip(),
            graphql_type=types.later(self.answer),
        )
        made.python_name = f"read_{name}"
        return made

    def _asked(self, name: str, parameter: inspect.Parameter, types: Types) -> inspect.Parameter:
        info = _info(self._hints[name])
        most = min(
            (m.le for m in info.metadata if isinstance(m, Le) and isinstance(m.le, int)), default=INT64
        )
        kind: Any = types.of(self._hints[name], most)
        of = Annotated[
            kind,
            strawberry.argument(name=self.name_of(name), description=info.description),
        ]
        return parameter.replace(annotation=of, kind=inspect.Parameter.KEYWORD_ONLY)

    async def call(self, request: Request, root: Any, given: Mapping[str, Any]) -> Any:
        """The handler's answer to `request`, whose principal is established. Raises `Problem` as it does."""
        values = {name: _plain(value) for name, value in given.items()}
        values |= {name: getattr(root, column) for name, column in self.given.items()}
        named = {_info(self._hints[name]).alias or name: value for name, value in values.items()}
        try:
            valid = self._validated.model_validate(named)
        except ValidationError as error:
            wrong = [{**e, "loc": tuple(camel(str(part)) for part in e["loc"])} for e in error.errors()]
            raise problems.invalid(wrong) from None
        needs = {
            name: await dependency(request)
            for name in self._signature.parameters
            if (dependency := _dependency(self._hints[name])) is not None
        }
        return await self.handler(**needs, **{name: getattr(valid, name) for name in values})

    @cached_property
    def _validated(self) -> type[BaseModel]:
        """Holds arguments to the same bounds as the REST route does."""
        fields: dict[str, Any] = {
            name: (self._hints[name], ... if p.default is p.empty else p.default)
            for name, p in self.arguments.items()
        }
        made: type[BaseModel] = create_model("Arguments", __config__=ConfigDict(extra="forbid"), **fields)
        return made

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.handler)

    @cached_property
    def _hints(self) -> Mapping[str, Any]:
        if hasattr(self.handler, "__signature__"):
            hints = {name: p.annotation for name, p in self._signature.parameters.items()}
            return {**hints, "return": self._signature.return_annotation}
        return get_type_hints(self.handler, include_extras=True)


def _dependency(hint: Any) -> Callable[[Request], Awaitable[Any]] | None:
    found = [m.dependency for m in _metadata(hint) if isinstance(m, Depends)]
    return found[0] if found else None


def _info(hint: Any) -> FieldInfo:
    return next((m for m in _metadata(hint) if isinstance(m, FieldInfo)), FieldInfo())


def _metadata(hint: Any) -> tuple[Any, ...]:
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value.value if isinstance(value, Enum) else value


class Asking:
    """One request of GraphQL: whoever asks, and what has been read for them so far.

    `operation` is the one of the query's that they name, if any.
    """

    def __init__(self, request: Request, operation: str | None) -> None:
        self._request = request
        self.operation = operation
        self._turn = asyncio.Semaphore(AT_ONCE)
        self.names: dict[str, None] = {}

    async def read(self, name: str, reading: Reading, root: Any, given: Mapping[str, Any]) -> Any:
        """The answer to one field. Raises `Problem` where it is not theirs, as its REST route does.

        Each counts as a request of its own; the first one was counted at the door.
        """
        again = not self.names
        self.names[name] = None
        await secured.authorise(self._request, reading.scope, again=again)
        async with self._turn:
            return await reading.call(self._request, root, given)


READINGS: Mapping[str, Mapping[str, Reading]] = {
    QUERY: {
        "decision": Reading(fraud.decision),
        "cardDecisions": Reading(fraud.decisions_of_card),
        "cardTransactions": Reading(cards.transactions),
        "cardBalance": Reading(cards.balance),
        "cardProfile": Reading(cards.profile),
        "trucks": Reading(fleet.trucks),
        "truck": Reading(fleet.truck),
        "truckPath": Reading(fleet.path, without=frozenset({"form"}), answers=Page[fleet.Position]),
        "alerts": Reading(fleet.alerts),
        "order": Reading(orders.order),
        "orderHistory": Reading(orders.history),
        "customerOrders": Reading(orders.orders_of_customer),
        "stockOfSku": Reading(orders.stock_of_sku),
        "stock": Reading(orders.stock),
        "studies": Reading(searches.studies, imaging.search_studies),
        "series": Reading(searches.series, imaging.search_series),
        "instances": Reading(searches.instances, imaging.search_instances),
        "pipelines": Reading(pipelines.pipelines),
        "positions": Reading(pipelines.positions),
        "deadLetters": Reading(pipelines.dead_letters),
        "deadLettersOfRecord": Reading(pipelines.dead_letters_of_record),
    },
    type_name(cards.CardTransaction): {
        "decided": Reading(fraud.decision, given={"event_id": "event_id"}),
    },
    type_name(fraud.Decision): {
        "transactionsOfCard": Reading(cards.transactions, given={"card_id": "card_id"}),
        "profileOfCard": Reading(cards.profile, given={"card_id": "card_id"}),
    },
    type_name(fleet.Truck): {
        "path": Reading(
            fleet.path,
            given={"truck_id": "truck_id"},
            without=frozenset({"form"}),
            answers=Page[fleet.Position],
        ),
        "alerts": Reading(fleet.alerts, given={"truck_id": "truck_id"}),
    },
    type_name(fleet.Alert): {
        "truck": Reading(fleet.truck, given={"truck_id": "truck_id"}),
    },
    type_name(orders.OrderSummary): {
        "order": Reading(orders.order, given={"order_id": "order_id"}),
    },
    type_name(orders.Order): {
        "history": Reading(orders.history, given={"order_id": "order_id"}),
    },
    type_name(searches.Study): {
        "series": Reading(
            searches.series,
            imaging.search_series_of_study,
            given={"studyInstanceUID": "studyinstanceuid"},
        ),
        "instances": Reading(
            searches.instances,
            imaging.search_instances_of_study,
            given={"studyInstanceUID": "studyinstanceuid"},
        ),
    },
    type_name(searches.Series): {
        "instances": Reading(
            searches.instances,
            imaging.search_instances_of_series,
            given={"studyInstanceUID": "studyinstanceuid", "seriesInstanceUID": "seriesinstanceuid"},
        ),
    },
    type_name(pipelines.PipelineView): {
        "positions": Reading(pipelines.positions, given={"name": "name"}),
    },
}
"""By type and field. Fields of types other than `Query` lead on from a row that was read."""


def fields_of(name: str, types: Types) -> Iterator[StrawberryField]:
    """The fields by which a type reads on."""
    for of, reading in READINGS.get(name, {}).items():
        yield reading.field(of, types)


SCOPES: frozenset[str] = frozenset(r.scope for fields in READINGS.values() for r in fields.values())
"""Whoever has one of these may ask at all."""
