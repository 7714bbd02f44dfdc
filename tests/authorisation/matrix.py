"""Every role × tenant × object × route: what each cell must answer, and whether it does.

Routes and their scopes are read from the applications; `ASKED` and `SENT` say with which values each is
tried. A route that they lack is a failure: nothing is left out because nobody thought of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response

from connectors.publish import Receipt
from infra.identity.secured import PUBLIC, OneOf, declared
from schemas.declare import Topic
from schemas.roles import DOMAINS, RECEIVER_SCOPE, ROLES, scopes_of
from schemas.roles import OBJECTS as KINDS
from tests.authorisation.rows import NOBODYS, OWNERS, TENANTS, Owner, owners_in

GRANTS: tuple[tuple[str, ...], ...] = (
    (),
    *((f"{role.name}:{domain}",) for role in ROLES.values() if role.by_domain for domain in DOMAINS),
    *((role.name,) for role in ROLES.values() if not role.by_domain),
)
"""Each role in each domain, and nothing at all."""
RECEIVER = ("receiver",)
"""In the place of grants: whoever has the token of a webhook's endpoint."""
SEEN: Mapping[str, tuple[str, ...] | None] = {"all": None, "one": ("o1",), "none": ()}
"""The objects of its tenant that a subject sees."""


CONSOLE = "/console"
"""Its pages have a matrix of their own, `tests/console/test_access.py`."""


@dataclass(frozen=True)
class Asker:
    """A principal of the matrix, with what it sends to prove itself."""

    grants: tuple[str, ...]
    tenant: str
    seen: str
    headers: Mapping[str, str] = field(compare=False, hash=False)

    def __str__(self) -> str:
        return f"{' '.join(self.grants) or 'nothing'} of {self.tenant}, {self.seen} objects"

    @property
    def scopes(self) -> frozenset[str]:
        return frozenset({RECEIVER_SCOPE}) if self.grants == RECEIVER else scopes_of(self.grants)

    @property
    def limited(self) -> bool:
        return SEEN[self.seen] is not None

    def sees(self, owner: Owner) -> bool:
        """Whether rows of this owner are its to see or to send."""
        objects = SEEN[self.seen]
        return owner.tenant == self.tenant and (objects is None or owner.object in objects)


RECEIVERS = tuple(
    Asker(RECEIVER, owner.tenant, "one", {"Authorization": f"Bearer {owner.token}"})
    for owner in OWNERS
    if owner.object in (SEEN["one"] or ())
)
"""Who has an endpoint's token, of each tenant; they ask beside all others."""


class Failed(AssertionError):
    """A cell that does not answer as declared."""


Query = Mapping[str, str]


@dataclass(frozen=True)
class Ask:
    """How a route that reads is tried.

    `values` fills its path with ids of a target; without it the answer is a list of all that is seen. With
    `nobodys` its rows are no object's. Without `tenants` it is the same for all.
    """

    values: Callable[[Owner], Query] | None = None
    nobodys: bool = False
    tenants: bool = True
    query: Query = field(default_factory=dict)


ASKED: Mapping[str, Sequence[Ask]] = {
    "/v1/decisions/{event_id}": [Ask(lambda o: {"event_id": f"{o}-decision"})],
    "/v1/cards/{card_id}/decisions": [Ask(lambda o: {"card_id": f"{o}-card"})],
    "/v1/cards/{card_id}/transactions": [Ask(lambda o: {"card_id": f"{o}-card"})],
    "/v1/cards/{card_id}/balance": [Ask(lambda o: {"card_id": f"{o}-card"})],
    "/v1/cards/{card_id}/profile": [Ask(lambda o: {"card_id": f"{o}-card"})],
    "/v1/trucks": [
        Ask(),
        Ask(query={"near": "51.89,4.43", "radius_m": "100000"}),
    ],
    "/v1/trucks/{truck_id}": [Ask(lambda o: {"truck_id": f"{o}-truck"})],
    "/v1/trucks/{truck_id}/path": [
        Ask(lambda o: {"truck_id": f"{o}-truck"}),
    ],
    "/v1/alerts": [Ask()],
    "/v1/orders/{order_id}": [Ask(lambda o: {"order_id": f"{o}-order"})],
    "/v1/orders/{order_id}/history": [Ask(lambda o: {"order_id": f"{o}-order"})],
    "/v1/customers/{customer_id}/orders": [Ask(lambda o: {"customer_id": str(o)})],
    "/v1/stock/{sku}": [Ask(lambda o: {"sku": f"{o}-sku"}, nobodys=True)],
    "/v1/stock": [Ask(nobodys=True)],
    "/v1/pipelines": [Ask(tenants=False)],
    "/v1/pipelines/{name}/positions": [Ask(lambda _: {"name": "fraud"}, tenants=False)],
    "/v1/dead-letters": [Ask(nobodys=True)],
    "/v1/dead-letters/{topic}/{partition}/{offset}": [
        Ask(
            lambda o: {
                "topic": "card-transactions",
                "partition": "0",
                "offset": str(TENANTS.index(o.tenant)),
            },
            nobodys=True,
        )
    ],
    "/v1/webhooks/{endpoint_id}/events": [Ask(lambda o: {"endpoint_id": o.endpoint})],
    "/dicomweb/studies": [Ask(), Ask(query={"PatientID": "*.o*"})],
    "/dicomweb/series": [Ask()],
    "/dicomweb/instances": [Ask()],
    "/dicomweb/studies/{study_uid}/series": [Ask(lambda o: {"study_uid": f"{o.uid}.1"})],
    "/dicomweb/studies/{study_uid}/instances": [Ask(lambda o: {"study_uid": f"{o.uid}.1"})],
    "/dicomweb/studies/{study_uid}/series/{series_uid}/instances": [
        Ask(lambda o: {"study_uid": f"{o.uid}.1", "series_uid": f"{o.uid}.2"})
    ],
    "/v1/instances/{sop_uid}/thumbnail": [Ask(lambda o: {"sop_uid": f"{o.uid}.3"})],
}
"""By path, how each route of the API is tried."""


OTHERS: Mapping[str, str] = {"webhooks": RECEIVER_SCOPE}
"""The scope of routes that are no domain's; all others need `ops:read`."""


@dataclass(frozen=True)
class Send:
    """How a route that writes is tried: a body about a target, with and without its tenant.

    With `nobodys` an event names no object, and is for senders who see all.
    """

    path: Callable[[Owner], str]
    request: Callable[[Owner, str | None], dict[str, Any]]
    nobodys: bool = False


def _json(values: Callable[[Owner], dict[str, Any]], many: bool = False) -> Callable[..., dict[str, Any]]:
    def request(owner: Owner, tenant: str | None) -> dict[str, Any]:
        body = values(owner) | ({} if tenant is None else {"tenant": tenant})
        return {"json": [body] if many else body}

    return request


def _transaction(owner: Owner) -> dict[str, Any]:
    return {
        "event_id": f"{owner}/sent",
        "occurred_at": "2026-01-01T00:00:00Z",
        "card_id": "card",
        "amount_minor": 1,
        "currency": "EUR",
        "merchant_id": str(owner),
    }


def _fix(owner: Owner) -> dict[str, Any]:
    return {
        "truck_id": "truck",
        "fleet_id": str(owner),
        "occurred_at": 1_767_225_600_000,
        "sequence": 1,
        "latitude": 1.0,
        "longitude": 1.0,
    }


def _order(owner: Owner) -> dict[str, Any]:
    line = {"sku": "s", "quantity": 1, "unit_price_minor": 1}
    return {"order_id": "order", "customer_id": str(owner), "currency": "EUR", "lines": [line]}


CT = Path(pydicom.data.get_testdata_file("CT_small.dcm", download=False)).read_bytes()
STUDY = str(pydicom.dcmread(BytesIO(CT)).StudyInstanceUID)


def _stow(owner: Owner, tenant: str | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/dicom"}
    return {"content": CT, "headers": headers if tenant is None else {**headers, "Millrace-Tenant": tenant}}


def _form(owner: Owner, tenant: str | None) -> dict[str, Any]:
    files = {"files": ("ct.dcm", CT, "application/dicom")}
    return {"files": files} if tenant is None else {"files": files, "headers": {"Millrace-Tenant": tenant}}


SENT: Mapping[str, Send] = {
    "/v1/transactions": Send(lambda _: "/v1/transactions", _json(_transaction)),
    "/v1/transactions/batch": Send(lambda _: "/v1/transactions/batch", _json(_transaction, many=True)),
    "/v1/telemetry": Send(lambda _: "/v1/telemetry", _json(_fix, many=True)),
    "/v1/orders": Send(lambda _: "/v1/orders", _json(_order)),
    "/v1/orders/{order_id}/cancel": Send(
        lambda o: f"/v1/orders/{o}-order/cancel", _json(lambda _: {}), nobodys=True
    ),
    "/v1/stock/{sku}/receipts": Send(
        lambda o: f"/v1/stock/{o}-sku/receipts", _json(lambda _: {"quantity": 1}), nobodys=True
    ),
    "/dicomweb/studies": Send(lambda _: "/dicomweb/studies", _stow, nobodys=True),
    "/dicomweb/studies/{study_uid}": Send(lambda _: f"/dicomweb/studies/{STUDY}", _stow, nobodys=True),
    "/v1/dicom": Send(lambda _: "/v1/dicom", _form, nobodys=True),
}
"""By path, how each route of the gateway is tried."""


TOLD: Mapping[str, Sequence[Ask]] = {
    "/v1/transactions/{event_id}/decision": [Ask(lambda o: {"event_id": f"{o}-decision"})],
}
"""By path, how the gateway's routes are tried that repeat an answer: to whom may write."""


class Sent:
    """In the publisher's place: remembers what would have been published."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    async def publish(self, topic: Topic, event: dict[str, Any]) -> Receipt:
        self.events.append(event)
        return Receipt(topic.name, 0, 0)

    async def publish_many(self, topic: Topic, events: Sequence[dict[str, Any]]) -> list[Receipt]:
        return [await self.publish(topic, event) for event in events]


def routes(
    app: FastAPI, method: str, tried: Mapping[str, Any], elsewhere: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, str]]:
    """Path and scope of each secured route but those that are tried `elsewhere`. Raises `Failed` where one is
    not tried, or asks for a scope that its domain or method belies."""
    found = {}
    domains = dict(_domains(app))
    for route in declared(app):
        path = route.path.replace(":path", "")
        if path in PUBLIC or isinstance(route.scope, OneOf) or path.startswith(CONSOLE):
            # Live events and GraphQL have matrices of their own: listening.py and graph.py beside this.
            continue
        if path in (elsewhere or ()):
            continue
        if route.scope is None or path not in tried or route.methods - {"HEAD"} != {method}:
            raise Failed(f"{sorted(route.methods)} {path}, scope {route.scope}, is not in the matrix")
        domain = domains[path]
        verb = "read" if method == "GET" and path not in TOLD else "write"
        wanted = f"{domain}:{verb}" if domain in DOMAINS else OTHERS.get(domain, "ops:read")
        if route.scope != wanted:
            raise Failed(f"{path} of {domain} declares {route.scope}")
        found[path] = route.scope
    if missing := tried.keys() - found.keys():
        raise Failed(f"the matrix tries {sorted(missing)}, which are no routes")
    yield from found.items()


def _domains(app: FastAPI) -> Iterator[tuple[str, str]]:
    for path, operations in app.openapi()["paths"].items():
        for operation in operations.values():
            yield path, operation.get("tags", [""])[0]


def check_telling(app: FastAPI, client: TestClient, askers: Sequence[Asker]) -> int:
    """Try every cell of the gateway's routes that repeat an answer; returns how many. Raises `Failed`."""
    return check_reading(app, client, askers, tried=TOLD, elsewhere=SENT)


def check_reading(
    app: FastAPI,
    client: TestClient,
    askers: Sequence[Asker],
    only: str = "",
    tried: Mapping[str, Sequence[Ask]] = ASKED,
    elsewhere: Mapping[str, Any] | None = None,
) -> int:
    """Try every cell of the API, or those of one path; returns how many there were. Raises `Failed`."""
    cells = 0
    for path, scope in routes(app, "GET", tried, elsewhere):
        if only and path != only:
            continue
        for ask in tried[path]:
            cells += refuses(client.get(_filled(path, ask, OWNERS[0]), params=ask.query), 401, path)
            for asker in (*askers, *RECEIVERS):
                targets = OWNERS if ask.values and scope in asker.scopes else OWNERS[:1]
                for target in targets:
                    _read(client, path, scope, ask, asker, target)
                    cells += 1
    return cells


def _filled(path: str, ask: Ask, target: Owner) -> str:
    return path.format(**(ask.values(target) if ask.values else {}))


def _read(client: TestClient, path: str, scope: str, ask: Ask, asker: Asker, target: Owner) -> None:
    owner = Owner(target.tenant, NOBODYS) if ask.nobodys else target
    answer = client.get(_filled(path, ask, owner), params=ask.query, headers=asker.headers)
    cell = f"{asker}: GET {path} {dict(ask.query)} of {owner}"
    if scope not in asker.scopes:
        refuses(answer, 403, cell)
        return
    foreign = next(t for t in TENANTS if t != asker.tenant)
    named = client.get(
        _filled(path, ask, owner), params={**ask.query, "tenant": foreign}, headers=asker.headers
    )
    refuses(named, 403, f"{cell}, naming the tenant {foreign}")
    if not ask.tenants:
        if answer.status_code != 200:
            raise Failed(f"{cell}: {answer.status_code} {answer.text[:300]}")
        return
    wanted = seen_by(asker, ask, owner)
    if answer.status_code == 404 and not wanted:
        return  # whose words may repeat what was asked for
    found = owners_in(answer.text)
    if answer.status_code != 200 or found != wanted:
        raise Failed(
            f"{cell}: {answer.status_code} with rows of {sorted(map(str, found))}"
            f" instead of {sorted(map(str, wanted))}"
        )


def seen_by(asker: Asker, ask: Ask, owner: Owner) -> set[Owner]:
    """Whose rows must come of what is asked about `owner`."""
    if ask.nobodys:
        may_see = set() if asker.limited else {Owner(asker.tenant, NOBODYS)}
    else:
        may_see = {o for o in OWNERS if asker.sees(o)}
    return may_see if ask.values is None else may_see & {owner}


def check_writing(
    app: FastAPI, client: TestClient, sent: Sent, askers: Sequence[Asker], only: str = ""
) -> int:
    """Try every cell of the gateway, or those of one path; returns how many there were. Raises `Failed`."""
    cells = 0
    for path, scope in routes(app, "POST", SENT, elsewhere=TOLD):
        if only and path != only:
            continue
        send = SENT[path]
        cells += refuses(client.post(send.path(OWNERS[0]), **send.request(OWNERS[0], None)), 401, path)
        for asker in (*askers, *RECEIVERS):
            allowed = scope in asker.scopes
            for target in OWNERS if allowed else OWNERS[:1]:
                for tenant in (target.tenant, None):
                    _write(client, sent, path, send, allowed, asker, target, tenant)
                    cells += 1
    return cells


def _write(
    client: TestClient,
    sent: Sent,
    path: str,
    send: Send,
    allowed: bool,
    asker: Asker,
    target: Owner,
    tenant: str | None,
) -> None:
    sent.events.clear()
    request = send.request(target, tenant)
    headers = {**asker.headers, **request.pop("headers", {})}
    answer = client.post(send.path(target), headers=headers, **request)
    cell = f"{asker}: POST {path} about {target}, tenant {tenant}"
    # An object's id alone is no tenant's: acme may have a merchant that is called umbra.o1.
    spoken_for = not asker.limited or (not send.nobodys and str(target) in _ids(asker))
    if not allowed or tenant not in (None, asker.tenant) or not spoken_for:
        refuses(answer, 403, cell)
        if sent.events:
            raise Failed(f"{cell}: an event was sent all the same")
        return
    if answer.status_code not in (200, 202):
        raise Failed(f"{cell}: {answer.status_code} {answer.text[:300]}")
    if [event["tenant"] for event in sent.events] != [asker.tenant]:
        raise Failed(f"{cell}: sent {sent.events}")


def _ids(asker: Asker) -> set[str]:
    return {f"{asker.tenant}.{o}" for o in SEEN[asker.seen] or ()}


def refuses(answer: Response, status: int, cell: str) -> int:
    """1 where the answer is a problem document of this status that tells of nobody. Raises `Failed`."""
    if answer.status_code != status:
        raise Failed(f"{cell}: {answer.status_code} instead of {status}: {answer.text[:300]}")
    if answer.headers["content-type"] != "application/problem+json":
        raise Failed(f"{cell}: no problem document")
    # Its path is what was asked for; nothing else may tell of anybody.
    if owners_in(str({k: v for k, v in answer.json().items() if k != "instance"})):
        raise Failed(f"{cell}: {answer.text[:300]}")
    return 1


def objects_of(tenant: str, seen: str) -> dict[str, list[str]]:
    """The objects of every kind that a subject of the matrix sees."""
    objects = SEEN[seen]
    return {} if objects is None else {kind: [f"{tenant}.{o}" for o in objects] for kind in KINDS.values()}
