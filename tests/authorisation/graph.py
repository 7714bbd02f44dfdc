"""Every role × tenant × object × field of GraphQL: what each cell must answer, and whether it does.

Fields, their scopes and arguments are read from the schema; they are tried with what the matrix of routes
tries the route with that they read as. A field that leads on from a row is tried behind one that reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.testclient import TestClient
from graphql import GraphQLObjectType, get_named_type, is_object_type
from httpx2 import Response

from api.graphql.readings import QUERY, READINGS, Reading
from api.graphql.routes import PATH, SCHEMA
from tests.authorisation.matrix import ASKED, RECEIVERS, Ask, Asker, Failed, refuses, seen_by
from tests.authorisation.rows import NOBODYS, OWNERS, TENANTS, Owner, owners_in

ELSEWHERE = {
    "/v1/webhooks/{endpoint_id}/events": "a receiver has nothing else to ask for",
    "/v1/instances/{sop_uid}/thumbnail": "a picture is no field",
    "/dicomweb/studies/{study_uid}/series": "led on to from a study",
    "/dicomweb/studies/{study_uid}/instances": "led on to from a study",
    "/dicomweb/studies/{study_uid}/series/{series_uid}/instances": "led on to from a series",
}
"""Routes of the matrix that no field of `Query` reads as, and why."""

FEW = 10
"""Rows of a list: more than there are of anything, and what leads on from them does not cost too much."""

_TYPES: Mapping[str, Any] = SCHEMA._schema.type_map


@dataclass(frozen=True)
class Tried:
    """A field and the query that tries it."""

    type: str
    name: str
    reading: Reading
    root: str
    ask: Ask

    def __str__(self) -> str:
        return f"{self.type}.{self.name}"

    def query(self, owner: Owner) -> str:
        """All that the field has about `owner`."""
        root = _TYPES[QUERY].fields[self.root]
        row = get_named_type(root.type)
        chosen = leaves(row)
        if self.type != QUERY:
            led_to = get_named_type(_TYPES[self.type].fields[self.name].type)
            few = f"(limit: {FEW})" if "limit" in self.reading.arguments else ""
            chosen = f"{{ {self.name}{few} {leaves(led_to)} }}"
            chosen = chosen if row.name == self.type else f"{{ items {chosen} }}"
        return f"{{ {self.root}{self._arguments(owner)} {chosen} }}"

    def _arguments(self, owner: Owner) -> str:
        reading = READINGS[QUERY][self.root]
        by_rest = {reading.name_of(name).lower(): reading.name_of(name) for name in reading.arguments}
        types = _TYPES[QUERY].fields[self.root].args
        given = {**(self.ask.values(owner) if self.ask.values else {}), **self.ask.query}
        named = {by_rest[name.replace("_", "").lower()]: value for name, value in given.items()}
        texts = [
            f"{name}: {json.dumps(value) if get_named_type(types[name].type).name == 'String' else value}"
            for name, value in named.items()
        ]
        texts += [f"limit: {FEW}"] if "limit" in reading.arguments else []
        return f"({', '.join(texts)})" if texts else ""


def leaves(of: GraphQLObjectType) -> str:
    """Everything that a type has by itself, without what leads on from it."""
    chosen = []
    for name, field in of.fields.items():
        if name not in READINGS.get(of.name, {}):
            within = get_named_type(field.type)
            chosen.append(f"{name} {leaves(within)}" if is_object_type(within) else name)
    return f"{{ {' '.join(chosen)} }}"


def tried(app: FastAPI) -> Iterator[Tried]:
    """Every field that reads, as often as its route is tried.

    Raises `Failed` where one is not tried, or a route is neither read as nor among those `ELSEWHERE`."""
    routes = ((getattr(c, "original_route", c), c.path) for c in iter_route_contexts(app.routes))
    paths = {route.endpoint: path for route, path in routes if isinstance(route, APIRoute)}
    roots = {}
    for name, reading in READINGS[QUERY].items():
        roots[name] = paths[reading.route or reading.handler]
        yield from (Tried(QUERY, name, reading, name, ask) for ask in ASKED[roots[name]])
    if missing := ASKED.keys() ^ {*roots.values(), *ELSEWHERE}:
        raise Failed(f"{sorted(missing)}: no field reads as these routes, or in two ways")
    for of, fields in READINGS.items():
        if of == QUERY:
            continue
        leading = [name for name in roots if of in _rows(get_named_type(_TYPES[QUERY].fields[name].type))]
        for name, reading in fields.items():
            if not leading:
                raise Failed(f"{of}.{name} is led on to from nothing that is tried")
            yield from (Tried(of, name, reading, root, ask) for root in leading for ask in ASKED[roots[root]])


def _rows(answer: GraphQLObjectType) -> set[str]:
    """What an answer is, or has as its items."""
    items = answer.fields.get("items")
    return {answer.name, *({get_named_type(items.type).name} if items else ())}


def check_asking(app: FastAPI, client: TestClient, askers: Sequence[Asker], only: str = "") -> int:
    """Try every cell of GraphQL, or those of one field; returns how many there were. Raises `Failed`."""
    cells = 0
    for field in tried(app):
        if only and str(field) != only:
            continue
        cells += refuses(_post(client, field.query(OWNERS[0]), {}), 401, str(field))
        for asker in (*askers, *RECEIVERS):
            allowed = {field.reading.scope, READINGS[QUERY][field.root].scope} <= asker.scopes
            for target in OWNERS if field.ask.values and allowed else OWNERS[:1]:
                _ask(client, field, asker, target, allowed)
                cells += 1
    return cells


def _post(client: TestClient, query: str, headers: Mapping[str, str], **params: str) -> Response:
    return client.post(PATH, json={"query": query}, headers=headers, params=params)


def _ask(client: TestClient, field: Tried, asker: Asker, target: Owner, allowed: bool) -> None:
    owner = Owner(target.tenant, NOBODYS) if field.ask.nobodys else target
    query = field.query(owner)
    cell = f"{asker}: {field} of {owner}"
    answer = _post(client, query, asker.headers)
    if not allowed:
        refuses(answer, 403, cell)
        return
    foreign = next(t for t in TENANTS if t != asker.tenant)
    refuses(_post(client, query, asker.headers, tenant=foreign), 403, f"{cell}, naming the tenant {foreign}")
    if answer.status_code != 200:
        raise Failed(f"{cell}: {answer.status_code} {answer.text[:300]}")
    body = answer.json()
    wanted = seen_by(asker, field.ask, owner) if field.ask.tenants else set()
    # Its errors may repeat what was asked for.
    found = owners_in(json.dumps(body["data"]))
    if found != wanted or ("errors" in body and wanted):
        raise Failed(
            f"{cell}: with rows of {sorted(map(str, found))} instead of {sorted(map(str, wanted))},"
            f" {body.get('errors')}"
        )
